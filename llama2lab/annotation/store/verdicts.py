"""A teacher's verdict on a pair about which people disagree, kept apart from labels: who reads these finds it beside
them (`Store.labels`). It says whose it is, when, under which guidelines, and which labels it has seen."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import check_verdict, clean_name
from llama2lab.annotation.store.in_force import verdicts_in_force
from llama2lab.annotation.store.store import Store, newest_guidelines
from llama2lab.engine.errors import LabError


def decide(
    store: Store,
    teacher: str,
    item_id: str,
    choice: int | None,
    grade: str | None = None,
    safe_1: bool | None = None,
    safe_2: bool | None = None,
    reason: str = "",
    labels: Sequence[str] = (),
    verdict_id: str | None = None,
) -> str:
    """Save a verdict over the item's earlier one; its id, once it is on the disk.

    `choice` is the item's answer, 1 or 2, or None: neither is better, and the pair trains nothing. `labels` are the ids
    of those that the teacher has seen. With a `verdict_id` made by the caller, saving again makes no second one.

    Raises:
        LabError: no such pair, a gold pair, what is no verdict, an annotator's login of a class.
    """
    name, new = clean_name(teacher), verdict_id or uuid.uuid4().hex
    given = {"choice": choice, "grade": grade, "safe_1": safe_1, "safe_2": safe_2, "reason": reason}
    row: dict[str, Any] = {**given, "id": new, "item_id": item_id, "teacher": name, "labels": list(labels)}
    refuse_annotators(store)

    def save(conn: sa.Connection) -> str:
        kind = conn.execute(sa.select(t.items.c.kind).where(t.items.c.id == item_id)).scalar()
        if kind is None:
            raise LabError(f"there is no pair {item_id[:64]!r} here; look for the disputed pairs anew")
        gold = sa.select(t.secrets.c.gold_choice).where(t.secrets.c.item_id == item_id)
        if conn.execute(gold).scalar() is not None:
            raise LabError("this is a gold pair, whose better answer is known; a verdict is for the others")
        if conn.execute(sa.select(t.verdicts.c.id).where(t.verdicts.c.id == new)).first():
            return new
        before = verdicts_in_force(conn).get(item_id)
        made = check_verdict(row | {"created_at": t.now()}, kind, "verdict")
        made["supersedes"] = before["id"] if before else None
        made["login"] = "" if store.sqlite else sa.literal_column("session_user::text")
        made["guidelines"] = newest_guidelines(kind, t.guidelines.c.version).scalar_subquery()
        conn.execute(t.verdicts.insert().values(**made))
        return new

    return store.write(save)


def refuse_annotators(store: Store) -> None:
    """LabError where the URL is an annotator's: what others said is the teacher's to see."""
    name = store.login()
    if name is not None:
        raise LabError(f"this URL is {name}'s, and what others said is the teacher's to see; give the teacher's URL")
