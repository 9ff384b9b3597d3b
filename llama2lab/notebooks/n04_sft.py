"""What notebook 04 calls; its first cell brings all of it by one line."""

from __future__ import annotations

import copy

from IPython.display import HTML

from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab import pictures, shown
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.checking import whose
from llama2lab.lab.finished import finished_run
from llama2lab.lab.progress import Progress, check
from llama2lab.lessons import settings_tables
from llama2lab.lessons.n01_tokenizer.widget_packing import MaskExplorer
from llama2lab.lessons.n03_pretraining.training_view import TrainingView
from llama2lab.lessons.n04_sft.exercises import CHAT_TEXT, EXERCISES, QUALITY, SFT_LOSS, SFT_MASK, WHY_EOS
from llama2lab.lessons.n04_sft.experiments import (
    base_and_sft,
    by_examples,
    eos_length,
    quality_budgets,
    short_sft,
    watched,
)
from llama2lab.lessons.n04_sft.figures import lengths_figure
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.model.chat import encode_chats
from llama2lab.report import plots
from llama2lab.report.summary import figure_text, find, paired_gap
from llama2lab.stages.sft import SFTSettings, sft
from llama2lab.town.demonstrations import demonstrations

__all__ = [
    "CHAT_TEXT",
    "EXERCISES",
    "HTML",
    "QUALITY",
    "SFT_LOSS",
    "SFT_MASK",
    "WHY_EOS",
    "MaskExplorer",
    "Progress",
    "SFTSettings",
    "TrainingView",
    "ask",
    "base_and_sft",
    "by_examples",
    "check",
    "claims_plot",
    "copy",
    "demonstrations",
    "encode_chats",
    "eos_length",
    "figure_text",
    "find",
    "finished_run",
    "lengths_figure",
    "paired_gap",
    "pictures",
    "plots",
    "quality_budgets",
    "recipe_map",
    "sealed",
    "settings_tables",
    "sft",
    "short_sft",
    "shown",
    "watched",
    "whose",
]
