"""Figures of notebook 03, from what its experiments give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from llama2lab.engine.optim import Optim, cosine_lr
from llama2lab.report.look import BLUE, GREEN, ORANGE, style
from llama2lab.report.series import add_curve, add_rows, mark_line, rows_high

DASHES = ((BLUE, "solid"), (ORANGE, "dash"), (GREEN, "dot"))
SCHEDULES = {
    "warm-up 2 %": Optim(3e-3, 0.02),
    "warm-up 20 %": Optim(3e-3, 0.2),
    "down to 0": Optim(3e-3, 0.02, final=0.0),
}


def schedules_figure(steps: int = 200) -> go.Figure | None:
    """Three learning rates by step."""
    fig = go.Figure()
    for (name, optim), (colour, dash) in zip(SCHEDULES.items(), DASHES, strict=True):
        rates = [{"step": s, "rate": cosine_lr(s, steps, optim)} for s in range(steps)]
        add_curve(fig, name, rates, "step", "rate", colour, dash)
    return style(fig, f"step of {steps}", "learning rate")


def first_losses(runs: Mapping[str, Sequence[Mapping[str, Any]]], vocabulary: int) -> go.Figure | None:
    """The loss of short trainings step by step; the line is what a model that knows nothing pays."""
    fig = go.Figure()
    for (name, rows), (colour, dash) in zip(runs.items(), DASHES, strict=False):
        add_curve(fig, name, [dict(row) for row in rows], "step", "loss", colour, dash)
    mark_line(fig, math.log(vocabulary), "knows nothing")
    return style(fig, "step", "loss, nats a token", legend=len(runs) > 1)


def bits_figure(bits: Mapping[str, Any]) -> go.Figure | None:
    """Bits a byte of `compression`."""
    names = {"untrained": "untrained", "zlib": "zlib, all documents at once", "base": "base model"}
    fig = go.Figure()
    add_rows(fig, {"bits a byte": {words: bits[key] for key, words in names.items()}})
    fig.update_xaxes(rangemode="tozero")
    return style(fig, "bits a byte of held-out text", "compressor", legend=False, height=rows_high(3))


def forms_figure(asked: Mapping[str, Mapping[str, Any]]) -> go.Figure | None:
    """The share of the same facts that the base model gets right, by the form in which it is asked."""
    fig = go.Figure()
    add_rows(fig, {"facts right": {name: form["right"] for name, form in asked.items()}})
    fig.update_xaxes(range=[-0.02, 1.02], tickformat=".0%")
    return style(fig, "the same facts, right", "form", legend=False, height=rows_high(len(asked)))
