"""What notebook 08 calls; its first cell brings all of it by one line."""

from __future__ import annotations

import math

import torch
from IPython.display import HTML

from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress, check
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
    PPO_STEP,
    SAMPLING_GAP,
    TOKEN_REWARDS,
    VALUE_LOSS,
)
from llama2lab.lessons.n08_ppo.gae_by_hand import GaeByHand, five_tokens
from llama2lab.lessons.n08_ppo.ppo_view import PpoView
from llama2lab.lessons.n08_ppo.reward_film import RewardFilm
from llama2lab.lessons.n08_ppo.three_tokens import WORTH, play
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.report import plots
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
    "PPO_STEP",
    "SAMPLING_GAP",
    "TOKEN_REWARDS",
    "VALUE_LOSS",
    "WORTH",
    "ClipCurve",
    "GaeByHand",
    "PpoView",
    "Progress",
    "RewardFilm",
    "ask",
    "check",
    "claims_plot",
    "clip_data",
    "figures",
    "finished_run",
    "five_tokens",
    "math",
    "plain_iteration",
    "play",
    "plots",
    "ppo",
    "recipe_map",
    "sealed",
    "settings_tables",
    "short",
    "source",
    "table",
    "torch",
]
