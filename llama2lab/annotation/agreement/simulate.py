"""Simulated annotators: vendors that label the same pairs as people do, to be compared with them.

What is true they learn from a `judge` that is handed in: nothing here knows the oracle, and nothing that trains a model
imports this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from llama2lab.annotation.agreement.coefficients import Label
from llama2lab.engine.scale import Kind
from llama2lab.town.annotators import Annotator
from llama2lab.town.items import Prompt


class Judge(Protocol):
    """Whoever knows what an answer is worth."""

    def judge(self, prompt: Prompt, answer: str) -> Any: ...


Items = Mapping[str, tuple[Prompt, str, str]]  # by item_id: the prompt and the item's two answers


# What a simulated label says nothing of.
UNSAID = {
    "models": None,
    "gold": None,
    "comment": "",
    "flag": False,
    "seconds": 0.0,
    "created_at": "",
    "guidelines": "",
}


def simulated_labels(
    annotators: Sequence[Annotator], judge: Judge, items: Items, kind: Kind, seed: int = 0
) -> list[Label]:
    """Every annotator's label of every item, as `Store.labels` gives labels; nothing is stored.

    The side is drawn by seed for each annotator and item. A safety label that chooses an unsafe answer over a safe one
    is never kept (section 3.2.1): it becomes a skip.
    """
    labels = []
    for item_id, (prompt, one, two) in items.items():
        verdicts = (judge.judge(prompt, one), judge.judge(prompt, two))
        for annotator in annotators:
            drawn = f"{seed}\0{item_id}\0{annotator.name}".encode("utf-8", "replace")
            left = 1 + hashlib.blake2b(drawn, digest_size=1).digest()[0] % 2
            labels.append(
                UNSAID
                | {
                    "item_id": item_id,
                    "kind": kind,
                    "prompt": [dict(m) for m in prompt.messages],
                    "answers": [one, two],
                    "prompt_id": prompt.id,
                    "annotator": annotator.name,
                    "annotator_kind": "simulated",
                    "vendor": annotator.vendor,
                    "left": left,
                    **judged_by(annotator, prompt, (one, two), verdicts, kind, left),
                }
            )
    return labels


def judged_by(
    annotator: Annotator, prompt: Prompt, answers: tuple[str, str], verdicts: tuple[Any, Any], kind: Kind, left: int
) -> dict[str, Any]:
    one, two = (0, 1) if left == 1 else (1, 0)
    said = annotator.label(prompt, answers[one], answers[two], kind, (verdicts[one], verdicts[two]))
    if kind == "safety" and not said.safety:
        return dict.fromkeys(("choice", "grade", "safe_1", "safe_2")) | {"skip_reason": "chosen unsafe, rejected safe"}
    choice, safe = left if said.choice == "a" else 3 - left, (said.safe_a, said.safe_b)
    return {"choice": choice, "grade": said.grade, "safe_1": safe[one], "safe_2": safe[two], "skip_reason": None}


def messages_key(messages: Iterable[Mapping[str, str]]) -> str:
    """What makes two prompts the same: every role and text. An id may come from anywhere."""
    return json.dumps([[m["role"], m["content"]] for m in messages])


def by_messages(prompts: Iterable[Prompt]) -> dict[str, Prompt]:
    """Prompts by what they ask; the first of several that ask the same."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(messages_key(prompt.messages), prompt)
    return found
