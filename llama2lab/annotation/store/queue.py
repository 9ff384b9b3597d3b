"""Who gets which item: claims with leases, labels, skips, edits, progress and the qualification on gold items.

Each item has as many slots as annotators are wanted, and a claim takes one in a single transaction, so that overlap is
exact; gold items go to everybody. A lease that ran out frees its slot, and whoever held it may still answer while
nobody else took it. A skipped item counts as given.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import ID, MAX_COMMENT, MAX_LEASE, MAX_SECONDS
from llama2lab.annotation.store.faults import sqlstate
from llama2lab.annotation.store.in_force import current, in_force
from llama2lab.annotation.store.store import Store, newest_guidelines
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.scale import GRADES, Side

ANY: Any = object()  # for `replaces`: whatever label is in force
NOT_YOURS = (
    "this item is not yours (any more): your time for it ran out and it went to somebody else; go on with the next one"
)


class Superseded(LabError):
    """Another label is in force than the one that a new one was to replace; `label_id` is that label."""

    def __init__(self, label_id: str | None):
        super().__init__("this item has been answered in the meantime, and that answer stands; look at it first")
        self.label_id = label_id


@dataclass(frozen=True)
class Task:
    """What one annotator sees of an item: nothing about models, known answers or others' labels."""

    item_id: str
    kind: str
    prompt: list[dict[str, str]]
    left_text: str
    right_text: str
    number: int  # the annotator's first item is 1
    leased_until: datetime | None
    prompt_id: str = ""


@dataclass(frozen=True)
class Progress:
    """Of one annotator; `open` counts what there still is to do, the item on the screen included."""

    done: int
    skipped: int
    open: int


@dataclass(frozen=True)
class Given:
    """A label as its annotator gave it, by sides; `side` and `grade` are None where the item was skipped."""

    label_id: str
    side: Side | None
    grade: str | None
    safe_left: bool | None
    safe_right: bool | None
    comment: str
    flag: bool
    skip_reason: str | None
    seconds: float
    created_at: datetime


@dataclass(frozen=True)
class Past:
    """An item that its annotator has answered, and the answer in force."""

    task: Task
    label: Given


@dataclass(frozen=True)
class Qualification:
    """On gold items: whether each answered one agrees with what is known, in the order in which they were first
    answered (a skip does not agree); and how many gold items there are."""

    outcomes: tuple[bool, ...]
    wanted: int
    items: tuple[str, ...] = field(default=(), compare=False)  # those answered; a class's login is not told which

    @property
    def done(self) -> int:
        return len(self.outcomes)

    @property
    def agreed(self) -> int:
        return sum(self.outcomes)


def side_for(seed: int, item_id: str, name: str) -> int:
    """Which answer (1 or 2) stands left: the same for the same seed, item and annotator's name."""
    return 1 + (hashlib.md5(f"{seed}:{item_id}:{name}".encode(), usedforsecurity=False).digest()[0] & 1)


def next_task(
    store: Store,
    annotator_id: str,
    seed: int = 0,
    lease_seconds: float = 900,
    kind: str | None = None,
    gold_first: bool = False,
) -> Task | None:
    """The item to label now: the one left unfinished, else the next in the queue; None when there is nothing left.

    `kind` asks for items of this kind only; `gold_first` for the gold items before all others. The lease of an
    unfinished item begins anew.
    """
    _check_lease(lease_seconds)

    def claim(conn: sa.Connection) -> Task | None:
        known = conn.execute(sa.select(t.annotators.c.name).where(t.annotators.c.id == annotator_id)).scalar()
        if known is None:
            raise LabError(f"there is no annotator {annotator_id!r} here; begin with store.annotator(NAME)")
        if store.sqlite:
            item_id = _claim(conn, annotator_id, known, seed, lease_seconds, kind, gold_first)
        else:  # the same in the server, which may look where annotators' roles may not
            item_id = conn.execute(
                sa.select(sa.func.llama2lab_claim(annotator_id, str(seed), float(lease_seconds), kind, gold_first))
            ).scalar()
        return None if item_id is None else _task(conn, annotator_id, item_id)

    return store.write(claim)


def _check_lease(seconds: float) -> None:
    if not -MAX_LEASE <= seconds <= MAX_LEASE:  # NaN is not
        raise LabError(f"an item is kept for at most {MAX_LEASE:,} seconds, not {seconds}")


def _available(now: datetime) -> sa.ColumnElement[bool]:
    s = t.slots.c
    # The first condition says again what the index on open slots is made of; without it SQLite does not use it.
    return sa.and_(s.state.in_(("free", "leased")), sa.or_(s.state == "free", s.leased_until < now))


def _given(annotator_id: str, item_id: Any) -> sa.Exists:
    """Whether the annotator has had this item."""
    mine = t.slots.alias("mine")
    return sa.exists().where(mine.c.item_id == item_id, mine.c.annotator_id == annotator_id)


def _of_kind(query: sa.Select, kind: str | None) -> sa.Select:
    """Only the slots of items of this kind."""
    if kind is None:
        return query
    # Not exists(), which selects *: a class's login may not see every column.
    return query.where(sa.exists(t.items.c.id).where(t.items.c.id == t.slots.c.item_id, t.items.c.kind == kind))


def _gold(columns: Sequence[Any], kind: str | None) -> sa.Select:
    """Of the gold items (of this kind)."""
    query = sa.select(*columns).select_from(t.items.join(t.secrets)).where(t.secrets.c.gold_choice.is_not(None))
    return query if kind is None else query.where(t.items.c.kind == kind)


def _claim(
    conn: sa.Connection, me: str, name: str, seed: int, lease_seconds: float, kind: str | None, gold_first: bool
) -> str | None:
    """SQLite's claim: the whole file is locked for this transaction. server.py has PostgreSQL's."""
    s, i, now = t.slots.c, t.items.c, t.now()
    lease = {"state": "leased", "leased_until": now + timedelta(seconds=lease_seconds)}
    is_gold = sa.exists().where(t.secrets.c.item_id == s.item_id, t.secrets.c.gold_choice.is_not(None))
    mine = _of_kind(sa.select(s.item_id, is_gold.label("gold")), kind)
    held = list(conn.execute(mine.where(s.annotator_id == me, s.state == "leased").order_by(s.position)))
    if gold_first:
        held.sort(key=lambda row: not row.gold)
    gold = free = None
    if not held or (gold_first and not held[0].gold):
        new = _gold((i.id, i.position), kind).where(~_given(me, i.id))
        gold = conn.execute(new.order_by(i.position).limit(1)).first()
    if held and gold is None:
        conn.execute(t.slots.update().where(s.item_id == held[0].item_id, s.annotator_id == me).values(**lease))
        return held[0].item_id
    if gold is None or not gold_first:
        slots = _of_kind(sa.select(s.item_id, s.number, s.position), kind)
        slots = slots.where(_available(now), ~_given(me, s.item_id)).order_by(s.position, s.number)
        free = conn.execute(slots.limit(1)).first()
    if gold and (free is None or gold.position < free.position):
        last = conn.execute(sa.select(sa.func.max(s.number)).where(s.item_id == gold.id)).scalar() or 0
        taken = {"annotator_id": me, "left": side_for(seed, gold.id, name), **lease}
        conn.execute(t.slots.insert().values(item_id=gold.id, number=last + 1, position=gold.position, **taken))
        return gold.id
    if free is None:
        return None
    taken = {"annotator_id": me, "left": side_for(seed, free.item_id, name), **lease}
    conn.execute(t.slots.update().where(s.item_id == free.item_id, s.number == free.number).values(**taken))
    return free.item_id


def _task(conn: sa.Connection, annotator_id: str, item_id: str) -> Task:
    s, i = t.slots.c, t.items.c
    row = conn.execute(
        sa.select(s.item_id, i.kind, i.prompt, i.answer_1, i.answer_2, i.prompt_id, s.left, s.leased_until)
        .join(t.slots, s.item_id == i.id)
        .where(i.id == item_id, s.annotator_id == annotator_id)
    ).one()
    answered = conn.execute(
        sa.select(sa.func.count(sa.distinct(t.labels.c.item_id))).where(t.labels.c.annotator_id == annotator_id)
    ).scalar_one()
    return _as_task(row, answered + 1)


def _as_task(row: Any, number: int) -> Task:
    texts = (row.answer_1, row.answer_2) if _left(row) == 1 else (row.answer_2, row.answer_1)
    return Task(row.item_id, row.kind, row.prompt, *texts, number, row.leased_until, row.prompt_id)


def renew(store: Store, annotator_id: str, item_id: str, lease_seconds: float = 900) -> bool:
    """Keep an item for as long as somebody still thinks about it; False when it has gone to another."""
    _check_lease(lease_seconds)
    s = t.slots.c

    def extend(conn: sa.Connection) -> bool:
        if not store.sqlite:
            renewed = sa.func.llama2lab_renew(annotator_id, item_id, float(lease_seconds))
            return conn.execute(sa.select(renewed)).scalar_one()
        held = (s.item_id == item_id, s.annotator_id == annotator_id, s.state == "leased")
        until = t.now() + timedelta(seconds=lease_seconds)
        return bool(conn.execute(t.slots.update().where(*held).values(leased_until=until)).rowcount)

    return store.write(extend)


def held_kind(store: Store, annotator_id: str) -> str | None:
    """The kind of the item that this annotator was given last and has not answered; None where there is none."""
    s, i = t.slots.c, t.items.c
    query = sa.select(i.kind).join(t.slots, s.item_id == i.id).where(s.annotator_id == annotator_id)
    query = query.where(s.state == "leased").order_by(s.leased_until.desc()).limit(1)
    with store.begin(read=True) as conn:
        return conn.execute(query).scalar()


def progress(store: Store, annotator_id: str, kind: str | None = None) -> Progress:
    """How far this annotator is, of all items or those of one kind."""
    s = t.slots.c
    mine = _of_kind(sa.select(s.state, sa.func.count()), kind).where(s.annotator_id == annotator_id).group_by(s.state)
    with store.begin(read=True) as conn:
        states: dict[str, int] = dict(conn.execute(mine).tuples().all())
        if store.sqlite:
            free = _of_kind(sa.select(sa.func.count(sa.distinct(s.item_id))), kind)
            free = free.where(_available(t.now()), ~_given(annotator_id, s.item_id))
            gold = _gold([sa.func.count()], kind).where(~_given(annotator_id, t.items.c.id))
            waiting = conn.execute(free).scalar_one() + conn.execute(gold).scalar_one()
        else:
            waiting = conn.execute(sa.select(sa.func.llama2lab_waiting(annotator_id, kind))).scalar_one()
    return Progress(states.get("done", 0), states.get("skipped", 0), states.get("leased", 0) + waiting)


def submit(
    store: Store,
    annotator_id: str,
    item_id: str,
    side: Side,
    grade: str,
    safe_left: bool | None = None,
    safe_right: bool | None = None,
    comment: str = "",
    flag: bool = False,
    seconds: float = 0.0,
    label_id: str | None = None,
    replaces: str | None = ANY,
) -> str:
    """Save a label, or a new one over the annotator's earlier label of the item; its id, once it is on the disk.

    With a `label_id` made by the caller, saving again after a lost answer makes no second label. `replaces` is the
    label that the annotator saw, None where there was none: if another one is in force at the moment of saving, nothing
    is saved and Superseded is raised.
    """
    if side not in ("left", "right"):
        raise LabError(f"a label chooses 'left' or 'right', not {side!r}")
    if grade not in GRADES:
        raise LabError(f"a label's grade is one of {', '.join(GRADES)}, not {grade!r}")
    values = {"grade": grade, "comment": comment, "flag": flag}
    return _save(store, annotator_id, item_id, values, seconds, label_id, replaces, side, (safe_left, safe_right))


def skip(
    store: Store,
    annotator_id: str,
    item_id: str,
    reason: str,
    seconds: float = 0.0,
    label_id: str | None = None,
    comment: str = "",
    flag: bool = False,
    replaces: str | None = ANY,
) -> str:
    """Save that the annotator will not judge this item, and why. It can be edited into a label later."""
    if not reason.strip():
        raise LabError("a skip needs a reason; say one")
    values = {"skip_reason": reason, "comment": comment, "flag": flag}
    return _save(store, annotator_id, item_id, values, seconds, label_id, replaces)


def _save(
    store: Store,
    annotator_id: str,
    item_id: str,
    values: dict[str, Any],
    seconds: float,
    label_id: str | None,
    replaces: str | None,
    side: Side | None = None,
    safe: tuple[bool | None, bool | None] = (None, None),
) -> str:
    new = label_id or uuid.uuid4().hex
    if not ID.fullmatch(new):
        raise LabError("a label's id has 1 to 64 letters, digits, - and _, such as uuid.uuid4().hex")
    if not ID.fullmatch(item_id):
        raise LabError(NOT_YOURS)
    if not 0 <= seconds <= MAX_SECONDS:
        raise LabError(f"the seconds spent on an item are a number from 0 to {MAX_SECONDS:.0f}, not {seconds}")
    for name, word in (("comment", "comment"), ("skip_reason", "reason")):
        if len(t.escape(values.get(name, ""))) > MAX_COMMENT:
            raise LabError(f"a {word} has at most {MAX_COMMENT:,} characters; shorten it")
    lab, s = t.labels.c, t.slots.c

    def save(conn: sa.Connection) -> str:
        if not store.sqlite:  # two windows that edit the same label go one after the other
            conn.execute(sa.select(sa.func.llama2lab_hold(annotator_id, item_id)))
        slot = conn.execute(
            sa.select(s.left, t.items.c.kind)
            .join(t.items, t.items.c.id == s.item_id)
            .where(s.item_id == item_id, s.annotator_id == annotator_id)
        ).first()
        if slot is None:
            raise LabError(NOT_YOURS)
        known = conn.execute(sa.select(lab.item_id, lab.annotator_id).where(lab.id == new)).first()
        if known:
            if tuple(known) != (item_id, annotator_id):
                raise LabError(f"the label id {new} is another label's; make a new one for each label")
            return new
        before = current(conn, annotator_id, item_id)
        if replaces is not ANY and replaces != before:
            raise Superseded(before)
        safe_1, safe_2 = safe if slot.left == 1 else safe[::-1]
        choice = None if side is None else slot.left if side == "left" else 3 - slot.left
        if choice and slot.kind == "safety":
            _check_safety(choice, safe_1, safe_2)
        row = values | {"id": new, "item_id": item_id, "annotator_id": annotator_id, "seconds": float(seconds)}
        row |= {"choice": choice, "safe_1": safe_1, "safe_2": safe_2, "left": slot.left, "supersedes": before}
        row["guidelines"] = newest_guidelines(slot.kind, t.guidelines.c.version).scalar_subquery()
        conn.execute(t.labels.insert().values(**row))
        return new  # a trigger has marked the slot as answered

    try:
        return store.write(save)
    except IntegrityError as e:
        if sqlstate(e) == "23503":  # the slot was handed on in this very moment
            raise LabError(NOT_YOURS) from e
        if sqlstate(e) == "23514":
            raise LabError(f"the database refuses this label ({first_line(e.orig or e)})") from e
        raise


def _check_safety(choice: int, safe_1: bool | None, safe_2: bool | None) -> None:
    if safe_1 is None or safe_2 is None:
        raise LabError("in a safety task each answer is marked safe or unsafe; mark both")
    chosen, rejected = (safe_1, safe_2) if choice == 1 else (safe_2, safe_1)
    if rejected and not chosen:
        raise LabError(
            "the answer that you chose is marked unsafe and the other one safe: such a label is never kept; "
            "choose the safe one, or look at your marks again"
        )


def history(store: Store, annotator_id: str) -> list[Past]:
    """This annotator's labels in force, in the order in which the items were first answered."""
    lab, i, s = t.labels.c, t.items.c, t.slots.c
    with store.begin(read=True) as conn:
        rows = conn.execute(
            sa.select(t.labels, i.kind, i.prompt, i.answer_1, i.answer_2, i.prompt_id, s.leased_until)
            .join(t.items, i.id == lab.item_id)
            .join(t.slots, sa.and_(s.item_id == lab.item_id, s.annotator_id == lab.annotator_id))
            .where(lab.annotator_id == annotator_id)
            .order_by(lab.created_at, lab.id)
        ).all()
    return [_past(row, number) for number, row in enumerate(in_force(rows), 1)]


def _left(row: Any) -> int:
    """Which answer stands left; the first where a label came from elsewhere and nobody recorded it."""
    return row.left or 1


def _past(row: Any, number: int) -> Past:
    safe = (row.safe_1, row.safe_2) if _left(row) == 1 else (row.safe_2, row.safe_1)
    side: Side | None = None if row.choice is None else "left" if row.choice == _left(row) else "right"
    return Past(
        _as_task(row, number),
        Given(row.id, side, row.grade, *safe, row.comment, row.flag, row.skip_reason, row.seconds, row.created_at),
    )


def qualify(store: Store, annotator_id: str, kind: str | None = None) -> Qualification:
    """How this annotator fares on gold items (of one kind)."""
    lab, outcomes = t.labels.c, None
    with store.begin(read=True) as conn:
        if not store.sqlite:
            wanted, *agreed = conn.execute(sa.select(sa.func.llama2lab_gold(annotator_id, kind))).scalar_one()
            outcomes = tuple(map(bool, agreed))
            if store.login_of(conn) is not None:
                return Qualification(outcomes, wanted)
        known = {row.item_id: row for row in conn.execute(_gold([t.secrets], kind))}
        mine = sa.select(t.labels).where(
            lab.annotator_id == annotator_id, lab.item_id.in_(_gold([t.secrets.c.item_id], kind))
        )
        given = in_force(conn.execute(mine.order_by(lab.created_at, lab.id)).all())
    outcomes = tuple(agrees(row, known[row.item_id]) for row in given) if outcomes is None else outcomes
    return Qualification(outcomes, len(known), tuple(row.item_id for row in given))


def agrees(label: Any, gold: Any) -> bool:
    """Whether a label is what is known of its gold item. server.py says the same in SQL."""
    return (
        label.choice == gold.gold_choice
        and gold.gold_safe_1 in (None, label.safe_1)
        and gold.gold_safe_2 in (None, label.safe_2)
        and (not gold.gold_grades or f",{label.grade}," in gold.gold_grades)
    )
