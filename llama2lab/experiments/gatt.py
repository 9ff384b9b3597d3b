"""Claim 21: Ghost Attention holds an instruction for twenty turns (Llama 2, section 3.3 and table 30)."""

from __future__ import annotations

import copy
import random
from typing import Any

from llama2lab import stats
from llama2lab.experiments.shown import verdict
from llama2lab.gatt import gatt_rows, sample_dialogues
from llama2lab.lab.finished import Finished
from llama2lab.plots import TABLE_30, TURNS
from llama2lab.sft import SFTSettings, sft
from llama2lab.stats import Figure
from llama2lab.summary import difference, figure_text, find, short_name
from llama2lab.train import Optim
from llama2lab.widgets.ghost import (
    instruction_attention,
    instructions_for,
    kept_dialogues,
    obedience,
    sampled_dialogues,
)
from llama2lab.world.prompts import dialogue_prompts, instructions_of

STAGES = ("rlhf-v3", "gatt", "rlhf-v5")
MASKS = {"before": "V3, before", "last": "the last answer learnt", "all": "all answers learnt"}


def live_obedience(lab: Finished, stages: tuple[str, ...] = ("rlhf-v3", "gatt"), dialogues: int = 8, turns: int = 20,
                   seed: int = 0) -> dict[str, Any]:
    """A few dialogues sampled now: {stage: {"turns": the share that obeys at each turn, "dialogues": to read}}. Eight
    dialogues of twenty turns take 6 to 10 seconds a stage."""
    chosen = instructions_for(lab, dialogues)
    found = {}
    for stage in stages:
        sampled = sampled_dialogues(lab, stage, chosen, turns, seed)
        found[stage] = {"turns": obedience(sampled), "dialogues": [
            {"instruction": d.instruction.text, "answers": list(d.answers), "obeyed": list(d.obeyed)}
            for d in sampled]}
    return found


def attention_by_turn(lab: Finished, stages: tuple[str, ...] = ("rlhf-v3", "gatt"), dialogues: int = 8,
                      turns: int = 20, place: str = "first") -> dict[str, Any]:
    """The same kept dialogues read by each model: {stage: {"max": by turn, "mean": by turn}, "even": by turn}, means
    over dialogues with their intervals. A few seconds."""
    texts = kept_dialogues(lab, stages[-1])[:dialogues]
    turns = min([turns, *(len(d.answers) for d in texts)])
    found: dict[str, Any] = {}
    for stage in stages:
        looks = [instruction_attention(lab, lab.model(stage), d, turns)[place] for d in texts]
        for how in ("max", "mean"):
            found.setdefault(stage, {})[how] = [stats.mean([look[how][t] for look in looks]) for t in range(turns)]
        found["even"] = [sum(look["even"][t] for look in looks) / len(looks) for t in range(turns)]
    return found


def unseen_instructions(lab: Finished, stages: tuple[str, ...] = STAGES, each: int = 3,
                        turns: int = 10) -> dict[str, Any]:
    """Claim 21, zero-shot: instructions that neither SFT nor Ghost Attention trained on (the report tries Haiku). The
    share that obeys by turn, `each` dialogues for each instruction. About 20 seconds."""
    chosen = instructions_of(lab.town, "test") * each
    return {"instructions": sorted({i.text for i in chosen}),
            **{stage: obedience(sampled_dialogues(lab, stage, chosen, turns, seed=5)) for stage in stages}}


def mask_ablation(lab: Finished, dialogues: int = 48, rows: int = 400, turns: int = 10, tested: int = 24,
                  ) -> dict[str, Any]:
    """Why the loss on previous turns is zeroed: from V3, the same dialogues (the instruction kept in the first message
    only) trained on with the loss on the last answer alone, and on all answers. The share that obeys by turn on
    held-out questions. About 60 seconds."""
    tests = instructions_for(lab, tested)
    rng = random.Random(31)
    questions = dialogue_prompts(lab.town, "rlhf", turns, dialogues, 31)
    chosen = instructions_for(lab, dialogues)
    answers = sample_dialogues(lab.model("rlhf-v3"), lab.tokenizer, questions, [i.text for i in chosen], True,
                               temperature=0.4, seed=32, precision=lab.machine.precision, seen_turns=3)
    made = gatt_rows(questions, [rng.choice((i.text, i.short)) for i in chosen], answers, rows, 33)
    settings = SFTSettings(len(made), 1.0, 512, 2048, Optim(lr=6e-4, warmup=0.05), 0.0)
    found: dict[str, Any] = {
        "before": obedience(sampled_dialogues(lab, "rlhf-v3", tests, turns, seed=6))}
    for loss in ("last", "all"):
        model = copy.deepcopy(lab.model("rlhf-v3"))
        sft(model, lab.tokenizer, [{**row, "loss": loss} for row in made], settings, 0, lab.machine)
        found[loss] = obedience(sampled_dialogues(lab, model.eval(), tests, turns, seed=6))
    return found


# ---- what the run kept --------------------------------------------------------------------------------------------


def table_30(lab: Finished) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of obedience by turn: the report's table 30 beside this run's three models."""
    rows = []
    for turn in TURNS:
        report = [f"{TABLE_30[which][turn]} %" if turn in TABLE_30[which] else "" for which in ("without", "with")]
        rows.append([turn, *report, *(figure_text(find(lab.figures, stage, "retention", turn)) for stage in STAGES)])
    return ["turn", "report, without", "report, with", *(short_name(s) for s in STAGES)], rows


def claim_21(lab: Finished) -> list[str]:
    """What this run's figures say of the claim, and where they differ from the report's."""
    gaps = {turn: difference(find(lab.figures, "gatt", "retention", turn), find(lab.figures, "rlhf-v3", "retention",
                                                                                turn)) for turn in TURNS}
    lines = [verdict(f"Turn {turn}, with less without Ghost Attention", gap) for turn, gap in gaps.items() if gap]
    baseline = [find(lab.figures, "rlhf-v3", "retention", turn) for turn in ("4", "6")]
    if all(f and f["low"] > 0.1 for f in baseline):
        lines.append("The baseline here holds an instruction longer than the report's, which is at 10 % at turn 4 and "
                     "at 0 from turn 6 on: the miniature's pretraining text has interviews in which a speaker keeps "
                     "one manner, so its base model has seen such dialogues.")
    last = find(lab.figures, "gatt", "retention", "20")
    if last and last["high"] < 1:
        lines.append(f"The model with Ghost Attention obeys in {figure_text(last)} of the dialogues at turn 20, not in "
                     "all of them, as in the report.")
    return lines


def single_turn(lab: Finished) -> Figure:
    """True helpfulness of the model with Ghost Attention less that of V3, on single prompts, prompt by prompt."""
    rows = [[row["score"] for row in lab.rows(stage, "answers.jsonl") if row["kind"] == "helpful"]
            for stage in ("gatt", "rlhf-v3")]
    return stats.mean([a - b for a, b in zip(*rows)])


def told_by_masks(masks: dict[str, list[Figure]]) -> list[str]:
    """Obedience over all turns for each mask, and the turns at which the two can be told apart."""
    lines = [f"{MASKS[key]}: {sum(f['mean'] for f in turned) / len(turned):.2f} over all turns"
             for key, turned in masks.items()]
    apart = [str(t) for t, (a, b) in enumerate(zip(masks["last"], masks["all"]), 1)
             if a["low"] > b["high"] or b["low"] > a["high"]]
    return [*lines, f"Turns at which the intervals of the two masks do not touch: {', '.join(apart)}." if apart else
            "At no turn do the intervals of the two masks part: they cannot be told apart here."]


def told_by_attention(look: dict[str, Any], start: int = 10) -> list[str]:
    """The mean share of attention on the instruction from a turn on, with and without."""
    def late(figures: list[Any]) -> float:
        values = [f["mean"] if isinstance(f, dict) else f for f in figures[start - 1:]] or [float("nan")]
        return sum(values) / len(values)

    lines = [f"From turn {start} on, {how} of the heads: {late(look['gatt'][how]):.3f} with, "
             f"{late(look['rlhf-v3'][how]):.3f} without" for how in ("max", "mean")]
    return [*lines, f"If a head looked at all tokens alike: {late(look['even']):.3f}"]


def told_by_single_turns(lab: Finished) -> list[str]:
    """Whether single-turn quality changed."""
    gap = single_turn(lab)
    words = "worse" if gap["high"] < 0 else "better" if gap["low"] > 0 else "no different, as far as can be told"
    lines = [f"True helpfulness on single prompts, with less without: {gap['mean']:+.3f} [{gap['low']:+.3f}, "
             f"{gap['high']:+.3f}]: {words}"]
    return lines + [f"{name.replace('_', ' ')}: {figure_text(find(lab.figures, 'rlhf-v3', name))} without, "
                    f"{figure_text(find(lab.figures, 'gatt', name))} with"
                    for name in ("correct", "violation_rate", "borderline_refusal_rate")]


EXPERIMENTS = (unseen_instructions, mask_ablation)
