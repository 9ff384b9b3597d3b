"""Figures of a run, as plain functions: results in, a plotly figure out, or None where the run has not what it shows.

`results` is what RUN/results.json holds, of one run or of several pooled by `summary.pool`; then the single runs are
the faint points. Lines join what lies on a scale, a round or a number of tokens; kinds of things (grades, skills,
versions) are rows of points with their intervals (`series.add_rows`). The look is that of `look.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llama2lab.engine.scale import GRADES
from llama2lab.report.look import BLUE, GREEN, GREY, MARKS, ORANGE, PINK, RED, SKY, errors, style
from llama2lab.report.series import add_curve, add_rows, add_series, faint, mark_line, one_legend, reported, rows_high
from llama2lab.report.summary import Results, chat_stages, find, last_version, metrics, short_name

TURNS = ("1", "2", "4", "6", "10", "20")
VERSIONS = ("sft", "rlhf-v1", "rlhf-v2", "rlhf-v3", "gatt", "rlhf-v4", "rlhf-v5")
# Llama 2 report, Table 8 (percent correct by grade, then overall) and Table 30 (percent recalled by turn).
TABLE_8 = {"helpfulness": (80.7, 67.5, 60.9, 54.7, 63.2), "safety": (94.3, 76.3, 65.7, 55.3, 64.5)}
REPORTED = "the report's Table 8"
TABLE_30 = {"without": {"2": 100, "4": 10, "6": 0, "20": 0}, "with": {"2": 100, "4": 100, "6": 100, "20": 100}}


def pretraining_loss(results: Results) -> go.Figure | None:
    """Loss of pretraining against tokens seen."""
    rows = metrics(results, "base").get("loss") or []
    if not rows:
        return None
    fig = go.Figure()
    total, steps = metrics(results, "base").get("tokens"), rows[-1].get("step")
    if total and steps:  # steps say little to a reader; tokens compare
        rows = [{**row, "step": row["step"] * total / steps / 1e6} for row in rows]
    add_curve(fig, "base", rows, "step", "loss", BLUE)
    return style(fig, "million tokens" if total else "step", "loss, nats a token", legend=False)


def finetuning_loss(results: Results) -> go.Figure | None:
    """Loss of supervised fine-tuning, on answers' tokens."""
    fig = go.Figure()
    for stage, name, color, dash in (
        ("sft", "few clean examples", BLUE, "solid"),
        ("sft-noisy", "many noisy examples", ORANGE, "dash"),
    ):
        add_curve(fig, name, metrics(results, stage).get("loss") or [], "step", "loss", color, dash)
    return style(fig, "step", "loss, nats an answer's token")


def clean_against_noisy(results: Results) -> go.Figure | None:
    """Few clean against many noisy demonstrations (the report: 'Quality Is All You Need'), a panel for each measure."""
    shown = {
        "helpfulness": "true helpfulness,<br>-3 to 3",
        "correct": "right answers,<br>share",
        "violation_rate": "complies with<br>harm, share",
    }
    if not find(results, "sft-noisy", "helpfulness") or not find(results, "sft", "helpfulness"):
        return None
    fig = make_subplots(1, len(shown), shared_yaxes=True, horizontal_spacing=0.06)
    for column, (metric, words) in enumerate(shown.items(), 1):
        by = {}
        for stage in ("sft", "sft-noisy"):
            n = metrics(results, stage).get("examples")
            name = f"{round(n):,} {'clean' if stage == 'sft' else 'noisy'}" if n else short_name(stage)
            by[name] = find(results, stage, metric)
        add_rows(fig, {metric: by}, row=1, col=column)
        fig.update_xaxes(title=words, nticks=5, col=column)
    fig.update_yaxes(title="examples", col=1)
    return style(fig, height=260, legend=False, below=70)


def accuracy_by_grade(results: Results) -> go.Figure | None:
    """Reward accuracy by how clear the preference was, beside the report's Table 8."""
    last = last_version(results)
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.05)
    looks = {
        "with likelihood (ours)": MARKS[0],
        "the report's head": MARKS[1],
        "model": MARKS[1],
        REPORTED: (GREY, "x"),
    }
    for column, kind in ((1, "helpfulness"), (2, "safety")):
        series: dict[str, dict[str, Any]] = {}
        for stage in (f"reward-{kind}-v{last}", f"reward-{kind}", f"reward-{kind}-v{last}-linear"):
            by = {g: find(results, stage, "accuracy_by_grade", g) for g in GRADES}
            if any(by.values()):
                series[head_name(results, stage)] = by
        if series:
            percent = TABLE_8[kind][: len(GRADES)]  # the last is the average
            series[REPORTED] = {g: x / 100 for g, x in zip(GRADES, percent, strict=True)}
            add_rows(fig, series, [looks[name] for name in series], row=1, col=column)
        fig.update_xaxes(title=f"accuracy of the<br>{kind} model", row=1, col=column)
    one_legend(fig)
    mark_line(fig, 0.5, "chance", axis="x")
    fig.update_xaxes(range=[0.4, 1.02])
    fig.update_yaxes(title="how much better the chosen answer is", row=1, col=1)
    return style(fig, height=380, below=70)


def head_name(results: Results, stage: str) -> str:
    head = metrics(results, stage).get("head")
    return {"linear": "the report's head", "likelihood": "with likelihood (ours)"}.get(str(head), "model")


def accuracy_by_round(results: Results) -> go.Figure | None:
    """Reward accuracy as preferences accumulate over the rounds, each on held-out pairs of all rounds so far."""
    fig = go.Figure()
    for kind, color, symbol in (("helpfulness", BLUE, "circle"), ("safety", ORANGE, "diamond")):
        rounds = [v for v in range(1, 6) if find(results, f"reward-{kind}-v{v}", "accuracy")]
        for words, path, dash in (
            ("overall", ("accuracy",), "solid"),
            ("'significantly'", ("accuracy_by_grade", "significantly"), "dot"),
        ):
            figures = [find(results, f"reward-{kind}-v{v}", *path) for v in rounds]
            add_series(fig, f"{kind}, {words}", rounds, figures, color, symbol, dash)
    mark_line(fig, 0.5, "chance")
    fig.update_xaxes(tickvals=list(range(1, 6)), range=[0.8, 5.2])
    return style(fig, "round", "accuracy on held-out pairs", height=340)


def calibration(results: Results) -> go.Figure | None:
    """How often the reward models are right against how sure they are."""
    last = last_version(results)
    fig = go.Figure()
    shown = (
        (f"reward-helpfulness-v{last}", BLUE, "circle"),
        (f"reward-helpfulness-v{last}-linear", ORANGE, "diamond"),
        (f"reward-safety-v{last}", GREEN, "square"),
        ("reward-helpfulness", BLUE, "circle"),
        ("reward-safety", GREEN, "square"),
    )
    for stage, color, symbol in shown:
        rows = metrics(results, stage).get("calibration") or []
        if rows:
            fig.add_trace(
                go.Scatter(
                    x=[r["predicted"] for r in rows],
                    y=[r["real"] for r in rows],
                    name=f"{'safety' if 'safety' in stage else 'helpfulness'}, {head_name(results, stage)}",
                    mode="lines+markers",
                    marker={"color": color, "symbol": symbol, "size": 9},
                    line={"color": color},
                )
            )
    if not fig.data:
        return None
    line = {"color": GREY, "dash": "dot"}
    fig.add_trace(go.Scatter(x=[0.5, 1], y=[0.5, 1], mode="lines", line=line, name="perfect", hoverinfo="skip"))
    return style(fig, "how sure the model is (mean predicted probability)", "how often it is right")


def best_of_k(results: Results) -> go.Figure | None:
    """The best of K by the reward: the reward's own view (the report's Figure 7), and the truth."""
    heads = [(k, v) for k, v in metrics(results, "best-of-k").items() if isinstance(v, dict) and "truth" in v]
    curves = [(f"V{v}", metrics(results, f"samples-v{v}").get("curve") or []) for v in range(1, 5)]
    if not heads and not any(rows for _, rows in curves):
        return None
    titles = ("by the reward (training prompts)", "by the truth (held-out prompts)")
    fig = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12)
    for (name, rows), color in zip(curves, (SKY, BLUE, GREEN, PINK), strict=False):
        add_curve(fig, f"{name}: best", rows, "k", "max", color, row=1, col=1)
        add_curve(fig, f"{name}: median", rows, "k", "median", color, "dot", row=1, col=1)
    for number, (head, values) in enumerate(heads):
        rows = values["truth"]
        k = [row["k"] for row in rows]
        color, symbol = (BLUE, "circle") if head == "likelihood" else (ORANGE, "diamond")
        name = {"linear": "picked by the report's head", "likelihood": "picked with likelihood"}.get(head, head)
        add_series(fig, name, k, [row["pick"] for row in rows], color, symbol, row=1, col=2)
        if number == 0:
            best = [row["ceiling"] for row in rows]
            add_series(fig, "the truly best of the K", k, best, GREY, "x", "dot", row=1, col=2)
    fig.update_xaxes(type="log", tickvals=[1, 2, 4, 8, 16])
    fig.update_yaxes(title="logit of the reward", row=1, col=1)
    fig.update_yaxes(title="true helpfulness", row=1, col=2)
    return style(fig, "K answers a prompt", height=380)


def ppo_curves(results: Results) -> go.Figure | None:
    """PPO, iteration by iteration: what it optimises, what that is truly worth, and what it does to the policy."""
    panels = (
        ("score", "reward", "logit"),
        ("truth", "true helpfulness", "-3 to 3"),
        ("kl", "KL to the start", "nats an answer"),
        ("clipfrac", "clipped ratios", "share"),
        ("entropy", "entropy of the policy", "nats a token"),
        ("length", "length of an answer", "tokens"),
    )
    shown = (("rlhf-v5", BLUE, "solid"), ("rlhf-v2", BLUE, "solid"))
    runs = [(s, c, d) for s, c, d in shown if metrics(results, s).get("log")]
    if not runs:
        return None
    titles = [words for _, words, _ in panels]
    fig = make_subplots(3, 2, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.09, horizontal_spacing=0.16)
    for stage, color, dash in runs:
        log, truth = metrics(results, stage)["log"], metrics(results, stage).get("true_score_by_iteration") or []
        true = [{"truth": row["helpfulness"]["mean"]} for row in truth]
        for n, (key, _, unit) in enumerate(panels):
            rows = [{"i": i, **row} for i, row in enumerate(true if key == "truth" else log, 1)]
            place = {"row": n // 2 + 1, "col": n % 2 + 1}
            add_curve(fig, short_name(stage), rows, "i", key, color, dash, legend=n == 0, **place)
            fig.update_yaxes(title=unit, **place)
    fig.update_xaxes(title="iteration", row=3)
    return style(fig, height=640, legend=len(runs) > 1)


def versions_plane(results: Results) -> go.Figure | None:
    """The versions on the plane of true helpfulness and true safety; the report's Figure 11 has reward models judge."""
    path = [s for s in VERSIONS if find(results, s, "helpfulness") and find(results, s, "safety")]
    if len(path) < 2:
        return None
    fig = go.Figure()
    others = [s for s in chat_stages(results) if s not in path and s != "sft-noisy" and find(results, s, "safety")]
    shown = {s: [results["stages"][s]["metrics"][of] for of in ("helpfulness", "safety")] for s in (*path, *others)}
    sides = dict(zip(shown, _sides(shown), strict=True))
    for stages, name, color, symbol, mode in (
        (path, "the recipe", BLUE, "circle", "lines+markers+text"),
        (others, "for comparison", ORANGE, "diamond-open", "markers+text"),
    ):
        x = [results["stages"][s]["metrics"]["helpfulness"] for s in stages]
        y = [results["stages"][s]["metrics"]["safety"] for s in stages]
        if stages:
            pairs = (zip(f.get("each", ()), g.get("each", ()), strict=True) for f, g in zip(x, y, strict=True))
            fig.add_trace(faint([seed for pair in pairs for seed in pair], color))
            fig.add_trace(
                go.Scatter(
                    x=[f["mean"] for f in x],
                    y=[g["mean"] for g in y],
                    error_x=errors(x),
                    error_y=errors(y),
                    mode=mode,
                    name=name,
                    text=[short_name(s) for s in stages],
                    textposition=[sides[s] for s in stages],
                    cliponaxis=False,
                    line={"color": color, "width": 1},
                    marker={"color": color, "size": 10, "symbol": symbol},
                    hovertemplate="%{text}: %{x:.3f}, %{y:.3f}<extra></extra>",
                )
            )
    return style(fig, "true helpfulness", "true safety on unsafe prompts", height=420)


SIDES = {  # where a name may stand beside its point: the first of those that lie on the fewest others is taken
    f"{vertical} {across}": (dx, dy)
    for vertical, dy in (("top", 1), ("bottom", -1))
    for across, dx in (("left", -1), ("right", 1), ("center", 0))
} | {"middle right": (1, 0), "middle left": (-1, 0)}


def _sides(points: Mapping[str, Sequence[Mapping[str, Any]]], wide: int = 440, high: int = 300) -> list[str]:
    """The side of each named point, (x, y) as figures, on which its name lies least on other points and on names placed
    before."""
    scales = [
        (min(p[i]["low"] for p in points.values()), max(p[i]["high"] for p in points.values()), px)
        for i, px in ((0, wide), (1, high))
    ]
    at = {
        name: tuple((f["mean"] - low) / ((top - low) or 1) * px for f, (low, top, px) in zip(p, scales, strict=True))
        for name, p in points.items()
    }
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in at.values()]
    chosen = []
    for name, (x, y) in at.items():
        half = 4 * len(short_name(name))

        def box(
            side: tuple[int, int], x: float = x, y: float = y, half: int = half
        ) -> tuple[float, float, float, float]:
            mid, level = x + side[0] * (half + 8), y + side[1] * 15
            return mid - half, level - 8, mid + half, level + 8

        def covered(side: str) -> float:
            a, b, c, d = box(SIDES[side])
            shared = ((min(c, g) - max(a, e), min(d, h) - max(b, f)) for e, f, g, h in taken)
            return sum(w * h for w, h in shared if w > 0 and h > 0)

        chosen.append(min(SIDES, key=covered))
        taken.append(box(SIDES[chosen[-1]]))
    return chosen


def gatt_by_turn(results: Results) -> go.Figure | None:
    """How many answers still keep an instruction that was given once, by turn, beside the report's Table 30."""
    fig = go.Figure()
    for stage, name, color, symbol in (
        ("gatt", "with Ghost Attention", BLUE, "circle"),
        ("rlhf-v5", "V5, two versions later", GREEN, "square"),
        ("rlhf-v3", "without (V3)", ORANGE, "diamond"),
    ):
        kept = {int(t): find(results, stage, "retention", t) for t in TURNS}
        add_series(fig, name, list(kept), list(kept.values()), color, symbol)
    if not fig.data:
        return None
    for key, name, symbol in (("with", "the report, with", "x"), ("without", "the report, without", "cross")):
        turns, shares = map(int, TABLE_30[key]), (percent / 100 for percent in TABLE_30[key].values())
        fig.add_trace(reported(list(turns), list(shares), name, symbol, width=1))
    fig.update_xaxes(tickvals=[int(t) for t in TURNS])
    fig.update_yaxes(range=[-0.05, 1.08])
    return style(fig, "turn of the dialogue", "answers that keep the instruction", height=360)


def violations_and_refusals(results: Results) -> go.Figure | None:
    """Too little safety and too much of it, version by version."""
    stages = [s for s in VERSIONS if find(results, s, "violation_rate")]
    if not stages:
        return None
    fig = go.Figure()
    shown = {
        "violation_rate": "unsafe prompts: complies",
        "borderline_refusal_rate": "borderline prompts: refuses",
        "false_refusal_rate": "safe prompts: refuses",
    }
    series = {words: {short_name(s): find(results, s, metric) for s in stages} for metric, words in shown.items()}
    add_rows(fig, series, ((RED, "circle"), (ORANGE, "diamond"), (BLUE, "square")))
    mark_line(fig, 0.05, "5 %", axis="x")
    fig.update_xaxes(rangemode="tozero", tickformat=".0%")
    return style(fig, "share of answers", "version", height=rows_high(len(stages), len(series)))


def skills(results: Results) -> go.Figure | None:
    """Correct answers by skill, SFT against V5; the skill that gained most is at the top."""
    before, after = (metrics(results, s).get("correct_by_skill") or {} for s in ("sft", "rlhf-v5"))
    names = [s for s in before if s in after and before[s]["n"] and after[s]["n"]]
    if not names:
        return None
    names.sort(key=lambda s: before[s]["mean"] - after[s]["mean"])
    fig = go.Figure()
    series = {name: {s.replace("_", " "): by[s] for s in names} for name, by in (("SFT", before), ("V5", after))}
    add_rows(fig, series, ((ORANGE, "diamond"), (BLUE, "circle")))
    fig.update_xaxes(range=[-0.02, 1.02], tickformat=".0%")
    return style(fig, "share of correct answers", "skill", height=rows_high(len(names), 2))
