"""What notebook 03 calls, brought by its one line `from llama2lab.notebooks.n03_pretraining import *`."""

from __future__ import annotations

import math

import plotly.graph_objects as go
from IPython.display import HTML

from llama2lab.engine.optim import Optim, cosine_lr
from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab import pictures, shown
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.progress import Progress, check
from llama2lab.lessons import settings_tables
from llama2lab.lessons.n01_tokenizer.widget_packing import PackingExplorer
from llama2lab.lessons.n03_pretraining.exercises import EXERCISES, FIRST_LOSS, NO_WARMUP, SCHEDULE, STEPS
from llama2lab.lessons.n03_pretraining.experiments import (
    ceiling,
    compression,
    data_size_and_quality,
    known_by_tokens,
    pretraining,
    prompt_forms,
    untrained_loss,
    warmup_or_not,
)
from llama2lab.lessons.n03_pretraining.widget_training import TrainingPanel, spread
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.report import look, plots
from llama2lab.report.summary import figure_text
from llama2lab.stages.pretrain import training_flops_per_token
from llama2lab.town.corpus import fact_probes, pretraining_corpus

__all__ = [
    "EXERCISES",
    "FIRST_LOSS",
    "HTML",
    "NO_WARMUP",
    "SCHEDULE",
    "STEPS",
    "Optim",
    "PackingExplorer",
    "Progress",
    "TrainingPanel",
    "ask",
    "ceiling",
    "check",
    "claims_plot",
    "compression",
    "cosine_lr",
    "data_size_and_quality",
    "fact_probes",
    "figure_text",
    "finished_run",
    "go",
    "known_by_tokens",
    "look",
    "math",
    "pictures",
    "plots",
    "pretraining",
    "pretraining_corpus",
    "prompt_forms",
    "recipe_map",
    "sealed",
    "settings_tables",
    "shown",
    "spread",
    "training_flops_per_token",
    "untrained_loss",
    "warmup_or_not",
]
