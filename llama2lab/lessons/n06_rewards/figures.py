"""Figures and tables of notebook 06, from what its experiments give and from the run's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from llama2lab.lab.shown import drawn, side
from llama2lab.lessons.n06_rewards.experiments import TABLE_7, THRESHOLD
from llama2lab.report.look import BLUE, GREEN, ORANGE, RED, SKY, plain, style
from llama2lab.report.plots import add_curve, add_series, mark_line
from llama2lab.report.summary import Results, figure_text, find, table


def training_curve(log: Sequence[dict[str, float]]) -> go.Figure | None:
    """Loss and accuracy on the batches of a training."""
    fig = go.Figure()
    add_curve(fig, "loss with the margin, nats a pair", list(log), "step", "loss", BLUE)
    add_curve(fig, "share of the batch that is right", list(log), "step", "accuracy", ORANGE, "dash")
    mark_line(fig, math.log(2), "the loss of a model that knows nothing, without margin")
    return style(fig, "step", "loss in nats; share", height=320)


def heads(results: Results, policies: dict[str, Any]) -> str:
    """Our head beside the report's in the run: on people's pairs, on facts, and, as `heads_by_ppo` of notebook 08
    measures it, the policy that PPO makes with each."""
    stages = {"with likelihood (ours)": "reward-helpfulness-v5", "the report's head": "reward-helpfulness-v5-linear"}
    lines: dict[str, tuple[str, ...]] = {
        "held-out pairs": ("accuracy",),
        "'significantly better'": ("accuracy_by_grade", "significantly"),
        "right fact before wrong": ("truth",),
    }
    rows = [[words, *(figure_text(find(results, s, *path)) for s in stages.values())] for words, path in lines.items()]
    told = [figure_text(policies["policies"][head]["helpfulness"]) for head in ("likelihood", "linear")]
    text = table(("helpfulness model", *stages), [*rows, ["its PPO policy, by the oracle", *told]])
    unclear, ahead = "this run cannot tell them apart", ("our head is ahead", "the report's head is ahead")
    ours, theirs = (find(results, stage, "truth") for stage in stages.values())
    if ours and theirs:
        apart = {"low": ours["low"] - theirs["high"], "high": ours["high"] - theirs["low"]}
        text += f"\nFacts: {side(apart, *ahead, f'the intervals overlap, {unclear}')}."
    [gap] = policies["claims"].values()
    return text + f"\nPPO policies: {side(gap, *ahead, unclear)}."


def on_each_other(results: Results) -> str:
    """The run's two models on their own and on the other's test pairs, beside Table 7."""
    keys = {"helpfulness": ("accuracy", "accuracy_on_other"), "safety": ("accuracy_on_other", "accuracy")}
    rows = []
    for kind, pair in keys.items():
        ours = (figure_text(find(results, f"reward-{kind}-v5", key)) for key in pair)
        rows.append([kind, *ours, f"{TABLE_7[kind]['helpfulness']}, {TABLE_7[kind]['safety']}"])
    return table(("the run's model", "on helpfulness pairs", "on safety pairs", "table 7, percent"), rows)


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
    mark_line(fig, math.log(THRESHOLD / (1 - THRESHOLD)), f"R_s = {THRESHOLD}: below it safety judges")
    return style(fig, "helpfulness score (logit)", "safety score (logit)", height=480)


def gate_curve(gate: dict[str, Any]) -> go.Figure | None:
    """Precision and recall of "unsafe, since R_s is under the threshold", and the report's pair of figures at 0.15."""
    fig = go.Figure()
    places = [row["threshold"] for row in gate["curve"]]
    for key, color, symbol, report in (("precision", BLUE, "circle", 0.89), ("recall", ORANGE, "diamond", 0.55)):
        add_series(fig, key, places, [row[key] if row[key]["n"] else None for row in gate["curve"]], color, symbol)
        fig.add_trace(
            go.Scatter(x=[THRESHOLD], y=[report], mode="markers", name=f"the report's {key}", **drawn(color, "x", 12))
        )
    return style(fig, "threshold on R_s", "share")


def gate_words(gate: dict[str, Any]) -> str:
    """What the report's threshold does here."""
    return (
        f"{gate['unsafe']} of {gate['answers']} answers are unsafe. At {THRESHOLD}: precision "
        f"{figure_text(gate['at']['precision'])},\nrecall {figure_text(gate['at']['recall'])}; R_s is under it in "
        f"{figure_text(gate['under'])} of all answers."
    )


def real_pairs(runs: Sequence[Results]) -> str:
    """The reward models of runs on real pairs, on held-out ones."""
    rows = [
        [stage, *(figure_text(find(one, stage, key)) for key in ("accuracy", "accuracy_on_other", "longer_is_chosen"))]
        for one in runs
        for stage in ("reward-helpfulness-v1", "reward-safety-v1")
        if stage in one["stages"]
    ]
    if not rows:
        return (
            "No finished run on real pairs was found in runs/; make one with: llama2lab run --recipe "
            "data/recipes/real.yaml --data DIR"
        )
    return table(("model", "own pairs", "the other's", "length alone"), rows)
