"""What notebook 13 calls; its first cell brings all of it by one line."""

from __future__ import annotations

from IPython.display import HTML

from llama2lab.evidence import real_shown as real
from llama2lab.evidence.claims_plot import claims_plot, undecided_table
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress
from llama2lab.lab.shown import show, verdicts
from llama2lab.lessons.n06_rewards import experiments as rewards
from llama2lab.lessons.recipe_map import recipe_map

__all__ = [
    "HTML",
    "Progress",
    "claims_plot",
    "finished_run",
    "real",
    "recipe_map",
    "rewards",
    "show",
    "table",
    "undecided_table",
    "verdicts",
]
