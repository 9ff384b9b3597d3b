"""Figures and tables of notebook 02, from what its experiments give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llama2lab.lab.shown import Table, add_line, side, signed
from llama2lab.lessons.n02_transformer.experiments import softmax_spread
from llama2lab.lessons.n02_transformer.sizes import size_in_words
from llama2lab.report.look import BLUE, GREEN, MARKS, ORANGE, SKY, errors, style
from llama2lab.report.series import add_curve, add_rows, add_series, mark_line, one_legend
from llama2lab.report.summary import figure_text

# The report's comparison (A.2.1): 30B models, 150B tokens each. It prints the rows; their means are worked out here.
TABLE_GQA = {
    "MHA": (71.0, 79.3, 48.2, 75.1, 71.2, 43.0, 12.4, 44.7, 28.0, 4.9, 7.9),
    "GQA": (69.4, 78.8, 48.6, 75.4, 72.1, 42.5, 14.0, 46.2, 26.9, 5.3, 7.9),
    "MQA": (70.6, 79.0, 47.9, 74.5, 71.6, 41.9, 14.5, 42.8, 26.5, 4.8, 7.3),
}
TASKS = ("BoolQ", "PIQA", "SIQA", "HellaSwag", "ARC-e", "ARC-c", "NQ", "TQA", "MMLU", "GSM8K", "HumanEval")
# Its comparison of contexts (A.2.1): trained on 150B tokens with 2k or 4k; first long tasks, then short ones.
TABLE_CONTEXT = (
    ("NarrativeQA, F1", 0.21, 17.26),
    ("Qasper, F1", 0.71, 18.52),
    ("QuALITY, accuracy", 26.1, 29.6),
    ("ContractNLI, exact", 11.76, 16.33),
    ("HellaSwag, 0 shots", 75.1, 74.8),
    ("NQ, 64 shots", 25.5, 25.5),
    ("TQA, 64 shots", 53.7, 52.2),
    ("GSM8K, 8 shots", 4.9, 6.5),
    ("HumanEval, 0 shots", 7.9, 7.3),
)


def spread_figure(which: str = "not divided", **settings: Any) -> go.Figure | None:
    """One half of `softmax_spread`: attention weight by rank, for each head_dim, with its interval."""
    fig = go.Figure()
    for (size, by_rank), colour, symbol in zip(
        softmax_spread(**settings)[which].items(), (SKY, ORANGE, BLUE), ("circle", "diamond", "square"), strict=False
    ):
        add_series(fig, f"head_dim {size}", list(range(1, len(by_rank) + 1)), by_rank, colour, symbol)
    fig.update_yaxes(range=[0, 1])
    return style(fig, "rank of the key, the most looked at first", f"attention weight, scores {which}")


def quality_kept(gap: dict[str, Any], margin: float = 0.05) -> str:
    """What a difference of loss, in nats, says about 'as good as': equal means that the whole interval lies within the
    margin, which is ours."""
    if len(gap["each"]) < 2:
        return "one seed; another may differ by more"
    if -margin < gap["low"] and gap["high"] < margin:
        return f"equal within {margin} nats"
    return side(gap, "worse", "better", f"cannot be told: the interval is wider than {margin} nats")


def quality_table(result: dict[str, Any]) -> Table:
    """The differences of loss document by document, and what they say."""
    rows = [
        [f"{kind} less MHA", signed(gap), f"{gap['n']:,}", len(gap["each"]), quality_kept(gap)]
        for kind, gap in result["gaps"].items()
    ]
    return Table(("loss, nats a token", "difference [95 %]", "documents", "seeds", "what it says"), rows)


def loss_curves(result: dict[str, Any], smooth: int = 8) -> go.Figure | None:
    """The training loss of the three variants against tokens, each point the mean of some steps."""
    fig = go.Figure()
    for row, (colour, dash) in zip(result["rows"], ((BLUE, "solid"), (ORANGE, "dash"), (GREEN, "dot")), strict=True):
        each = row["tokens"] / len(row["curve"]) / 1000
        points = [
            {"t": (i + smooth) * each, "loss": float(np.mean(row["curve"][i : i + smooth]))}
            for i in range(0, len(row["curve"]) - smooth + 1, smooth)
        ]
        add_curve(fig, f"{row['kind']}, {row['n_kv_heads']} KV heads", points, "t", "loss", colour, dash)
    return style(fig, "thousand tokens", "training loss, nats a token")


def gap_figure(result: dict[str, Any], margin: float = 0.05) -> go.Figure | None:
    """How much higher the loss is than with own heads, document by document, and the margin of `quality_kept`."""
    fig = go.Figure()
    add_rows(fig, {"loss less that of MHA": {f"{kind} less MHA": gap for kind, gap in result["gaps"].items()}})
    for at, words in ((margin, f"worse from {margin}"), (0.0, "as good"), (-margin, f"better from {-margin}")):
        mark_line(fig, at, words, axis="x")
    return style(fig, "difference of loss, nats a token", "KV heads", legend=False, height=260)


def gqa_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The three variants as rows: KV heads, FFN, parameters, bytes of cache a token, loss, and the report's mean."""
    report = means(TABLE_GQA)
    found: list[tuple[str, ...]] = []
    for row in result["rows"]:
        sizes = (str(row["n_kv_heads"]), str(row["ffn_dim"]), f"{row['parameters']:,}", f"{row['cache']:,}")
        found.append((row["kind"], *sizes, figure_text(row["loss"]), f"{report[row['kind']]:.2f}"))
    return found


def speed_figure(rows: Sequence[dict[str, Any]]) -> go.Figure | None:
    """New tokens a second against sequences at once, a panel for each length of the context."""
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    fig = make_subplots(
        1, len(contexts), subplot_titles=[f"{c:,} tokens before" for c in contexts], horizontal_spacing=0.2
    )
    for kind, (colour, symbol) in zip(("MHA", "GQA", "MQA"), MARKS, strict=False):
        for column, context in enumerate(contexts, 1):
            some = [r for r in rows if r["kind"] == kind and r["context"] == context]
            speeds = [r["tokens_per_second"] for r in some]
            x, y = [r["batch"] for r in some], [f["mean"] for f in speeds]
            add_line(fig, kind, x, y, colour, symbol, error_y=errors(speeds), row=1, col=column)
    one_legend(fig)
    fig.update_xaxes(type="log", tickvals=list(dict.fromkeys(row["batch"] for row in rows)), title="sequences at once")
    fig.update_yaxes(rangemode="tozero", title="new tokens a second")
    return style(fig, height=350)


def gain_text(gain: Mapping[str, float]) -> str:
    return f"{gain['mean']:.2f} [{gain['low']:.2f}, {gain['high']:.2f}]"


def speed_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """For each context and batch: the cache of MHA, its new tokens a second, and how many times as many the others
    write."""
    found = []
    for context, batch in dict.fromkeys((r["context"], r["batch"]) for r in rows):
        of = {r["kind"]: r for r in rows if (r["context"], r["batch"]) == (context, batch)}
        mha, gains = of["MHA"], (gain_text(of[kind]["gain"]) for kind in ("GQA", "MQA"))
        speed = f"{mha['tokens_per_second']['mean']:,.0f}"
        found.append((f"{context:,}", str(batch), size_in_words(mha["cache"]), speed, *gains))
    return found


def speed_verdict(rows: Sequence[dict[str, Any]]) -> Table:
    """Whether sharing gains more where the cache is large, by the figures alone."""
    caches = sorted((r["cache"], r["context"], r["batch"]) for r in rows if r["kind"] == "MHA")
    body = []
    for kind in ("GQA", "MQA"):
        small, large = (
            next(r["gain"] for r in rows if (r["kind"], r["context"], r["batch"]) == (kind, *place[1:]))
            for place in (caches[0], caches[-1])
        )
        faster = "faster" if large["low"] > 1 else "slower" if large["high"] < 1 else "cannot be told"
        more = (
            "more, as the account says"
            if large["low"] > small["high"]
            else "less, against the account"
            if large["high"] < small["low"]
            else "cannot be told: the intervals overlap"
        )
        body.append([kind, gain_text(small), gain_text(large), faster, more])
    header = ("times as fast as MHA", "smallest cache [95 %]", "largest cache [95 %]", "with the largest")
    return Table((*header, "gain against the smallest"), body)


def busy_words(rows: Sequence[dict[str, Any]]) -> str:
    """Says so where the machine had other work: then times mean little."""
    apart = max(r["ms"]["high"] / r["ms"]["low"] for r in rows)
    if apart <= 2:
        return ""
    return (
        f"This machine was busy with other work: times of one and the same setting lie up to {apart:.0f} times apart. "
        "Delete decode_speed-* in runs/lab and run this again when it is quiet."
    )


def means(table: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: sum(row) / len(row) for name, row in table.items()}
