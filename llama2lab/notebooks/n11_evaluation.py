"""What notebook 11 calls; its first cell brings all of it by one line."""

from __future__ import annotations

from IPython.display import HTML

from llama2lab.evidence import real_shown as real
from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress, check
from llama2lab.lab.shown import show
from llama2lab.lessons.n11_evaluation import experiments as evaluation
from llama2lab.lessons.n11_evaluation import figures as shown
from llama2lab.lessons.n11_evaluation.exercises import (
    CARBON,
    EFFECTIVE_N,
    EXERCISES,
    MONTHLY_USERS,
    NARROWER,
    OPEN_PARTS,
    OVERLAP,
    WIN_RATE,
)
from llama2lab.lessons.n11_evaluation.widget_costs import CostCalculator, implied_intensity, lambert_rows, report_check
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.report.plots import skills
from llama2lab.report.summary import figure_text

__all__ = [
    "CARBON",
    "EFFECTIVE_N",
    "EXERCISES",
    "HTML",
    "MONTHLY_USERS",
    "NARROWER",
    "OPEN_PARTS",
    "OVERLAP",
    "WIN_RATE",
    "CostCalculator",
    "Progress",
    "ask",
    "check",
    "claims_plot",
    "evaluation",
    "figure_text",
    "finished_run",
    "implied_intensity",
    "lambert_rows",
    "real",
    "recipe_map",
    "report_check",
    "sealed",
    "show",
    "shown",
    "skills",
    "table",
]
