"""What several stages answered to the same prompts, side by side: joined by prompt id, never by position alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from llama2lab.engine.errors import LabError

Row = dict[str, Any]
T = TypeVar("T")


def joined(*sides: Sequence[Row], kind: str = "") -> list[tuple[Row, ...]]:
    """The rows that stand for the same prompt on every side, in the order of the first side.

    Args:
        sides: rows with `prompt_id`, `kind` and what was measured. Scores that were shipped without ids (they have
            `kind` alone) are joined by position; then number and kinds of the rows must be the same.
        kind: only prompts of this kind.

    Raises:
        LabError: the sides are not about the same prompts, or one has a prompt twice.
    """
    cure = "they were measured with other settings; measure again with: llama2lab run --out RUN"
    if not sides:
        return []
    if all("prompt_id" in row for side in sides for row in side):
        tables = [{row["prompt_id"]: row for row in side} for side in sides]
        for side, table in zip(sides, tables, strict=True):
            if len(table) < len(side):
                twice = len(side) - len(table)
                raise LabError(f"of {len(side)} answers {twice} are to a prompt that stands twice; {cure}")
            if table.keys() != tables[0].keys():
                wrong = f"{min(table.keys() ^ tables[0].keys())!r} is on one side only"
                raise LabError(f"answers to different prompts cannot be compared: {wrong}; {cure}")
        rows = [tuple(table[row["prompt_id"]] for table in tables) for row in sides[0]]
    else:
        kinds = [[row["kind"] for row in side] for side in sides]
        if any(k != kinds[0] for k in kinds):
            many = " and ".join(str(len(k)) for k in kinds)
            raise LabError(f"scores of {many} prompts cannot be compared: they are not the same; {cure}")
        rows = list(zip(*sides, strict=True))
    return [row for row in rows if not kind or row[0]["kind"] == kind]


def evenly(rows: Sequence[T], n: int) -> list[T]:
    """`n` rows spread evenly over all of them; all where there are no more."""
    return [rows[i * len(rows) // n] for i in range(n)] if n < len(rows) else list(rows)


def shared_out(sizes: Sequence[int], n: int) -> list[int]:
    """How many to take of each part, as equally as their sizes allow, so that it is `n` in all (or all there are)."""
    taken = [0] * len(sizes)
    for _ in range(min(n, sum(sizes))):
        part = min((i for i, size in enumerate(sizes) if taken[i] < size), key=taken.__getitem__)
        taken[part] += 1
    return taken
