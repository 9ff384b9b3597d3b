"""What notebook 12 calls; its first cell brings all of it by one line."""

from __future__ import annotations

from IPython.display import HTML

from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress
from llama2lab.lessons.n12_safety import experiments as safety
from llama2lab.lessons.n12_safety import figures as shown
from llama2lab.lessons.n12_safety.exercises import DISTILLED, EXERCISES, FALSE_REFUSAL, REFUSALS
from llama2lab.lessons.n12_safety.widget_red_team import RedTeam
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.report.plots import violations_and_refusals
from llama2lab.report.summary import figure_text

__all__ = [
    "DISTILLED",
    "EXERCISES",
    "FALSE_REFUSAL",
    "HTML",
    "REFUSALS",
    "Progress",
    "RedTeam",
    "ask",
    "claims_plot",
    "figure_text",
    "finished_run",
    "recipe_map",
    "safety",
    "sealed",
    "shown",
    "table",
    "violations_and_refusals",
]
