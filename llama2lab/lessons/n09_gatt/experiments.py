"""Claim 21: Ghost Attention holds an instruction for twenty turns (Llama 2, section 3.3 and table 30)."""

from __future__ import annotations

import copy
import random
from typing import Any

from llama2lab.engine import stats
from llama2lab.engine.optim import Optim
from llama2lab.lab.finished import Finished
from llama2lab.lessons.n09_gatt.dialogues import (
    instruction_attention,
    instructions_for,
    kept_dialogues,
    obedience,
    sampled_dialogues,
)
from llama2lab.stages.gatt import gatt_rows, sample_dialogues
from llama2lab.stages.sft import SFTSettings, sft
from llama2lab.town.prompts import dialogue_prompts, instructions_of

STAGES = ("rlhf-v3", "gatt", "rlhf-v5")


def live_obedience(
    lab: Finished, stages: tuple[str, ...] = ("rlhf-v3", "gatt"), dialogues: int = 8, turns: int = 20, seed: int = 0
) -> dict[str, Any]:
    """A few dialogues sampled now: {stage: {"turns": the share that obeys at each turn, "dialogues": to read}}. Eight
    dialogues of twenty turns take 6 to 10 seconds a stage."""
    chosen = instructions_for(lab, dialogues)
    found = {}
    for stage in stages:
        sampled = sampled_dialogues(lab, stage, chosen, turns, seed)
        texts = [
            {"instruction": d.instruction.text, "answers": list(d.answers), "obeyed": list(d.obeyed)} for d in sampled
        ]
        found[stage] = {"turns": obedience(sampled), "dialogues": texts}
    return found


def attention_by_turn(
    lab: Finished,
    stages: tuple[str, ...] = ("rlhf-v3", "gatt"),
    dialogues: int = 6,
    turns: int = 20,
    place: str = "first",
) -> dict[str, Any]:
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


def long_dialogues(
    lab: Finished, stages: tuple[str, ...] = STAGES, dialogues: int = 200, turns: int = 20
) -> dict[str, Any]:
    """Claim 21 on more dialogues than the run's evaluation has: the share that obeys by turn, and under "claims" the
    first model with Ghost Attention less the one without, dialogue by dialogue, at each turn of table 30 that differs.
    Some minutes."""
    chosen = instructions_for(lab, dialogues)
    sampled = {stage: sampled_dialogues(lab, stage, chosen, turns, seed=8) for stage in stages}
    without, given = sampled[stages[0]], sampled[stages[1]]
    gaps = {
        f"more dialogues, one training: instruction kept at turn {turn}: with less without": stats.mean(
            [int(a.obeyed[turn - 1]) - int(b.obeyed[turn - 1]) for a, b in zip(given, without, strict=True)]
        )
        for turn in (4, 6, 10, 20)
        if turn <= turns
    }
    return {**{stage: obedience(found) for stage, found in sampled.items()}, "claims": gaps}


def unseen_instructions(
    lab: Finished, stages: tuple[str, ...] = STAGES, each: int = 20, turns: int = 10
) -> dict[str, Any]:
    """Claim 21, zero-shot: instructions that neither SFT nor Ghost Attention trained on (the report tries Haiku). The
    share that obeys by turn, `each` dialogues for each instruction. A minute or two."""
    chosen = instructions_of(lab.town, "test") * each
    return {
        "instructions": sorted({i.text for i in chosen}),
        **{stage: obedience(sampled_dialogues(lab, stage, chosen, turns, seed=5)) for stage in stages},
    }


def mask_ablation(
    lab: Finished, dialogues: int = 48, rows: int = 400, turns: int = 10, tested: int = 24
) -> dict[str, Any]:
    """Why the loss on previous turns is zeroed: from V3, the same dialogues (the instruction kept in the first message
    only) trained on with the loss on the last answer alone, and on all answers. The share that obeys by turn on
    held-out questions. About 60 seconds."""
    tests = instructions_for(lab, tested)
    rng = random.Random(31)
    questions = dialogue_prompts(lab.town, "rlhf", turns, dialogues, 31)
    chosen = instructions_for(lab, dialogues)
    model, told, precision = lab.model("rlhf-v3"), [i.text for i in chosen], lab.machine.precision
    answers = sample_dialogues(
        model, lab.tokenizer, questions, told, True, temperature=0.4, seed=32, precision=precision, seen_turns=3
    )
    made = gatt_rows(questions, [rng.choice((i.text, i.short)) for i in chosen], answers, rows, 33)
    settings = SFTSettings(len(made), 1.0, 512, 2048, Optim(lr=6e-4, warmup=0.05), 0.0)
    found: dict[str, Any] = {"before": obedience(sampled_dialogues(lab, "rlhf-v3", tests, turns, seed=6))}
    for loss in ("last", "all"):
        model = copy.deepcopy(lab.model("rlhf-v3"))
        sft(model, lab.tokenizer, [{**row, "loss": loss} for row in made], settings, 0, lab.machine)
        found[loss] = obedience(sampled_dialogues(lab, model.eval(), tests, turns, seed=6))
    return found


EXPERIMENTS = (long_dialogues, unseen_instructions, mask_ablation)
