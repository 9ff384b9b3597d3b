"""Figures of notebook 04, from what its experiments give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llama2lab.report.look import BLUE, ORANGE, style


def lengths_figure(eos: Mapping[str, Any]) -> go.Figure | None:
    """How long the answers of `eos_length` are, a panel for each of the two models."""
    titles = [f"{name} loss on &lt;/s&gt;" for name in ("with", "without")]
    fig = make_subplots(2, 1, shared_xaxes=True, shared_yaxes="all", vertical_spacing=0.14, subplot_titles=titles)
    for row, (name, colour) in enumerate((("with", BLUE), ("without", ORANGE)), 1):
        bins = {"start": 0, "end": eos["longest"] + 1, "size": 4}
        bars = go.Histogram(x=eos[name]["lengths"], xbins=bins, marker_color=colour, showlegend=False)
        fig.add_trace(bars, row=row, col=1)
        fig.update_yaxes(title=f"answers of {len(eos[name]['lengths'])}", row=row)
    fig.update_xaxes(title=f"tokens of the answer, at most {eos['longest']}", row=2)
    return style(fig, height=380, legend=False)
