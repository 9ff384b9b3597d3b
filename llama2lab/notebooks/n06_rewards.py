"""What notebook 06 calls; its first cell brings all of it by one line."""

from __future__ import annotations

import copy

import torch
from IPython.display import HTML

from llama2lab.engine.scale import GRADES, MARGINS
from llama2lab.evidence import real_shown as real
from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab import pictures
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress, check
from llama2lab.lab.shown import rows, show, told, verdicts
from llama2lab.lessons.n06_rewards import experiments as rewards
from llama2lab.lessons.n06_rewards import figures as reward_figures
from llama2lab.lessons.n06_rewards.exercises import (
    BY_GRADE,
    EPOCHS,
    EXERCISES,
    GATE,
    LAST_TOKEN,
    RANKING_LOSS,
    START,
    WHITEN,
    WHY_MARGIN,
)
from llama2lab.lessons.n06_rewards.widget_margin import MarginExplorer, real_gaps
from llama2lab.lessons.n06_rewards.widget_rewards import RewardExplorer
from llama2lab.lessons.n08_ppo.experiments import hacking, heads_by_ppo
from llama2lab.lessons.n08_ppo.reward_film import RewardFilm
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.model.logprobs import pad_right
from llama2lab.report import plots
from llama2lab.report.summary import figure_text
from llama2lab.stages import gate, reward

__all__ = [
    "BY_GRADE",
    "EPOCHS",
    "EXERCISES",
    "GATE",
    "GRADES",
    "HTML",
    "LAST_TOKEN",
    "MARGINS",
    "RANKING_LOSS",
    "START",
    "WHITEN",
    "WHY_MARGIN",
    "MarginExplorer",
    "Progress",
    "RewardExplorer",
    "RewardFilm",
    "ask",
    "check",
    "claims_plot",
    "copy",
    "figure_text",
    "finished_run",
    "gate",
    "hacking",
    "heads_by_ppo",
    "pad_right",
    "pictures",
    "plots",
    "real",
    "real_gaps",
    "recipe_map",
    "reward",
    "reward_figures",
    "rewards",
    "rows",
    "sealed",
    "show",
    "table",
    "told",
    "torch",
    "verdicts",
]
