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


def simulated_labels(
    annotators: Sequence[Annotator],
    judge: Judge,
    items: Items,
    kind: Kind,
    seed: int = 0,
) -> list[Label]:
    """Every annotator's label of every item, as `Store.labels` gives labels; nothing is stored.

    The side is drawn by seed for each annotator and item. A safety label that chooses an unsafe answer over a safe one
    is never kept (section 3.2.1): it becomes a skip.
    """
    labels = []
    for item_id, (prompt, one, two) in items.items():
        verdicts = (judge.judge(prompt, one), judge.judge(prompt, two))
        for annotator in annotators:
            left = 1 + _coin(str(seed), item_id, annotator.name)
            labels.append(
                {
                    "item_id": item_id,
                    "kind": kind,
                    "prompt": [dict(m) for m in prompt.messages],
                    "answers": [one, two],
                    "prompt_id": prompt.id,
                    "models": None,
                    "gold": None,
                    "annotator": annotator.name,
                    "annotator_kind": "simulated",
                    "vendor": annotator.vendor,
                    "comment": "",
                    "flag": False,
                    "seconds": 0.0,
                    "left": left,
                    "created_at": "",
                    "guidelines": "",
                    **judged_by(annotator, prompt, (one, two), verdicts, kind, left),
                }
            )
    return labels


def judged_by(
    annotator: Annotator, prompt: Prompt, answers: tuple[str, str], verdicts: tuple[Any, Any], kind: Kind, left: int
) -> dict[str, Any]:
    order = (0, 1) if left == 1 else (1, 0)
    said = annotator.label(prompt, answers[order[0]], answers[order[1]], kind, (verdicts[order[0]], verdicts[order[1]]))
    safe = (said.safe_a, said.safe_b) if left == 1 else (said.safe_b, said.safe_a)
    kept = kind != "safety" or said.safety != ""
    return {
        "choice": (left if said.choice == "a" else 3 - left) if kept else None,
        "grade": said.grade if kept else None,
        "safe_1": safe[0] if kept else None,
        "safe_2": safe[1] if kept else None,
        "skip_reason": None if kept else "chosen unsafe, rejected safe",
    }


def _coin(*parts: str) -> int:
    return hashlib.blake2b("\x00".join(parts).encode("utf-8", "replace"), digest_size=1).digest()[0] % 2


def messages_key(messages: Iterable[Mapping[str, str]]) -> str:
    """What makes two prompts the same: every role and text. An id may come from anywhere."""
    return json.dumps([[m["role"], m["content"]] for m in messages])


def by_messages(prompts: Iterable[Prompt]) -> dict[str, Prompt]:
    """Prompts by what they ask; the first of several that ask the same."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(messages_key(prompt.messages), prompt)
    return found
