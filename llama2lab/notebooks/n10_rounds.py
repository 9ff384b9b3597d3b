"""What notebook 10 calls; its first cell brings all of it by one line."""

from __future__ import annotations

from IPython.display import HTML

from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress, check
from llama2lab.lab.shown import show, verdicts
from llama2lab.lessons.n08_ppo import experiments as ppo_experiments
from llama2lab.lessons.n08_ppo import figures as ppo_figures
from llama2lab.lessons.n10_rounds import experiments as rounds
from llama2lab.lessons.n10_rounds import figures
from llama2lab.lessons.n10_rounds.exercises import (
    AGAINST,
    BY_SKILL,
    EXERCISES,
    FINETUNING_ROWS,
    FORGOTTEN,
    FRESH,
    SHARED_SCALE,
    VERSIONS,
)
from llama2lab.lessons.n10_rounds.widget_versions import VersionsExplorer
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.report import plots
from llama2lab.report.summary import difference, figure_text, find, paired_gap
from llama2lab.stages import rejection

__all__ = [
    "AGAINST",
    "BY_SKILL",
    "EXERCISES",
    "FINETUNING_ROWS",
    "FORGOTTEN",
    "FRESH",
    "HTML",
    "SHARED_SCALE",
    "VERSIONS",
    "Progress",
    "VersionsExplorer",
    "ask",
    "check",
    "claims_plot",
    "difference",
    "figure_text",
    "figures",
    "find",
    "finished_run",
    "paired_gap",
    "plots",
    "ppo_experiments",
    "ppo_figures",
    "recipe_map",
    "rejection",
    "rounds",
    "sealed",
    "show",
    "table",
    "verdicts",
]
