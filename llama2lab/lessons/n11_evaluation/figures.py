"""Figures and tables of notebook 11, and what this run's figures say of claim 25."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from llama2lab.engine import stats
from llama2lab.lab.finished import Finished
from llama2lab.lab.shown import Table, signed, told
from llama2lab.report.look import BLUE, GREY, ORANGE, TEXT, style
from llama2lab.report.series import add_series
from llama2lab.report.summary import difference, figure_text, find, short_name
from llama2lab.stages.evaluate import TIE

# Win, tie and loss in percent of the report's human evaluation of helpfulness (figure 1, section 3.4).
FIGURE_1 = (
    ("70B against ChatGPT-0301", (35.9, 31.5, 32.5)),
    ("70B against PaLM-Bison", (53.0, 24.6, 22.4)),
    ("7B against MPT-7b-chat", (61.1, 20.9, 18.0)),
)


def gap(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """a - b, with its interval, and seed by seed."""
    each = [x - y for x, y in zip(a.get("each", ()), b.get("each", ()), strict=True)]
    return {**(difference(a, b) or {}), **({"each": each} if each else {})}


def outcomes(lab: Finished, stage: str = "rlhf-v5", against: str = "sft") -> list[str]:
    """ "win", "tie" or "loss" of the kept answers to each helpful held-out prompt, by the oracle."""
    gaps = [a["score"] - b["score"] for a, b in lab.answers(stage, against) if a["kind"] == "helpful"]
    return ["win" if gap > TIE else "loss" if gap < -TIE else "tie" for gap in gaps]


def win_chart(lab: Finished, stages: Sequence[str] = ("rlhf-v1", "rlhf-v3", "rlhf-v4", "rlhf-v5")) -> go.Figure | None:
    """Wins, ties and losses of each version against SFT by the oracle, above the report's human evaluation."""
    rows = []
    for stage in stages:
        found = [find(lab.figures, stage, f"{what}_vs_sft") for what in ("wins", "ties", "losses")]
        rows.append((f"{short_name(stage)} against SFT", [100 * f["mean"] if f else 0.0 for f in found]))
    rows = [*((f"the report:<br>{name}", list(shares)) for name, shares in reversed(FIGURE_1)), *reversed(rows)]
    fig = go.Figure()
    for i, (name, colour) in enumerate((("win", BLUE), ("tie", GREY), ("loss", ORANGE))):
        x, y = [shares[i] for _, shares in rows], [label for label, _ in rows]
        bar = go.Bar(x=x, y=y, name=name, orientation="h", marker_color=colour)
        ink = "#ffffff" if name == "win" else "#111111"
        bar.update(texttemplate="%{x:.0f}", textposition="inside", insidetextfont_color=ink, insidetextanchor="middle")
        fig.add_trace(bar)
    fig.update_layout(barmode="stack", uniformtext={"minsize": TEXT, "mode": "hide"}, legend_traceorder="normal")
    fig.update_yaxes(automargin=True)
    return style(fig, "percent of the prompts", "who against whom", height=100 + 36 * len(rows))


def interval_by_n(
    outcomes: Sequence[str], ns: Sequence[int] = (10, 30, 100, 300, 900), seed: int = 0
) -> dict[str, Any]:
    """The share of points (a tie is half) of the first n outcomes in a shuffled order, with Wilson's interval."""
    shuffled = random.Random(seed).sample(list(outcomes), len(outcomes))
    found = {}
    for n in sorted({min(n, len(shuffled)) for n in ns}):
        share = sum({"win": 1.0, "tie": 0.5, "loss": 0.0}[o] for o in shuffled[:n]) / n
        low, high = stats.wilson(share, n)
        found[str(n)] = {"mean": share, "low": low, "high": high, "n": n}
    return found


def diversity_chart(found: dict[str, Any]) -> go.Figure | None:
    """Self-BLEU by temperature, as the report's figure 21."""
    fig = go.Figure()
    for kind, colour, symbol in (("factual", BLUE, "circle"), ("creative", ORANGE, "diamond")):
        for stage, dash in (("sft", "dot"), ("rlhf-v5", "solid")):
            add_series(
                fig, f"{kind}, {short_name(stage)}", found["temperatures"], found[stage][kind], colour, symbol, dash
            )
    return style(fig, "temperature", "Self-BLEU (1: all answers the same)", height=350)


def narrowing(found: dict[str, Any], before: str = "sft", after: str = "rlhf-v5", at: float = 0.9) -> dict[str, Any]:
    """How much Self-BLEU rose from one stage to the other, {"factual", "creative"}, at the temperature nearest `at`."""
    index = min(range(len(found["temperatures"])), key=lambda i: abs(found["temperatures"][i] - at))
    return {kind: gap(found[after][kind][index], found[before][kind][index]) for kind in ("factual", "creative")}


def narrower(found: dict[str, Any]) -> str:
    """Where it rose more: "factual", "creative", or "neither" where the two cannot be told apart."""
    rises = narrowing(found)
    apart = gap(rises["factual"], rises["creative"])
    return "neither" if not told(apart) else "factual" if apart["mean"] > 0 else "creative"


def narrowing_table(found: dict[str, Any], at: float = 0.9) -> Table:
    """How much Self-BLEU rose at a temperature, by kind."""
    rows = [[kind, signed(rise)] for kind, rise in narrowing(found, at=at).items()]
    return Table(("prompts", f"rise of Self-BLEU from SFT to V5 at T = {at:g} [95 %]"), rows)


def contents_table(points: Sequence[float], contents: Sequence[str]) -> Table:
    """What a win rate rests on where several prompts ask for one content."""
    ways = (("each prompt alone", len(points), ()), ("wordings of one content together", len(set(contents)), contents))
    independent = (len(points), stats.effective_n(points, contents))
    rows = [
        [words, n, f"{worth:.0f}", figure_text(stats.rate(points, groups))]
        for (words, n, groups), worth in zip(ways, independent, strict=True)
    ]
    return Table(("counted as", "groups", "independent prompts", "win rate [95 %]"), rows)
