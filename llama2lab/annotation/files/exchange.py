"""Pairs into the store, labels out of it, and several stores into one."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.files.exporting import export_preferences, to_dataset
from llama2lab.annotation.files.importing import import_preferences
from llama2lab.annotation.files.others import read_other
from llama2lab.annotation.files.records import Counts, insert, take_in
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import check_messages, check_pair, check_slots
from llama2lab.annotation.store.labels import Store
from llama2lab.annotation.store.queue import current_labels
from llama2lab.engine.errors import LabError
from llama2lab.engine.rows import complaint, rows_of

__all__ = ["add_pairs", "export_preferences", "import_preferences", "labels", "merge", "read_pairs", "to_dataset"]


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
        slots = [{"item_id": item["id"], "number": n, "position": item["position"], "state": "free"}
                 for item, _ in new for n in range(1, item["overlap"] + 1)]
        insert(conn, t.items, [item for item, _ in new])
        insert(conn, t.secrets, [secret for _, secret in new])
        insert(conn, t.slots, slots)
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
            item, _ = check_pair(row, where)
            check_messages(item["prompt"], where, blank=False)
            found.append(row)
        except LabError as e:
            wrong.append(str(e))
    if wrong:
        raise LabError(f"{complaint(wrong, total, 'nothing was added', reasons)}; every line must be one pair: "
                       '{"kind": ..., "prompt": [...], "answers": [..., ...]}')
    return found


def labels(store: Store) -> list[dict[str, Any]]:
    """Every label in force, with its item and its annotator, in the order of the queue."""
    lab, i, g, a = t.labels.c, t.items.c, t.secrets.c, t.annotators.c
    query = (
        sa.select(t.labels, i.kind, i.prompt, i.answer_1, i.answer_2, i.prompt_id, g.model_1, g.model_2, g.gold,
                  a.name, a.kind.label("annotator_kind"), a.vendor)
        .join(t.items, i.id == lab.item_id).join(t.annotators, a.id == lab.annotator_id)
        .outerjoin(t.secrets, g.item_id == lab.item_id)
        .where(lab.id.in_(current_labels())).order_by(i.position, i.id, lab.created_at, lab.id))
    with store.begin(read=True) as conn:
        rows = conn.execute(query).all()
    return [{
        "label_id": r.id, "item_id": r.item_id, "kind": r.kind, "prompt": r.prompt,
        "answers": [r.answer_1, r.answer_2], "prompt_id": r.prompt_id,
        "models": None if r.model_1 is None and r.model_2 is None else [r.model_1, r.model_2], "gold": r.gold,
        "annotator": r.name, "annotator_kind": r.annotator_kind, "vendor": r.vendor, "choice": r.choice,
        "grade": r.grade, "safe_1": r.safe_1, "safe_2": r.safe_2, "comment": r.comment, "flag": r.flag,
        "skip_reason": r.skip_reason, "seconds": r.seconds, "left": r.left, "created_at": r.created_at,
        "guidelines": r.guidelines,
    } for r in rows]


def merge(store: Store, paths: Sequence[str | os.PathLike[str]], only: str | None = None,
          trust: bool = False) -> Counts:
    """Take the labels of other stores (students' files, usually) into this one: of all of them or of none.

    Nothing that is here changes, and merging the same file again adds nothing. The other files are only read. What a
    file is not believed is in records.py; `trust` believes it (who makes copies of the class's own store), and `only`
    takes the labels of the annotator of this name alone.

    Raises:
        LabError: a file that is no store, that was tampered with, or that adds labels in names it has no right to.
    """
    for path in paths:
        if store.path and os.path.exists(path) and os.path.samefile(path, store.path):
            raise LabError(f"{path} is the store that it should be merged into; leave it out")
    sources = [read_other(path) for path in paths]

    def work(conn: sa.Connection) -> Counts:
        total = Counts()
        fresh = conn.execute(sa.select(t.items.c.id).limit(1)).scalar() is None
        for records in sources:
            counts = take_in(conn, records, trust, only, fresh)
            for name in ("items", "annotators", "guidelines", "labels", "known"):
                setattr(total, name, getattr(total, name) + getattr(counts, name))
            total.renamed.update(counts.renamed)
            total.notes += counts.notes
        return total

    return store.write(work)
