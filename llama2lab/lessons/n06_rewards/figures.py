"""Figures and tables of notebook 06, from what its experiments give and from the run's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llama2lab.lab.shown import Table, drawn, side
from llama2lab.lessons.n06_rewards.experiments import GATE, TABLE_7, THRESHOLD
from llama2lab.report.look import BLUE, GREEN, ORANGE, RED, SKY, plain, style
from llama2lab.report.series import add_curve, add_series, mark_line
from llama2lab.report.summary import Results, figure_text, find


def training_curve(log: Sequence[dict[str, float]]) -> go.Figure | None:
    """Loss and accuracy on the batches of a training, a panel each."""
    fig = make_subplots(1, 2, horizontal_spacing=0.16)
    shown = (("loss", "loss with the margin, nats a pair", math.log(2), "knows nothing, no margin"),
             ("accuracy", "share of the batch that is right", 0.5, "a coin"))  # fmt: skip
    for column, ((key, words, level, says), color) in enumerate(zip(shown, (BLUE, ORANGE), strict=True), 1):
        add_curve(fig, words, list(log), "step", key, color, row=1, col=column)
        fig.update_yaxes(title=words, row=1, col=column)
        mark_line(fig, level, says, row=1, col=column)
    return style(fig, "step", height=320, legend=False)


def heads(results: Results, policies: dict[str, Any]) -> Table:
    """Our head beside the report's in the run: on people's pairs, on facts, and, as `heads_by_ppo` of notebook 08
    measures it, the policy that PPO makes with each; and which of the two is ahead, where that can be told."""
    stages = ("reward-helpfulness-v5", "reward-helpfulness-v5-linear")
    lines: dict[str, tuple[str, ...]] = {
        "right on held-out pairs": ("accuracy",),
        "right on 'significantly better'": ("accuracy_by_grade", "significantly"),
        "right fact before wrong": ("truth",),
    }
    ahead = ("ours", "the report's", "cannot be told")
    rows = []
    for words, path in lines.items():
        ours, theirs = (find(results, stage, *path) for stage in stages)
        apart = {"low": ours["low"] - theirs["high"], "high": ours["high"] - theirs["low"]} if ours and theirs else None
        rows.append([words, figure_text(ours), figure_text(theirs), side(apart, *ahead) if apart else "-"])
    [gap] = policies["claims"].values()
    told = [figure_text(policies["policies"][head]["helpfulness"]) for head in ("likelihood", "linear")]
    rows.append(["true helpfulness of its PPO policy", *told, side(gap, *ahead)])
    return Table(("helpfulness model", "with likelihood (ours)", "the report's head", "which is ahead"), rows)


def on_each_other(results: Results) -> Table:
    """The run's two models on their own and on the other's test pairs, beside Table 7."""
    keys = {"helpfulness": ("accuracy", "accuracy_on_other"), "safety": ("accuracy_on_other", "accuracy")}
    rows = []
    for kind, pair in keys.items():
        ours = (figure_text(find(results, f"reward-{kind}-v5", key)) for key in pair)
        rows.append([kind, *ours, *(f"{TABLE_7[kind][of]} %" for of in ("helpfulness", "safety"))])
    on = ("on helpfulness pairs", "on safety pairs")
    return Table(("model", *on, *(f"the report, {words}" for words in on)), rows)


def conflict_plane(points: Sequence[dict[str, Any]]) -> go.Figure | None:
    """Both scores of each answer, marked by what the oracle says of it; the text at the pointer."""
    fig = go.Figure()
    for words, color, symbol in (
        ("right answer", BLUE, "circle"),
        ("wrong answer", SKY, "circle-open"),
        ("refuses a harmless prompt", ORANGE, "diamond"),
        ("unsafe prompt, harmless answer", GREEN, "square"),
        ("complies with an unsafe prompt", RED, "x"),
    ):
        some = [p for p in points if p["verdict"] == words]
        if some:
            x, y = ([p[kind] for p in some] for kind in ("helpfulness", "safety"))
            marker = {"color": color, "symbol": symbol, "size": 8, "opacity": 0.75}
            hover = {"text": [plain(p["answer"], 90) for p in some], "hovertemplate": "%{text}<extra></extra>"}
            fig.add_trace(go.Scatter(x=x, y=y, mode="markers", name=words, marker=marker, **hover))
    mark_line(fig, math.log(THRESHOLD / (1 - THRESHOLD)), f"R<sub>s</sub> = {THRESHOLD}: below it safety judges")
    return style(fig, "helpfulness score (logit)", "safety score (logit)", height=420)


def gate_curve(gate: dict[str, Any]) -> go.Figure | None:
    """Precision and recall of "unsafe, since R_s is under the threshold", and the report's pair of figures at 0.15."""
    fig = go.Figure()
    places = [row["threshold"] for row in gate["curve"]]
    for key, color, symbol in (("precision", BLUE, "circle"), ("recall", ORANGE, "diamond")):
        add_series(fig, key, places, [row[key] if row[key]["n"] else None for row in gate["curve"]], color, symbol)
        fig.add_trace(
            go.Scatter(
                x=[THRESHOLD], y=[GATE[key]], mode="markers", name=f"the report's {key}", **drawn(color, "x", 12)
            )
        )
    return style(fig, "threshold on R<sub>s</sub>", "share of answers, precision and recall")


def gate_table(gate: dict[str, Any]) -> Table:
    """What the report's threshold does here."""
    rows = [
        ["unsafe answers", f"{gate['unsafe']} of {gate['answers']}", ""],
        ["precision of the threshold on them", figure_text(gate["at"]["precision"]), f"{GATE['precision']:.2f}"],
        ["recall", figure_text(gate["at"]["recall"]), f"{GATE['recall']:.2f}"],
        ["answers under the threshold, of all", figure_text(gate["under"]), ""],
    ]
    return Table((f"the gate at {THRESHOLD}", "here [95 %]", "the report"), rows)
