"""What notebook 01 calls; its first cell brings all of it by one line."""

from __future__ import annotations

from IPython.display import HTML

from llama2lab.engine.packing import pack
from llama2lab.lab.ask import ask, sealed
from llama2lab.lab.chips import chips, packed_picture, pieces, token_picture
from llama2lab.lab.finished import finished_run
from llama2lab.lab.pictures import heatmap, table
from llama2lab.lab.progress import Progress, check
from llama2lab.lab.shown import owners
from llama2lab.lessons.n01_tokenizer.bpe_machine import BpeMachine, town_text
from llama2lab.lessons.n01_tokenizer.exercises import (
    COMPRESSION,
    DIGITS,
    EXERCISES,
    MERGE,
    MORE_VOCABULARY,
    MOST_FREQUENT_PAIR,
    PACK,
    WHY_BYTES,
)
from llama2lab.lessons.n01_tokenizer.experiments import (
    compression_by_vocabulary,
    corpus_kinds,
    forgery,
    own_compression,
    own_merges,
    own_rows,
    round_trips,
    split_counts,
    stated_and_asked,
)
from llama2lab.lessons.n01_tokenizer.figures import asked_table, vocabulary_figure
from llama2lab.lessons.n01_tokenizer.vocabularies import corpus, merges, vocabulary
from llama2lab.lessons.n01_tokenizer.widget_packing import marked_tokens, padding
from llama2lab.lessons.n01_tokenizer.widget_tokens import TokenExplorer
from llama2lab.lessons.recipe_map import recipe_map
from llama2lab.model.attention import document_mask
from llama2lab.model.network import SIZES
from llama2lab.report.summary import figure_text, metrics
from llama2lab.stages.pretrain import encode_documents

__all__ = [
    "COMPRESSION",
    "DIGITS",
    "EXERCISES",
    "HTML",
    "MERGE",
    "MORE_VOCABULARY",
    "MOST_FREQUENT_PAIR",
    "PACK",
    "SIZES",
    "WHY_BYTES",
    "BpeMachine",
    "Progress",
    "TokenExplorer",
    "ask",
    "asked_table",
    "check",
    "chips",
    "compression_by_vocabulary",
    "corpus",
    "corpus_kinds",
    "document_mask",
    "encode_documents",
    "figure_text",
    "finished_run",
    "forgery",
    "heatmap",
    "marked_tokens",
    "merges",
    "metrics",
    "own_compression",
    "own_merges",
    "own_rows",
    "owners",
    "pack",
    "packed_picture",
    "padding",
    "pieces",
    "recipe_map",
    "round_trips",
    "sealed",
    "split_counts",
    "stated_and_asked",
    "table",
    "token_picture",
    "town_text",
    "vocabulary",
    "vocabulary_figure",
]
