"""Figures of notebook 07, and what its figures say of the claims."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llama2lab.engine.stats import Figure
from llama2lab.lab.shown import Table, drawn, side, signed
from llama2lab.report.look import BLUE, ORANGE, errors, style
from llama2lab.report.series import mark_line, one_legend
from llama2lab.report.summary import figure_text

FIGURE_8 = (1.2, 1.3)  # the report: best temperature of the RLHF model with 10 to 100 samples (Figure 8)


def gain_words(gain: dict[str, Figure]) -> str:
    """Whether the best of K rose and the median stayed, from the figures alone."""
    rose = "rises" if gain["max"]["low"] > 0 else "cannot be told to rise"
    stayed = side(gain["median"], "moves too", "moves too", "cannot be told to move")
    return f"the best {rose}: {signed(gain['max'], 2)}; the median {stayed}: {signed(gain['median'], 2)}"


def temperature_words(gap: Figure) -> str:
    """Whether a best temperature moved, from the figures alone."""
    return side(gap, "it moves up", "it moves down", "no move can be told: the interval reaches 0")


def models_figure(result: dict[str, Any]) -> go.Figure | None:
    """The reward models by accuracy, on annotators' labels and on the truth, and by the worth of what they pick."""
    panels = (("accuracy", "on annotators' labels"), ("truth", "on the truth"))
    fig = make_subplots(1, 2, shared_yaxes=True, subplot_titles=[words for _, words in panels], horizontal_spacing=0.06)
    for head, color, symbol, words in (
        ("likelihood", BLUE, "circle", "with likelihood (ours)"),
        ("linear", ORANGE, "diamond", "the report's head"),
    ):
        some = [m for m in result["models"] if m["head"] == head]
        for column, (key, _) in enumerate(panels, 1):
            x, y, thin = [m[key] for m in some], [m["pick"] for m in some], {"thickness": 0.7, "width": 0}
            points = go.Scatter(x=[f["mean"] for f in x], y=[f["mean"] for f in y], mode="markers", name=words)
            points.update(drawn(color, symbol, 10), error_x={**errors(x), **thin}, error_y={**errors(y), **thin})
            hover = "%{text}: accuracy %{x:.3f}, worth %{y:.3f}<extra></extra>"
            points.update(text=[m["name"] for m in some], hovertemplate=hover)
            fig.add_trace(points, 1, column)
    one_legend(fig)
    mark_line(fig, result["one"]["mean"], "a single answer")
    mark_line(fig, result["ceiling"]["mean"], "the truly best")
    fig.update_yaxes(title=f"true helpfulness of the pick among {result['k']}", row=1, col=1)
    return style(fig, "accuracy on held-out pairs", height=400)


def temperature_table(gaps: dict[str, Figure]) -> Table:
    """How far the best temperature moved, and whether that can be told."""
    rows = [[words, signed(gap, 1), temperature_words(gap)] for words, gap in gaps.items()]
    return Table(("best temperature", "difference [95 %]", "what it says"), rows)


def correlation_table(result: dict[str, Any]) -> Table:
    """How strongly each accuracy goes with the worth of the pick, over the reward models."""
    rows = [
        [words, figure_text(r), r["n"], side(r, "as the report says", "against what the report says", "cannot be told")]
        for words, r in result["correlation"].items()
    ]
    return Table(("", "correlation [95 %]", "reward models", "what it says"), rows)
