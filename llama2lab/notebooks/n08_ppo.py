"""What notebook 08 calls, brought by its one line `from llama2lab.notebooks.n08_ppo import *`."""

from __future__ import annotations

import torch
from IPython.display import HTML

from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress, check
from llama2lab.lab.shown import show, verdict
from llama2lab.lab.source import source
from llama2lab.lessons import settings_tables
from llama2lab.lessons.n08_ppo import experiments as short
from llama2lab.lessons.n08_ppo import figures
from llama2lab.lessons.n08_ppo.clip_curve import ClipCurve, clip_data
from llama2lab.lessons.n08_ppo.exercises import (
    BETA,
    CLIPPED,
    EXERCISES,
    FIRST_RATIO,
    GAE,
    KL,
    SAMPLING_GAP,
    TOKEN_REWARDS,
)
from llama2lab.lessons.n08_ppo.gae_by_hand import GaeByHand, five_tokens
from llama2lab.lessons.n08_ppo.widget_hacking import HackingTheatre
from llama2lab.lessons.n08_ppo.widget_ppo_panel import PpoPanel
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.report import plots
from llama2lab.report.summary import figure_text
from llama2lab.stages import ppo
from llama2lab.stages.ppo import plain_iteration

__all__ = [
    "BETA",
    "CLIPPED",
    "EXERCISES",
    "FIRST_RATIO",
    "GAE",
    "HTML",
    "KL",
    "SAMPLING_GAP",
    "TOKEN_REWARDS",
    "ClipCurve",
    "GaeByHand",
    "HackingTheatre",
    "PpoPanel",
    "Progress",
    "ask",
    "check",
    "claims_plot",
    "clip_data",
    "figure_text",
    "figures",
    "finished_run",
    "five_tokens",
    "plain_iteration",
    "plots",
    "ppo",
    "recipe_map",
    "sealed",
    "settings_tables",
    "short",
    "show",
    "source",
    "table",
    "torch",
    "verdict",
]
