"""What people judge by, from the town: the guidelines with the town's book, and gold pairs: the better answer is known.

Gold pairs are written from the town's truth: the right sentence against a wrong one, a kind refusal against help with
harm. No model is needed for them, and no torch.
"""

from __future__ import annotations

import random
from typing import Any

from llama2lab.engine.paths import DATA
from llama2lab.engine.scale import Kind
from llama2lab.town.demonstrations import AnswerStyle, answer_for
from llama2lab.town.prompts import draw_prompts
from llama2lab.town.town import Town
from llama2lab.town.truth import place_statements, truth_of


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
