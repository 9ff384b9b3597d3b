"""Pairs of answers for people to judge, from a run on the town: what `llama2lab labels collect` puts into a store.

As in the report (section 3.2.1), the two answers come from two models at different temperatures. Only training prompts
are asked: what people say of a held-out prompt may train nothing. Gold pairs, whose better answer is known, are
written from the town's truth: the right sentence against a wrong one, a kind refusal against help with harm.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama2lab.engine.device import this_machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.paths import DATA
from llama2lab.engine.scale import Kind
from llama2lab.engine.stagefiles import read_marker, stage_folder
from llama2lab.run.talk import load, pick_stage
from llama2lab.stages.preferences import Variant, sample_pairs
from llama2lab.town.demonstrations import AnswerStyle, answer_for
from llama2lab.town.prompts import KINDS, draw_prompts
from llama2lab.town.town import Town, load_town
from llama2lab.town.truth import place_statements, truth_of


def pairs_of_run(
    run: Path, n: int, kind: Kind = "helpfulness", gold: int = 0, stages: Sequence[str] = (), seed: int = 0
) -> list[dict[str, Any]]:
    """About `n` pairs (equal answers are left out) and `gold` gold pairs, for `annotation.add_pairs`.

    Args:
        stages: the two models; by default the last one of the run and SFT.

    Raises:
        LabError: no run on the town, a stage that cannot talk, an unknown kind.
    """
    if kind not in ("helpfulness", "safety"):
        raise LabError(f"kind {kind!r} is unknown; use helpfulness or safety")
    stage_folder(run, "sft")
    if read_marker(run).get("preset") not in ("mini", "smoke"):
        raise LabError(f"{run} is no run on the town; pairs of other runs can be added with: llama2lab labels add")
    names = [pick_stage(run, name) for name in stages or (None, "sft")]
    town = load_town()
    asked = draw_prompts(town, "rlhf", n, seed, kinds=KINDS[:1] if kind == "helpfulness" else KINDS[1:])
    names = list(dict.fromkeys(names))
    models = [load(run / name) for name in names]
    if not all(tokenizer.get_vocab() == models[0][1].get_vocab() for _, tokenizer in models):
        raise LabError(
            f"{run}: {' and '.join(names)} have different tokenizers, so they are not of one run; choose another stage"
        )
    variants = [Variant(model, name) for name, (model, _) in zip(names, models, strict=True)]
    machine = this_machine()
    named: list[tuple[str, str]] = []
    pairs = sample_pairs(variants, models[0][1], asked, seed=seed, precision=machine.precision, names=named)
    rows = [
        {"kind": kind, "prompt": list(p.messages), "answers": [a, b], "prompt_id": p.id, "models": list(models_of)}
        for (p, a, b), models_of in zip(pairs, named, strict=True)
    ]
    return rows + gold_pairs(town, gold, kind, seed + 1)


def guidelines(town: Town, kind: Kind) -> str:
    """The guidelines of data/guidelines; for helpfulness with the town's book, which says what is true: a line for each
    person and place, under its name (annotation/form/book.py)."""
    text = (DATA / "guidelines" / f"{kind}.md").read_text(encoding="utf-8")
    if kind == "safety":
        return text
    pages = {
        person.name: [
            attribute.statements[0].format(**person.forms, value=person.facts[name])
            for name, attribute in town.attributes.items()
        ]
        for person in town.people.values()
    }
    pages |= {place.name: [told[0] for told in place_statements(place).values()] for place in town.places.values()}
    book = "\n".join(f"- **{name}:** {' '.join(page)}" for name, page in pages.items())
    return f"{text.rstrip()}\n\n# The town's book\n\n{book}\n"


def gold_pairs(town: Town, n: int, kind: Kind, seed: int) -> list[dict[str, Any]]:
    """`n` pairs whose better answer nobody could dispute, and why: with the first of the town's own true answers."""
    rng = random.Random(f"gold {kind} {seed}")
    safety = kind == "safety"
    rows = []
    for prompt in draw_prompts(town, "train", n, seed, kinds=("unsafe",) if safety else ("helpful",)) if n else []:
        good = answer_for(town, prompt, AnswerStyle(alternative=safety, explanation=not safety), rng)
        bad = answer_for(town, prompt, AnswerStyle(comply=True) if safety else AnswerStyle(correct=False), rng)
        choice = rng.choice((1, 2))
        answers = [good, bad] if choice == 1 else [bad, good]
        right = truth_of(town, prompt.content).answers[0]
        reason = (
            f"This should not be helped with. Safe is, for example: “{right}” The other answer helps with it."
            if safety
            else f"Right is, for example: “{right}” The other answer says something that is not so."
        )
        gold: dict[str, Any] = {"choice": choice, "grades": ["significantly", "better"], "reason": reason}
        if safety:
            gold |= {"safe_1": choice == 1, "safe_2": choice == 2}
        asked = {"kind": kind, "prompt": list(prompt.messages)}
        rows.append({**asked, "answers": answers, "prompt_id": prompt.id, "gold": gold})
    return rows
