"""Pairs of answers into the queue of a store."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.files.taking_in import free_slots, insert
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import NewPair, check_pair, check_slots
from llama2lab.annotation.store.store import Store
from llama2lab.engine.errors import LabError
from llama2lab.engine.rows import complaint, rows_of


def add_pairs(store: Store, rows: Iterable[Mapping[str, Any]], overlap: int = 1, seed: int = 0) -> int:
    """Put pairs into the queue in an order drawn by seed; how many were new. Nothing is added if a row is wrong.

    A row: {"kind", "prompt": messages, "answers": [a, b], "prompt_id"?, "models"?: [m, m], "gold"?: {"choice": 1|2,
    "grades"?, "safe_1"?, "safe_2"?}, "meta"?}. Pairs with gold go to everybody.
    """
    if overlap < 1:
        raise LabError(f"each pair needs at least one annotator, not {overlap}")
    pairs = [check_pair(row, f"pair {number}") for number, row in enumerate(rows, 1)]
    checked = {item["id"]: (item, secret) for item, secret in pairs}
    check_slots([overlap] * max(1, sum(secret["gold"] is None for _, secret in checked.values())), "overlap")

    def add(conn: sa.Connection) -> int:
        known = set(conn.execute(sa.select(t.items.c.id)).scalars())
        new = [pair for key, pair in sorted(checked.items()) if key not in known]
        random.Random(seed).shuffle(new)
        last = conn.execute(sa.select(sa.func.coalesce(sa.func.max(t.items.c.position), 0))).scalar_one()
        for position, (item, secret) in enumerate(new, last + 1):
            item.update(position=position, overlap=0 if secret["gold"] else overlap, created_at=t.now())
        insert(conn, t.items, [item for item, _ in new])
        insert(conn, t.secrets, [secret for _, secret in new])
        insert(conn, t.slots, [slot for item, _ in new for slot in free_slots(item)])
        return len(new)

    return store.write(add)


def read_pairs(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a file (.jsonl, .json, .parquet) for `add_pairs`; LabError names malformed ones by their lines."""
    file, total = Path(os.path.expanduser(path)), 0
    found: list[dict[str, Any]] = []
    wrong: list[str] = []
    reasons: set[str] = set()
    for number, row in rows_of(file, (".jsonl", ".json", ".parquet")):
        total, where = total + 1, f"{file}:{number}"
        if isinstance(row, str):
            wrong.append(f"{where}: {row}")
            reasons.add(row)
            continue
        try:
            check_pair(row, where, NewPair)
            found.append(row)
        except LabError as e:
            wrong.append(str(e))
    if wrong:
        raise LabError(
            f"{complaint(wrong, total, 'nothing was added', reasons)}; every line must be one pair: "
            '{"kind": ..., "prompt": [...], "answers": [..., ...]}'
        )
    return found
