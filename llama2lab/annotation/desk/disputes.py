"""Pairs that want a teacher: those about which people disagree, and those that somebody flagged.

People disagree where not all choices fall on one answer, or where an answer is safe to some and unsafe to others. A
difference of the grade alone is none. Skips say nothing; gold pairs have their answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llama2lab.annotation.agreement.coefficients import Label, grouped, judged

NO_MORE = ("nothing any more: people agree by now",)


@dataclass(frozen=True)
class Dispute:
    """One pair, what people say of it, and what was decided."""

    item_id: str
    labels: tuple[Label, ...]  # in force, skips among them
    why: tuple[str, ...]  # in words
    even: bool  # as many for one answer as for the other, so that no majority decides

    @property
    def verdict(self) -> dict[str, Any] | None:
        return self.labels[0]["verdict"]

    @property
    def changed(self) -> bool:
        """Whether there are other labels than those that the verdict has seen."""
        return self.verdict is not None and {x["label_id"] for x in self.labels} != set(self.verdict["labels"])

    @property
    def open(self) -> bool:
        return self.verdict is None or self.changed


def reasons(labels: Sequence[Label]) -> tuple[str, ...]:
    """Why these labels of one pair want a teacher; nothing where they do not."""
    found = []
    said = judged(labels)
    ones = sum(x["choice"] == 1 for x in said)
    if 0 < ones < len(said):
        found.append(f"the choice: {ones} for the first answer, {len(said) - ones} for the second")
    for number, word in ((1, "first"), (2, "second")):
        marks = [x[f"safe_{number}"] for x in said if x[f"safe_{number}"] is not None]
        if 0 < sum(marks) < len(marks):
            found.append(f"the {word} answer: safe to {sum(marks)}, unsafe to {len(marks) - sum(marks)}")
    flags = [x["annotator"] for x in labels if x["flag"]]
    if flags:
        found.append(f"flagged by {', '.join(flags)}")
    return tuple(found)


def disputes(labels: Iterable[Label]) -> list[Dispute]:
    """Every disputed, flagged or decided pair, as `Store.labels` gives labels: the open ones first, and of these
    the ones that no majority decides; otherwise in the order of the queue."""
    found = []
    for item_id, several in grouped((x for x in labels if not x["gold"]), "item_id").items():
        why = reasons(several) or (NO_MORE if several[0]["verdict"] else ())
        if why:
            said = judged(several)
            even = bool(said) and 2 * sum(x["choice"] == 1 for x in said) == len(said)
            found.append(Dispute(item_id, tuple(several), why, even))
    return sorted(found, key=lambda one: (not one.open, not one.even))
