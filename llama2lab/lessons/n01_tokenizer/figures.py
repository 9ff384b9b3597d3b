"""Figures and tables of notebook 01, from what its experiments give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from llama2lab.lab.shown import Table
from llama2lab.report.look import BLUE, style
from llama2lab.report.series import add_series


def vocabulary_figure(by_size: Mapping[str, Mapping[str, Any]]) -> go.Figure | None:
    """Tokens a text by the size of the vocabulary (`compression_by_vocabulary`)."""
    fig, found = go.Figure(), list(by_size.values())
    sizes, texts = [f["reached"] for f in found], [f["tokens_per_text"] for f in found]
    add_series(fig, "held-out documents", sizes, texts, BLUE)
    return style(fig, "tokens in the vocabulary", "tokens a held-out document", legend=False)


def asked_table(found: Mapping[str, Mapping[str, int]]) -> Table:
    """How often the corpus states the facts of each split, and how often it asks for them (`stated_and_asked`)."""
    rows = [[split, n["facts"], f"{n['stated'] / n['facts']:.1f}", n["asked"]] for split, n in found.items()]
    return Table(("split", "facts", "stated, times each", "asked, times in all"), rows)
