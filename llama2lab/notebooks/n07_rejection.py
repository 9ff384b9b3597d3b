"""What notebook 07 calls; its first cell brings all of it by one line."""

from __future__ import annotations

import itertools

import numpy as np
from IPython.display import HTML

from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab import shown
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress, check
from llama2lab.lessons.n07_rejection import experiments, figures
from llama2lab.lessons.n07_rejection.exercises import (
    BEST_OF_CURVE,
    BEST_OF_K,
    EXERCISES,
    EXPECTED_BEST,
    GAIN,
    MEDIAN_FLAT,
)
from llama2lab.lessons.n07_rejection.widget_best_of_k import BestOfK
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.model.sample import sample_answers
from llama2lab.report.summary import figure_text, short_name
from llama2lab.stages import rejection
from llama2lab.stages.gate import combined_scores

__all__ = [
    "BEST_OF_CURVE",
    "BEST_OF_K",
    "EXERCISES",
    "EXPECTED_BEST",
    "GAIN",
    "HTML",
    "MEDIAN_FLAT",
    "BestOfK",
    "Progress",
    "ask",
    "check",
    "claims_plot",
    "combined_scores",
    "experiments",
    "figure_text",
    "figures",
    "finished_run",
    "itertools",
    "np",
    "recipe_map",
    "rejection",
    "sample_answers",
    "sealed",
    "short_name",
    "shown",
    "table",
]
