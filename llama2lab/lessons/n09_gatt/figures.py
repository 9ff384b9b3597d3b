"""How notebook 09 shows Ghost Attention: table 30 with this run's figures, and what they say of the claim."""

from __future__ import annotations

from typing import Any

from llama2lab.engine import stats
from llama2lab.engine.stats import Figure
from llama2lab.lab.finished import Finished
from llama2lab.lab.shown import side, signed, verdict
from llama2lab.lessons.n09_gatt.experiments import STAGES
from llama2lab.report.plots import TABLE_30, TURNS
from llama2lab.report.summary import difference, figure_text, find, short_name

MASKS = {"before": "V3, before", "last": "the last answer learnt", "all": "all answers learnt"}


def table_30(lab: Finished) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of obedience by turn: the report's table 30 beside this run's three models."""
    rows = []
    for turn in TURNS:
        report = [f"{TABLE_30[which][turn]} %" if turn in TABLE_30[which] else "" for which in ("without", "with")]
        rows.append([turn, *report, *(figure_text(find(lab.figures, stage, "retention", turn)) for stage in STAGES)])
    return ["turn", "report, without", "report, with", *(short_name(s) for s in STAGES)], rows


def claim_21(lab: Finished) -> list[str]:
    """What this run's figures say of the claim, and where they differ from the report's."""
    gaps = {
        turn: difference(find(lab.figures, "gatt", "retention", turn), find(lab.figures, "rlhf-v3", "retention", turn))
        for turn in TURNS
    }
    lines = [
        verdict(f"Turn {turn}, with less without Ghost Attention", gap)
        for turn, gap in gaps.items()
        if gap and turn in ("4", "6", "10", "20")  # at turn 2 the report has no difference either
    ]
    baseline = [find(lab.figures, "rlhf-v3", "retention", turn) for turn in ("4", "6")]
    if all(f and f["low"] > 0.1 for f in baseline):
        lines.append(
            "The baseline here holds an instruction longer than the report's, which is at 10 % at turn 4 and at 0 from "
            "turn 6 on. A likely reason, not tested: the miniature's pretraining text has interviews in which a "
            "speaker keeps one manner."
        )
    last = find(lab.figures, "gatt", "retention", "20")
    if last and last["high"] < 1:
        lines.append(
            f"The model with Ghost Attention obeys in {figure_text(last)} of the dialogues at turn 20, not in "
            "all: the report has 100 %."
        )
    return lines


def single_turn(lab: Finished) -> Figure:
    """True helpfulness of the model with Ghost Attention less that of V3, on single prompts, prompt by prompt."""
    both = lab.answers("gatt", "rlhf-v3")
    return stats.mean([a["score"] - b["score"] for a, b in both if a["kind"] == "helpful"])


def told_by_masks(masks: dict[str, list[Figure]]) -> list[str]:
    """Obedience over all turns for each mask, and the turns at which the two can be told apart."""
    means = {key: sum(f["mean"] for f in turned) / len(turned) for key, turned in masks.items()}
    lines = [f"{MASKS[key]}: {mean:.2f} over all turns" for key, mean in means.items()]
    apart = [
        str(t)
        for t, (a, b) in enumerate(zip(masks["last"], masks["all"], strict=True), 1)
        if a["low"] > b["high"] or b["low"] > a["high"]
    ]
    return [
        *lines,
        f"Turns at which the intervals of the two masks do not touch: {', '.join(apart)}."
        if apart
        else "At no turn do the intervals of the two masks part: they cannot be told apart here.",
    ]


def told_by_attention(look: dict[str, Any], start: int = 10) -> list[str]:
    """The mean share of attention on the instruction from a turn on, with and without."""

    def late(figures: list[Any]) -> float:
        values = [f["mean"] if isinstance(f, dict) else f for f in figures[start - 1 :]] or [float("nan")]
        return sum(values) / len(values)

    lines = []
    for how in ("max", "mean"):
        there, before = (late(look[stage][how]) for stage in ("gatt", "rlhf-v3"))
        lines.append(f"From turn {start} on, {how} of the heads: {there:.3f} with, {before:.3f} without")
    return [*lines, f"If a head looked at all tokens alike: {late(look['even']):.3f}"]


def told_by_single_turns(lab: Finished) -> list[str]:
    """Whether single-turn quality changed."""
    gap = single_turn(lab)
    changed = side(gap, "better", "worse", "no different, as far as can be told")
    return [f"True helpfulness on single prompts, with less without: {signed(gap)}: {changed}"] + [
        f"{name.replace('_', ' ')}: {figure_text(find(lab.figures, 'rlhf-v3', name))} without, "
        f"{figure_text(find(lab.figures, 'gatt', name))} with"
        for name in ("correct", "violation_rate", "borderline_refusal_rate")
    ]
