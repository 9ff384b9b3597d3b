"""What notebook 03 calls; its first cell brings all of it by one line."""

from __future__ import annotations

import math

from IPython.display import HTML

from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab import pictures, shown
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.live_view import spread
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress, check
from llama2lab.lessons import settings_tables
from llama2lab.lessons.n01_tokenizer.widget_packing import PackingExplorer
from llama2lab.lessons.n02_transformer.experiments import context_length, facts_after_talk
from llama2lab.lessons.n02_transformer.figures import TABLE_CONTEXT
from llama2lab.lessons.n03_pretraining.exercises import (
    BITS_PER_BYTE,
    EXERCISES,
    FIRST_LOSS,
    NO_WARMUP,
    SCHEDULE,
    STEPS,
    TRAINING_STEP,
    WINDOW,
)
from llama2lab.lessons.n03_pretraining.experiments import (
    compression,
    data_size_and_quality,
    known_by_tokens,
    pretraining,
    prompt_forms,
    speeds,
    trained_by_hand,
    untrained_loss,
    warmup_or_not,
    watched,
)
from llama2lab.lessons.n03_pretraining.figures import bits_figure, first_losses, forms_figure, schedules_figure
from llama2lab.lessons.n03_pretraining.training_view import TrainingView
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.report import plots
from llama2lab.report.summary import figure_text
from llama2lab.town.corpus import fact_probes, pretraining_corpus

__all__ = [
    "BITS_PER_BYTE",
    "EXERCISES",
    "FIRST_LOSS",
    "HTML",
    "NO_WARMUP",
    "SCHEDULE",
    "STEPS",
    "TABLE_CONTEXT",
    "TRAINING_STEP",
    "WINDOW",
    "PackingExplorer",
    "Progress",
    "TrainingView",
    "ask",
    "bits_figure",
    "check",
    "claims_plot",
    "compression",
    "context_length",
    "data_size_and_quality",
    "fact_probes",
    "facts_after_talk",
    "figure_text",
    "finished_run",
    "first_losses",
    "forms_figure",
    "known_by_tokens",
    "math",
    "pictures",
    "plots",
    "pretraining",
    "pretraining_corpus",
    "prompt_forms",
    "recipe_map",
    "schedules_figure",
    "sealed",
    "settings_tables",
    "shown",
    "speeds",
    "spread",
    "table",
    "trained_by_hand",
    "untrained_loss",
    "warmup_or_not",
    "watched",
]
