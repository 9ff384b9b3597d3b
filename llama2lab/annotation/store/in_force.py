"""Which labels count: of one item and annotator the newest that no later one supersedes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.store import tables as t


def current_labels() -> sa.Select:
    """The id of the label in force of each item and annotator: not superseded, and the newest of them."""
    lab, later = t.labels.c, t.labels.alias("later")
    alive = sa.select(
        lab.id, lab.item_id, lab.annotator_id,
        sa.func.row_number().over(partition_by=(lab.item_id, lab.annotator_id),
                                  order_by=(lab.created_at.desc(), lab.id.desc())).label("rank"),
    ).where(~sa.exists().where(later.c.supersedes == lab.id)).subquery("alive")
    return sa.select(alive.c.id).where(alive.c.rank == 1)


def current(conn: sa.Connection, annotator_id: str, item_id: str) -> str | None:
    """The id of the annotator's label in force of this item."""
    lab, later = t.labels.c, t.labels.alias("later")
    return conn.execute(
        sa.select(lab.id).where(lab.item_id == item_id, lab.annotator_id == annotator_id,
                                ~sa.exists().where(later.c.supersedes == lab.id))
        .order_by(lab.created_at.desc(), lab.id.desc()).limit(1)).scalar()


def in_force(rows: Sequence[Any]) -> list[Any]:
    """Of one annotator's labels, oldest first: those in force, in the order in which the items were first answered."""
    superseded = {row.supersedes for row in rows}
    newest: dict[str, Any] = {}
    for row in rows:
        if row.id not in superseded:
            newest[row.item_id] = row
    return [newest[item_id] for item_id in dict.fromkeys(row.item_id for row in rows)]


def labels_in_force(conn: sa.Connection) -> list[dict[str, Any]]:
    """All of a store, each with its item and its annotator, in the order of the queue."""
    lab, i, g, a = t.labels.c, t.items.c, t.secrets.c, t.annotators.c
    query = (
        sa.select(t.labels, i.kind, i.prompt, i.answer_1, i.answer_2, i.prompt_id, g.model_1, g.model_2, g.gold,
                  a.name, a.kind.label("annotator_kind"), a.vendor)
        .join(t.items, i.id == lab.item_id).join(t.annotators, a.id == lab.annotator_id)
        .outerjoin(t.secrets, g.item_id == lab.item_id)
        .where(lab.id.in_(current_labels())).order_by(i.position, i.id, lab.created_at, lab.id))
    return [{
        "label_id": r.id, "item_id": r.item_id, "kind": r.kind, "prompt": r.prompt,
        "answers": [r.answer_1, r.answer_2], "prompt_id": r.prompt_id,
        "models": None if r.model_1 is None and r.model_2 is None else [r.model_1, r.model_2], "gold": r.gold,
        "annotator": r.name, "annotator_kind": r.annotator_kind, "vendor": r.vendor, "choice": r.choice,
        "grade": r.grade, "safe_1": r.safe_1, "safe_2": r.safe_2, "comment": r.comment, "flag": r.flag,
        "skip_reason": r.skip_reason, "seconds": r.seconds, "left": r.left, "created_at": r.created_at,
        "guidelines": r.guidelines,
    } for r in conn.execute(query)]
