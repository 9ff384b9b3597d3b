"""Which labels count: of one item and annotator the newest that no later one supersedes; of an item's verdicts, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.store import tables as t


def current_labels() -> sa.Select:
    """The id of the label in force of each item and annotator: not superseded, and the newest of them."""
    lab, later = t.labels.c, t.labels.alias("later")
    alive = (
        sa.select(
            lab.id,
            lab.item_id,
            lab.annotator_id,
            sa.func.row_number()
            .over(partition_by=(lab.item_id, lab.annotator_id), order_by=(lab.created_at.desc(), lab.id.desc()))
            .label("rank"),
        )
        .where(~sa.exists().where(later.c.supersedes == lab.id))
        .subquery("alive")
    )
    return sa.select(alive.c.id).where(alive.c.rank == 1)


def current(conn: sa.Connection, annotator_id: str, item_id: str) -> str | None:
    """The id of the annotator's label in force of this item."""
    lab, later = t.labels.c, t.labels.alias("later")
    return conn.execute(
        sa.select(lab.id)
        .where(
            lab.item_id == item_id, lab.annotator_id == annotator_id, ~sa.exists().where(later.c.supersedes == lab.id)
        )
        .order_by(lab.created_at.desc(), lab.id.desc())
        .limit(1)
    ).scalar()


def in_force(rows: Sequence[Any]) -> list[Any]:
    """Of one annotator's labels, oldest first: those in force, in the order in which the items were first answered."""
    superseded = {row.supersedes for row in rows}
    newest: dict[str, Any] = {}
    for row in rows:
        if row.id not in superseded:
            newest[row.item_id] = row
    return [newest[item_id] for item_id in dict.fromkeys(row.item_id for row in rows)]


def labels_in_force(conn: sa.Connection) -> list[dict[str, Any]]:
    """All of a store, each with its item, the item's verdict (None: there is none) and its annotator, in the order of
    the queue."""
    lab, i, g, a = t.labels.c, t.items.c, t.secrets.c, t.annotators.c
    query = (
        sa.select(lab.id.label("label_id"), lab.item_id, i.kind, i.prompt, i.answer_1, i.answer_2, i.prompt_id)
        .add_columns(g.model_1, g.model_2, g.gold, a.name.label("annotator"), a.kind.label("annotator_kind"), a.vendor)
        .add_columns(lab.choice, lab.grade, lab.safe_1, lab.safe_2, lab.comment, lab.flag, lab.skip_reason)
        .add_columns(lab.seconds, lab.left, lab.created_at, lab.guidelines)
        .select_from(t.labels)
        .join(t.items, i.id == lab.item_id)
        .join(t.annotators, a.id == lab.annotator_id)
        .outerjoin(t.secrets, g.item_id == lab.item_id)
        .where(lab.id.in_(current_labels()))
        .order_by(i.position, i.id, lab.created_at, lab.id)
    )
    found = [dict(row) for row in conn.execute(query).mappings()]
    decided = verdicts_in_force(conn)
    for label in found:
        label["verdict"] = decided.get(label["item_id"])
        label["answers"] = [label.pop("answer_1"), label.pop("answer_2")]
        models = [label.pop("model_1"), label.pop("model_2")]
        label["models"] = None if models == [None, None] else models
    return found


def verdicts_in_force(conn: sa.Connection) -> dict[str, dict[str, Any]]:
    """By item: what was decided on it last, as a row of `verdicts`."""
    v, later = t.verdicts.c, t.verdicts.alias("later")
    alive = sa.select(t.verdicts).where(~sa.exists().where(later.c.supersedes == v.id)).order_by(v.created_at, v.id)
    return {row["item_id"]: dict(row) for row in conn.execute(alive).mappings()}
