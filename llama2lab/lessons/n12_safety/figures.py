"""Figures and tables of notebook 12, and what this run's figures say of each claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llama2lab.lab.finished import Finished
from llama2lab.lab.shown import Table, side, signed, told, verdicts
from llama2lab.lessons.n06_rewards.experiments import GATE, THRESHOLD
from llama2lab.lessons.n11_evaluation.figures import gap
from llama2lab.report.look import BLUE, ORANGE, RED, style
from llama2lab.report.series import add_rows, add_series, mark_line, rows_high
from llama2lab.report.summary import difference, figure_text, find, short_name


def share_chart(found: Sequence[dict[str, Any]]) -> go.Figure | None:
    """Claim 23's two sides: violations and refusals of harmless prompts by the share of refusals in the training rows;
    the open points have borderline demonstrations beside them."""
    fig = go.Figure()
    for metric, name, colour, symbol in (
        ("violation_rate", "unsafe prompts: complies", RED, "circle"),
        ("borderline_refusal_rate", "borderline prompts: refuses", ORANGE, "diamond"),
        ("false_refusal_rate", "plain prompts: refuses", BLUE, "square"),
    ):
        plain = [row for row in found if not row["contrast"]]
        add_series(fig, name, [100 * row["share"] for row in plain], [row[metric] for row in plain], colour, symbol)
        other, words = [row for row in found if row["contrast"]], f"{name}, borderline examples too"
        places, figures = [100 * row["share"] + 2 for row in other], [row[metric] for row in other]
        add_series(fig, words, places, figures, colour, f"{symbol}-open", mode="markers")
    fig.update_yaxes(rangemode="tozero", tickformat=".0%")
    return style(fig, "unsafe prompts with refusals, percent of the demonstrations", "share of answers", height=360)


def told_by_versions(lab: Finished, before: str = "sft", after: str = "rlhf-v5") -> Table:
    """How both errors of safety changed from one version to the other on held-out prompts, and what PPO did on its own
    training prompts from its first iteration to its last."""
    rows = []
    for metric, words in (
        ("violation_rate", "unsafe prompts: complies"),
        ("borderline_refusal_rate", "borderline prompts: refuses"),
        ("false_refusal_rate", "plain prompts: refuses"),
    ):
        a, b = find(lab.figures, before, metric), find(lab.figures, after, metric)
        if apart := difference(b, a):
            rows.append([words, figure_text(a), figure_text(b), side(apart, "more", "less", "cannot be told apart")])
    seen = [row["safety"] for row in lab.metrics(after).get("true_score_by_iteration") or [] if row.get("safety")]
    if seen:
        apart = difference(seen[-1], seen[0])
        said = side(apart, "more", "less", "cannot be told apart") if apart else ""
        words = "true safety on PPO's own unsafe training prompts, first and last iteration"
        rows.append([words, figure_text(seen[0]), figure_text(seen[-1]), said])
    return Table(("", short_name(before), short_name(after), "change"), rows)


def told_by_shares(found: Sequence[dict[str, Any]]) -> Table:
    """Claim 23 by this run's figures: from no refusals in the rows to the most."""
    plain = [row for row in found if not row["contrast"]]
    none, most = plain[0], plain[-1]
    return verdicts(
        {
            "violations: fewer with the most safety data": gap(none["violation_rate"], most["violation_rate"]),
            "refusals of borderline prompts: more with the most": gap(
                most["borderline_refusal_rate"], none["borderline_refusal_rate"]
            ),
        }
    )


def told_by_contrast(found: Sequence[dict[str, Any]]) -> Table:
    """What borderline examples beside the refusals do, at the largest share of them."""
    alone = [("refusals alone", row) for row in found if not row["contrast"]][-1:]
    both = [("borderline examples too", row) for row in found if row["contrast"]]
    names = ("borderline_refusal_rate", "violation_rate")
    rows = [[words, *(figure_text(row[name]) for name in names)] for words, row in (*alone, *both)]
    return Table(("the training rows hold", "refuses borderline", "complies with unsafe"), rows)


def preprompts_table(found: dict[str, Any]) -> Table:
    """What each preprompt does, and whether it changes the violations beyond chance, prompt by prompt."""
    names = ("violation_rate", "refused", "borderline_refusal_rate", "safety_score")
    rows = []
    for how, f in found.items():
        fewer = f.get("fewer") if how != "none" else None
        said = f"{signed(fewer)}: {side(fewer, 'fewer', 'more', 'cannot be told')}" if fewer else ""
        rows.append([how, *(figure_text(f[name]) for name in names), said])
    header = ("preprompt", "violations", "refuses unsafe", "refuses borderline", "mean safety reward, logit")
    return Table((*header, "fewer violations"), rows)


def distilled_more(found: dict[str, Any]) -> str:
    """Which of the two distilled models refuses more borderline prompts: "a", "b", or "c" for neither beyond chance."""
    apart = gap(found["all"]["borderline_refusal_rate"], found["chosen"]["borderline_refusal_rate"])
    return "c" if not told(apart) else "a" if apart["mean"] > 0 else "b"


def distillation_table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): the model before, and after learning all of the answers or the chosen ones."""
    shown = {
        "violation_rate": "complies with unsafe",
        "borderline_refusal_rate": "refuses borderline",
        "false_refusal_rate": "refuses plain",
        "helpfulness": "helpfulness",
        "safety": "true safety",
    }
    return ["", "before", "all learnt", "chosen by the reward"], [
        [words, *(figure_text(found[which][name]) for which in ("before", "all", "chosen"))]
        for name, words in shown.items()
    ]


def attacks_chart(found: dict[str, Any]) -> go.Figure | None:
    """Violations by what stands before the question, a row each."""
    fig = go.Figure()
    series = {short_name(stage): by for stage, by in found.items()}
    add_rows(fig, series, ((ORANGE, "diamond"), (BLUE, "circle")))
    fig.update_xaxes(rangemode="tozero", tickformat=".0%")
    rows = max((len(by) for by in found.values()), default=0)
    return style(fig, "violations on unsafe prompts, by the oracle", "before the question", height=rows_high(rows, 2))


def safety_judge_table(found: dict[str, Any], draws: int = 400) -> Table:
    """What the safety reward model sees of the harm that the oracle sees, on V5's answers to unsafe prompts."""
    safe, harm = np.array(found["safe"]), np.array(found["harm"])
    under = int((safe < THRESHOLD).sum())
    rows = [
        ["answers that comply, by the oracle", f"{int(harm.sum())} of {len(safe)}", ""],
        [f"answers under {THRESHOLD}", f"{under} of {len(safe)}; the lowest at {safe.min():.2f}", ""],
        [
            f"precision: under {THRESHOLD}, and complies",
            figure_text(found["precision"]) if under else "none is under",
            f"{GATE['precision']:.2f}",
        ],
        [f"recall: complies, and under {THRESHOLD}", figure_text(found["recall"]), f"{GATE['recall']:.2f}"],
    ]
    if harm.any() and not harm.all():
        rng = np.random.default_rng(0)
        bad, good = safe[harm], safe[~harm]
        resampled = [(rng.choice(bad, len(bad)), rng.choice(good, len(good))) for _ in range(draws)]
        apart = [float((b[:, None] < g).mean() + (b[:, None] == g).mean() / 2) for b, g in [(bad, good), *resampled]]
        low, high = np.quantile(apart[1:], (0.025, 0.975))
        words = "pairs in which the answer that complies scores lower (0.5: blind, 1: sees all)"
        rows.append([words, f"{apart[0]:.3f} [{low:.3f}, {high:.3f}]", ""])
    return Table(("the safety reward model on V5's answers", "here [95 %]", "the report"), rows)


def safety_chart(found: dict[str, Any]) -> go.Figure | None:
    """The safety reward model's probability of each answer to an unsafe prompt: below each other, each with its own
    count, those that comply by the oracle and those that do no harm."""
    fig = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.1)
    for row, (harm, words, colour) in enumerate(((False, "no harm", BLUE), (True, "comply", RED)), 1):
        some = [p for p, h in zip(found["safe"], found["harm"], strict=True) if h == harm]
        bins = {"start": 0, "end": 1.0001, "size": 0.05}
        fig.add_trace(go.Histogram(x=some, xbins=bins, marker_color=colour, showlegend=False), row=row, col=1)
        fig.update_yaxes(title=f"answers<br>({words}: {len(some)})", rangemode="tozero", row=row)
        mark_line(fig, THRESHOLD, f"the report's {THRESHOLD}" if row == 1 else "", axis="x", row=row, col=1)
    fig.update_xaxes(range=[0, 1])
    fig.update_xaxes(title="probability of being safe, by the safety reward model", row=2)
    return style(fig, height=420, legend=False)
