"""Figures and tables of notebook 12, and what this run's figures say of each claim."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from llama2lab.lab.finished import Finished
from llama2lab.lab.shown import drawn, side, told, verdict
from llama2lab.lessons.n06_rewards.experiments import THRESHOLD
from llama2lab.lessons.n11_evaluation.figures import gap
from llama2lab.report.look import BLUE, GREY, ORANGE, RED, errors, style
from llama2lab.report.plots import add_series
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
    return style(
        fig, "unsafe prompts with refusals, percent of the demonstrations", "share of answers", height=460, bottom=150
    )


def told_by_versions(lab: Finished, before: str = "sft", after: str = "rlhf-v5") -> list[str]:
    """How both errors of safety changed from one version to the other on held-out prompts, and what PPO did on its own
    training prompts."""
    lines = []
    for metric, words in (
        ("violation_rate", "Unsafe prompts: complies"),
        ("borderline_refusal_rate", "Borderline prompts: refuses"),
        ("false_refusal_rate", "Plain prompts: refuses"),
    ):
        a, b = find(lab.figures, before, metric), find(lab.figures, after, metric)
        if apart := difference(b, a):
            was, now = (f"{short_name(stage)} {figure_text(f)}" for stage, f in ((before, a), (after, b)))
            lines.append(f"{words}: {was}, {now}: {side(apart, 'more', 'less', 'cannot be told apart')}.")
    seen = [row["safety"] for row in lab.metrics(after).get("true_score_by_iteration") or [] if row.get("safety")]
    if seen:
        lines.append(
            f"True safety on PPO's own unsafe training prompts: {figure_text(seen[0])} in its first "
            f"iteration, {figure_text(seen[-1])} in its last."
        )
    return lines


def told_by_shares(found: Sequence[dict[str, Any]]) -> list[str]:
    """Claim 23 by this run's figures: from no refusals in the rows to the most, and what examples against it do."""
    plain = [row for row in found if not row["contrast"]]
    none, most = plain[0], plain[-1]
    fewer = gap(none["violation_rate"], most["violation_rate"])
    more = gap(most["borderline_refusal_rate"], none["borderline_refusal_rate"])
    lines = [
        verdict("Violations, fewer with the most safety data", fewer),
        verdict("Refusals of borderline prompts, more with the most", more),
    ]
    for row in found:
        if row["contrast"]:
            words = (
                "With borderline examples beside the refusals the model refuses "
                f"{figure_text(row['borderline_refusal_rate'])} of the borderline prompts instead of "
                f"{figure_text(most['borderline_refusal_rate'])}, and complies with "
                f"{figure_text(row['violation_rate'])} of the unsafe ones instead of "
                f"{figure_text(most['violation_rate'])}."
            )
            lines.append(textwrap.fill(words, 80))
    return lines


def told_by_preprompts(found: dict[str, Any]) -> list[str]:
    """Which preprompt changes what the model does, beyond chance, prompt by prompt."""
    lines = []
    for how in ("generic", "template", "example"):
        fewer = found[how]["fewer"]
        words = side(fewer, "fewer violations", "more violations", "no change that can be told from chance")
        lines.append(
            f"{how}: {words} ({fewer['mean']:.3f} [{fewer['low']:.3f}, {fewer['high']:.3f}] fewer of all "
            "unsafe prompts)"
        )
    return lines


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
    for (stage, by), colour, symbol in zip(found.items(), (ORANGE, BLUE), ("diamond", "circle"), strict=True):
        x, bars = [f["mean"] for f in by.values()], errors(list(by.values()))
        points = go.Scatter(x=x, y=list(by), name=short_name(stage), mode="markers", error_x=bars)
        fig.add_trace(points.update(drawn(colour, symbol, 10)))
    fig.update_xaxes(rangemode="tozero", tickformat=".0%")
    fig.update_yaxes(autorange="reversed")
    return style(fig, "violations on unsafe prompts, by the oracle", height=380, left=230)


def told_by_safety_judge(found: dict[str, Any], draws: int = 400) -> list[str]:
    """What the safety reward model sees of the harm that the oracle sees, on V5's answers to unsafe prompts."""
    safe, harm = np.array(found["safe"]), np.array(found["harm"])
    under = int((safe < THRESHOLD).sum())
    lines = [
        f"Of {len(safe)} answers {int(harm.sum())} comply, by the oracle; {under} lie under {THRESHOLD} (the "
        f"lowest is at {safe.min():.2f}).",
        f"Of those under {THRESHOLD}, {figure_text(found['precision'])} comply (the report's precision: .89)."
        if under
        else "So the threshold never acts on these answers; only the prompts' tag brings in the model.",
        f"Of those that comply, {figure_text(found['recall'])} lie under {THRESHOLD} (the report's recall: .55).",
    ]
    if harm.any() and not harm.all():
        rng = np.random.default_rng(0)
        bad, good = safe[harm], safe[~harm]
        resampled = [(rng.choice(bad, len(bad)), rng.choice(good, len(good))) for _ in range(draws)]
        apart = [float((b[:, None] < g).mean() + (b[:, None] == g).mean() / 2) for b, g in [(bad, good), *resampled]]
        low, high = np.quantile(apart[1:], (0.025, 0.975))
        lines.append(
            f"A complying answer scores lower than one that does not in {apart[0]:.2f} of all pairs "
            f"[{low:.2f}, {high:.2f}] (.5: blind, 1: sees all)."
        )
    return lines


def safety_chart(found: dict[str, Any]) -> go.Figure | None:
    """The safety reward model's probability of each answer to an unsafe prompt, by what the oracle says of it."""
    fig = go.Figure()
    for harm, name, colour in ((False, "no harm, by the oracle", BLUE), (True, "complies, by the oracle", RED)):
        values = [p for p, h in zip(found["safe"], found["harm"], strict=True) if h == harm]
        look = {"marker_color": colour, "opacity": 0.7, "xbins": {"start": 0, "end": 1.0001, "size": 0.05}}
        fig.add_trace(go.Histogram(x=values, name=f"{name} (n {len(values)})", **look))
    fig.update_layout(barmode="overlay")
    fig.add_vline(
        x=THRESHOLD, line={"color": GREY, "dash": "dot"}, annotation_text="the report's .15", annotation_font_size=11
    )
    return style(fig, "probability of being safe, by the safety reward model", "answers", height=360)
