"""What notebook 02 calls; its first cell brings all of it by one line."""

from __future__ import annotations

import torch
from IPython.display import HTML

from llama2lab.evidence.claims_plot import claims_plot
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import table
from llama2lab.lab.progress import Progress, check
from llama2lab.lab.shown import owners
from llama2lab.lab.source import source
from llama2lab.lessons.n02_transformer.exercises import (
    CACHE_SIZE,
    CAUSAL_MASK,
    DOCUMENT_MASK,
    EXERCISES,
    GQA_LOSS,
    GROUPED_ATTENTION,
    KV_CACHE,
    RMS_NORM,
    ROPE,
    SWIGLU,
    WHY_ROOT,
)
from llama2lab.lessons.n02_transformer.experiments import assembled, decode_speed, gqa_variants, transformers_logits
from llama2lab.lessons.n02_transformer.figures import (
    TABLE_GQA,
    TASKS,
    busy_words,
    gap_figure,
    gqa_rows,
    loss_curves,
    means,
    quality_table,
    speed_figure,
    speed_rows,
    speed_verdict,
    spread_figure,
)
from llama2lab.lessons.n02_transformer.rope_clocks import RopeClocks
from llama2lab.lessons.n02_transformer.sizes import out_of_memory, parameter_rows, parameters
from llama2lab.lessons.n02_transformer.transformer_flow import TransformerFlow
from llama2lab.lessons.n02_transformer.widget_attention import AttentionExplorer
from llama2lab.lessons.n02_transformer.widget_calculator import CacheCalculator
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.model.attention import plain_attention
from llama2lab.model.chat import encode_chat
from llama2lab.model.network import SIZES

__all__ = [
    "CACHE_SIZE",
    "CAUSAL_MASK",
    "DOCUMENT_MASK",
    "EXERCISES",
    "GQA_LOSS",
    "GROUPED_ATTENTION",
    "HTML",
    "KV_CACHE",
    "RMS_NORM",
    "ROPE",
    "SIZES",
    "SWIGLU",
    "TABLE_GQA",
    "TASKS",
    "WHY_ROOT",
    "AttentionExplorer",
    "CacheCalculator",
    "Progress",
    "RopeClocks",
    "TransformerFlow",
    "ask",
    "assembled",
    "busy_words",
    "check",
    "claims_plot",
    "decode_speed",
    "encode_chat",
    "finished_run",
    "gap_figure",
    "gqa_rows",
    "gqa_variants",
    "loss_curves",
    "means",
    "out_of_memory",
    "owners",
    "parameter_rows",
    "parameters",
    "plain_attention",
    "quality_table",
    "recipe_map",
    "sealed",
    "source",
    "speed_figure",
    "speed_rows",
    "speed_verdict",
    "spread_figure",
    "table",
    "torch",
    "transformers_logits",
]
