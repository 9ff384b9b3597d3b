"""How notebook 09 shows Ghost Attention: table 30 with this run's figures, and what they say of the claim."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from llama2lab.engine import stats
from llama2lab.engine.stats import Figure
from llama2lab.lab.finished import Finished
from llama2lab.lab.shown import Table, add_line, show, side, signed, verdicts
from llama2lab.lessons.n09_gatt.experiments import STAGES
from llama2lab.report.look import GREY
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


def claim_21(lab: Finished) -> Table:
    """What this run's figures say of the claim, turn by turn; at turn 2 the report has no difference either."""
    gaps = {
        turn: difference(find(lab.figures, "gatt", "retention", turn), find(lab.figures, "rlhf-v3", "retention", turn))
        for turn in ("4", "6", "10", "20")
    }
    return verdicts({f"turn {turn}, with less without Ghost Attention": gap for turn, gap in gaps.items() if gap})


def apart_from_the_report(lab: Finished) -> str:
    """Where the miniature differs from the report's table 30."""
    lines = []
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
    return " ".join(lines)


def single_turn(lab: Finished) -> Figure:
    """True helpfulness of the model with Ghost Attention less that of V3, on single prompts, prompt by prompt."""
    both = lab.answers("gatt", "rlhf-v3")
    return stats.mean([a["score"] - b["score"] for a, b in both if a["kind"] == "helpful"])


def told_by_masks(masks: dict[str, list[Figure]]) -> Table:
    """Obedience over all turns for each mask, and the turns at which the two can be told apart."""
    rows = [[MASKS[key], f"{sum(f['mean'] for f in turned) / len(turned):.2f}"] for key, turned in masks.items()]
    apart = [
        str(t)
        for t, (a, b) in enumerate(zip(masks["last"], masks["all"], strict=True), 1)
        if a["low"] > b["high"] or b["low"] > a["high"]
    ]
    rows.append(["turns at which the intervals of the two masks do not touch", ", ".join(apart) or "none"])
    return Table(("answers that keep the instruction", "over all turns"), rows)


def attention_figure(look: dict[str, Any]) -> go.Figure | None:
    """The share of attention on the instruction by turn, of the head that looks most and of all heads, with and
    without; dotted what a head would give that looks at everything alike."""
    series = {
        f"{name}, {how}": {str(t): f for t, f in enumerate(look[stage][how], 1)}
        for stage, name in (("rlhf-v3", "without"), ("gatt", "with"))
        for how in ("max", "mean")
    }
    fig = show(series, "turn of the dialogue", "attention on the instruction, share")
    if fig is not None:
        turns = list(range(1, len(look["even"]) + 1))
        add_line(fig, "if even", turns, look["even"], GREY, dash="dot", mode="lines")
        fig.update_yaxes(range=[0, 1.05])
    return fig


def told_by_attention(look: dict[str, Any], start: int = 10) -> Table:
    """The mean share of attention on the instruction from a turn on, with and without."""

    def late(figures: list[Any]) -> str:
        values = [f["mean"] if isinstance(f, dict) else f for f in figures[start - 1 :]] or [float("nan")]
        return f"{sum(values) / len(values):.3f}"

    words = {"max": "the head that looks most", "mean": "the mean of all heads"}
    rows = [[words[how], *(late(look[stage][how]) for stage in ("gatt", "rlhf-v3"))] for how in words]
    even = late(look["even"])
    return Table(
        (f"attention on the instruction, from turn {start} on", "with", "without"),
        [*rows, ["a head that looked at everything alike", even, even]],
    )


def told_by_single_turns(lab: Finished) -> Table:
    """Whether single-turn quality changed."""
    names = {
        "helpfulness": "true helpfulness",
        "correct": "right answers",
        "violation_rate": "complies with harm",
        "borderline_refusal_rate": "refuses borderline prompts",
    }
    gap = single_turn(lab)
    rows = [
        [words, *(figure_text(find(lab.figures, s, key)) for s in ("rlhf-v3", "gatt"))] for key, words in names.items()
    ]
    changed = side(gap, "better", "worse", "no different, as far as can be told")
    rows.append(["true helpfulness, with less without, prompt by prompt", "", f"{signed(gap)}: {changed}"])
    return Table(("on single prompts", "without", "with"), rows)


def first_and_last(found: dict[str, Any], stages: tuple[str, ...] = ("rlhf-v3", "gatt", "rlhf-v5")) -> Table:
    """Obedience at the first and at the last turn (`unseen_instructions`)."""
    turns = len(found[stages[0]])
    rows = [[short_name(stage), *(figure_text(found[stage][t]) for t in (0, -1))] for stage in stages]
    return Table(("version", "turn 1", f"turn {turns}"), rows)
