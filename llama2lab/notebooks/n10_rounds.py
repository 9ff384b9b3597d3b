"""What notebook 10 calls, brought by its one line `from llama2lab.notebooks.n10_rounds import *`."""

from __future__ import annotations

from IPython.display import HTML

from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress
from llama2lab.lab.shown import show, verdict, verdicts
from llama2lab.lessons.n10_rounds import experiments as rounds
from llama2lab.lessons.n10_rounds import figures
from llama2lab.lessons.n10_rounds.exercises import EXERCISES, FORGOTTEN, FRESH, SHARED_SCALE, VERSIONS
from llama2lab.lessons.n10_rounds.widget_versions import VersionsExplorer
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.report import plots
from llama2lab.report.summary import difference, find, paired_gap

__all__ = [
    "EXERCISES",
    "FORGOTTEN",
    "FRESH",
    "HTML",
    "SHARED_SCALE",
    "VERSIONS",
    "Progress",
    "VersionsExplorer",
    "ask",
    "claims_plot",
    "difference",
    "figures",
    "find",
    "finished_run",
    "paired_gap",
    "plots",
    "recipe_map",
    "rounds",
    "sealed",
    "show",
    "table",
    "verdict",
    "verdicts",
]
