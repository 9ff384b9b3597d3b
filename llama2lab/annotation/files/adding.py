"""Pairs of answers into the queue of a store."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.files.sifting import Key, Reason, key_of
from llama2lab.annotation.files.taking_in import free_slots, insert
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import NewPair, check_pair, check_slots
from llama2lab.annotation.store.store import Store
from llama2lab.engine.errors import LabError
from llama2lab.engine.rows import complaint, rows_of


def add_pairs(
    store: Store,
    rows: Iterable[Mapping[str, Any]],
    overlap: int = 1,
    seed: int = 0,
    aside: Sequence[tuple[Mapping[str, Any], Reason]] = (),
) -> int:
    """Put pairs into the queue in an order drawn by seed; how many of them were new there. Nothing is added if a row is
    wrong.

    A row: {"kind", "prompt": messages, "answers": [a, b], "prompt_id"?, "models"?: [m, m], "gold"?: {"choice": 1|2,
    "grades"?, "safe_1"?, "safe_2"?}, "meta"?}. Pairs with gold go to everybody.

    `aside` are pairs that are kept and shown to nobody, each with its reason, which stands in its `meta` as "aside". A
    pair that was set aside once is queued when it comes among `rows`.
    """
    if overlap < 1:
        raise LabError(f"each pair needs at least one annotator, not {overlap}")
    pairs = [check_pair(row, f"pair {number}") for number, row in enumerate(rows, 1)]
    checked = {item["id"]: (item, secret) for item, secret in pairs}
    for number, (row, reason) in enumerate(aside, 1):
        item, secret = check_pair(_marked(row, reason), f"pair {number} set aside")
        checked.setdefault(item["id"], (item, secret))
    check_slots([overlap] * max(1, sum(secret["gold"] is None for _, secret in checked.values())), "overlap")

    def add(conn: sa.Connection) -> int:
        i = t.items.c
        known = dict(conn.execute(sa.select(i.id, i.position)).tuples().all())
        new = [pair for key, pair in sorted(checked.items()) if key not in known]
        again = [key for key in _put_aside(conn) if key in checked and not _is_aside(checked[key][1])]
        for key in again:
            conn.execute(t.items.update().where(i.id == key).values(overlap=overlap))
            conn.execute(t.secrets.update().where(t.secrets.c.item_id == key).values(meta=checked[key][1]["meta"]))
            insert(conn, t.slots, free_slots({"id": key, "overlap": overlap, "position": known[key]}))
        random.Random(seed).shuffle(new)
        last = conn.execute(sa.select(sa.func.coalesce(sa.func.max(t.items.c.position), 0))).scalar_one()
        for position, (item, secret) in enumerate(new, last + 1):
            special = secret["gold"] or _is_aside(secret)  # for everybody; for nobody
            item.update(position=position, overlap=0 if special else overlap, created_at=t.now())
        insert(conn, t.items, [item for item, _ in new])
        insert(conn, t.secrets, [secret for _, secret in new])
        insert(conn, t.slots, [slot for item, _ in new for slot in free_slots(item)])
        return len(again) + sum(not _is_aside(secret) for _, secret in new)

    return store.write(add)


def _marked(row: Mapping[str, Any], reason: Reason) -> dict[str, Any]:
    meta = row.get("meta")
    known = meta if isinstance(meta, dict) else {} if meta is None else {"meta": meta}
    return {**row, "meta": {**known, "aside": reason}}


def _is_aside(secret: Mapping[str, Any]) -> bool:
    return not secret["gold"] and isinstance(secret["meta"], dict) and bool(secret["meta"].get("aside"))


def _put_aside(conn: sa.Connection) -> dict[str, str]:
    g = t.secrets.c
    query = sa.select(g.item_id, g.meta, g.gold).join(t.items).where(t.items.c.overlap == 0, g.meta.is_not(None))
    rows = conn.execute(query.order_by(t.items.c.position)).mappings()
    return {row["item_id"]: str(row["meta"]["aside"]) for row in map(dict, rows) if _is_aside(row)}


def set_aside(store: Store) -> dict[str, str]:
    """The pairs that are kept and shown to nobody: their ids, and why."""
    with store.begin(read=True) as conn:
        return _put_aside(conn)


def keys_there(store: Store) -> dict[Key, str]:
    """What the store's pairs ask, for `sift`, and their ids: of several the first that is shown."""
    i = t.items.c
    with store.begin(read=True) as conn:
        hidden = _put_aside(conn)
        rows = conn.execute(sa.select(i.id, i.kind, i.prompt, i.answer_1, i.answer_2).order_by(i.position)).all()
    found: dict[Key, str] = {}
    for row in sorted(rows, key=lambda row: row.id in hidden):
        found.setdefault(key_of(row.kind, row.prompt, (row.answer_1, row.answer_2)), row.id)
    return found


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
