"""The rows of a store outside of it, and how they come into another store: what merging and importing share.

Rows are known by their ids (an item's is that of its content), so taking the same rows in twice changes nothing, and
no row that is already there is changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation import tables as t
from llama2lab.annotation.checks import check_label, check_pair
from llama2lab.annotation.queue import current
from llama2lab.annotation.store import clean_name
from llama2lab.errors import LabError, first_line

CHUNK = 500
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


@dataclass
class Records:
    """Rows by their keys, and what they are called in messages."""

    source: str
    annotators: dict[str, Row] = field(default_factory=dict)
    guidelines: dict[str, Row] = field(default_factory=dict)
    items: dict[str, Row] = field(default_factory=dict)
    secrets: dict[str, Row] = field(default_factory=dict)
    labels: dict[str, Row] = field(default_factory=dict)


@dataclass
class Counts:
    """What came in: how many new rows; `known` labels were there already; `renamed` annotators by old and new name."""

    items: int = 0
    annotators: int = 0
    guidelines: int = 0
    labels: int = 0
    known: int = 0
    renamed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = (f"{self.labels} labels, {self.items} items and {self.annotators} annotators are new; "
                f"{self.known} labels were there already")
        return text + "".join(f"; another {old!r} is there, so this one is now {new!r}"
                              for old, new in self.renamed.items())


def read(conn: sa.Connection, source: str) -> Records:
    """All rows of a store."""
    found = Records(source)
    for name, table, key in (("annotators", t.annotators, "id"), ("guidelines", t.guidelines, "version"),
                             ("items", t.items, "id"), ("secrets", t.secrets, "item_id"), ("labels", t.labels, "id")):
        getattr(found, name).update({row[key]: dict(row) for row in conn.execute(sa.select(table)).mappings()})
    return found


def take_in(conn: sa.Connection, records: Records) -> Counts:
    """Put the rows that are new into the store of this transaction."""
    counts = Counts()
    _guidelines(conn, records, counts)
    names = _annotators(conn, records, counts)
    _items(conn, records, counts)
    _labels(conn, records, names, counts)
    return counts


def insert(conn: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), CHUNK):
        conn.execute(table.insert(), list(rows[start:start + CHUNK]))


def _guidelines(conn: sa.Connection, records: Records, counts: Counts) -> None:
    g = t.guidelines.c
    wanted = dict(records.guidelines)
    for label in records.labels.values():  # a version that labels name and whose text did not come along
        version = label["guidelines"]
        if version and version not in wanted:
            kind = (records.items.get(label["item_id"]) or {"kind": "helpfulness"})["kind"]
            wanted[version] = {"version": version, "kind": kind, "text": "", "created_at": LONG_AGO}
    known = dict(conn.execute(sa.select(g.version, g.text)).tuples().all())
    for version, row in wanted.items():
        if known.get(version) == "" and row["text"]:
            conn.execute(t.guidelines.update().where(g.version == version)
                         .values(text=row["text"], created_at=row["created_at"]))
    new = [row for version, row in wanted.items() if version not in known]
    insert(conn, t.guidelines, new)
    counts.guidelines = len(new)


def _annotators(conn: sa.Connection, records: Records, counts: Counts) -> dict[str, str]:
    """Ids of the records' annotators in this store. Two people of the same name stay two: the second is renamed."""
    a = t.annotators.c
    rows = conn.execute(sa.select(t.annotators)).all()
    ids, names = {row.id for row in rows}, {row.name: row for row in rows}
    mapped = {}
    for key, row in sorted(records.annotators.items()):
        same = names.get(row["name"])
        if key in ids:
            mapped[key] = key
        elif same is not None and (row.get("by_name") or (same.kind, same.vendor) == ("simulated", row["vendor"])):
            mapped[key] = same.id
        else:
            name = row["name"]
            if same is not None:
                name = next(n for n in (f"{name} ({number})" for number in range(2, 10**6)) if n not in names)
                counts.renamed[row["name"]] = name
            new = {k: v for k, v in row.items() if k in a} | {"name": name}
            conn.execute(t.annotators.insert().values(**new))
            names[name] = conn.execute(sa.select(t.annotators).where(a.id == key)).one()
            mapped[key] = key
            counts.annotators += 1
    return mapped


def _items(conn: sa.Connection, records: Records, counts: Counts) -> None:
    known = set(conn.execute(sa.select(t.items.c.id)).scalars())
    new = sorted((row for key, row in records.items.items() if key not in known),
                 key=lambda row: (row["position"], row["id"]))
    if new and known:  # behind those that are there; into an empty store as they were
        behind = conn.execute(sa.select(sa.func.max(t.items.c.position))).scalar_one() + 1 - new[0]["position"]
        new = [row | {"position": row["position"] + behind} for row in new]
    insert(conn, t.items, new)
    empty = {"model_1": None, "model_2": None, "meta": None, "gold": None, "gold_choice": None, "gold_grades": "",
             "gold_safe_1": None, "gold_safe_2": None}
    insert(conn, t.secrets, [records.secrets.get(row["id"]) or {"item_id": row["id"], **empty} for row in new])
    insert(conn, t.slots, [{"item_id": row["id"], "number": number, "position": row["position"], "state": "free"}
                           for row in new for number in range(1, row["overlap"] + 1)])
    counts.items = len(new)


def _labels(conn: sa.Connection, records: Records, names: dict[str, str], counts: Counts) -> None:
    known = set(conn.execute(sa.select(t.labels.c.id)).scalars())
    new = {key: row | {"annotator_id": names[row["annotator_id"]]}
           for key, row in records.labels.items() if key not in known}
    counts.known = len(records.labels) - len(new)
    for row in new.values():  # an edit whose earlier version did not come along
        if row["supersedes"] and row["supersedes"] not in new and row["supersedes"] not in known:
            row["supersedes"] = None
    ordered = _parents_first(new, records.source)
    _slots(conn, ordered)
    insert(conn, t.labels, ordered)
    for item_id, annotator_id in {(row["item_id"], row["annotator_id"]) for row in ordered}:
        # The slot is as the label in force says, which need not be the one that came in last.
        lab = t.labels.c
        skipped, left = conn.execute(sa.select(lab.skip_reason, lab.left).where(
            lab.id == current(conn, annotator_id, item_id))).one()
        conn.execute(t.slots.update().where(t.slots.c.item_id == item_id, t.slots.c.annotator_id == annotator_id)
                     .values(state="done" if skipped is None else "skipped", left=left or 1))
    counts.labels = len(ordered)


def _parents_first(rows: dict[str, Row], source: str) -> list[Row]:
    """Oldest first, and each edit after what it supersedes, whatever the clocks said."""
    ordered: list[Row] = []
    placed: set[str] = set()
    for row in sorted(rows.values(), key=lambda r: (r["created_at"], r["id"])):
        chain: list[Row] = []
        link: Row | None = row
        while link is not None and link["id"] not in placed:
            if link in chain:
                raise LabError(f"{source}: label {link['id']} supersedes itself: the file is damaged; nothing was "
                               "taken")
            chain.append(link)
            link = rows.get(link["supersedes"])
        for link in reversed(chain):
            placed.add(link["id"])
            ordered.append(link)
    return ordered


def _slots(conn: sa.Connection, labels: Sequence[Row]) -> None:
    """Each label's item counts as given to its annotator: free slots are used up first, then there is one more."""
    s = t.slots.c
    first = {(row["item_id"], row["annotator_id"]): row for row in reversed(labels)}
    wanted = sorted({item_id for item_id, _ in first})
    by_item: dict[str, list[Any]] = defaultdict(list)
    for start in range(0, len(wanted), CHUNK):
        for slot in conn.execute(sa.select(t.slots).where(s.item_id.in_(wanted[start:start + CHUNK]))
                                 .order_by(s.item_id, s.number)):
            by_item[slot.item_id].append(slot)
    positions = dict(conn.execute(sa.select(t.items.c.id, t.items.c.position)).tuples().all())
    free = {item_id: [slot.number for slot in slots if slot.state == "free"] for item_id, slots in by_item.items()}
    held = {(slot.item_id, slot.annotator_id) for slots in by_item.values() for slot in slots}
    last = {item_id: slots[-1].number for item_id, slots in by_item.items()}
    for (item_id, annotator_id), row in sorted(first.items(), key=lambda pair: (pair[1]["created_at"], pair[1]["id"])):
        if (item_id, annotator_id) in held:
            continue
        values = {"annotator_id": annotator_id, "left": row["left"] or 1, "state": "done"}
        if free.get(item_id):
            conn.execute(t.slots.update().where(s.item_id == item_id, s.number == free[item_id].pop(0))
                         .values(**values))
        else:
            last[item_id] = last.get(item_id, 0) + 1
            conn.execute(t.slots.insert().values(item_id=item_id, number=last[item_id], position=positions[item_id],
                                                 **values))


def check_whole(records: Records) -> None:
    """Labels whose item or annotator is in no row, or that supersede what is not their annotator's."""
    for key, label in records.labels.items():
        if label["item_id"] not in records.items or label["annotator_id"] not in records.annotators:
            raise LabError(f"{records.source}: label {key} belongs to an item or an annotator that is not there; "
                           "import FILE and FILE.rest together")
        parent = records.labels.get(label["supersedes"] or "")
        if parent and (parent["item_id"], parent["annotator_id"]) != (label["item_id"], label["annotator_id"]):
            raise LabError(f"{records.source}: label {key} supersedes another annotator's or another item's")


def check(records: Records) -> None:
    """Rows of somebody else's file, whose database may have let anything pass."""
    where = records.source
    try:
        for item in records.items.values():
            secret = records.secrets.get(item["id"]) or {}
            again, _ = check_pair({"kind": item["kind"], "prompt": item["prompt"], "prompt_id": item["prompt_id"],
                                   "answers": [item["answer_1"], item["answer_2"]], "gold": secret.get("gold")},
                                  f"{where} item {item['id']}")
            if again["id"] != item["id"]:
                raise LabError(f"{where} item {item['id']}: its id is not that of its content; it was changed")
        for person in records.annotators.values():
            if clean_name(person["name"]) != person["name"]:
                raise LabError(f"{where}: the annotator's name {person['name']!r} is not one line")
        for label in records.labels.values():
            item = records.items.get(label["item_id"]) or {"kind": ""}
            check_label(label, item["kind"], f"{where} label {label['id']}")
        check_whole(records)
    except (TypeError, KeyError, AttributeError) as e:
        raise LabError(f"{where} holds rows that are none of an annotation store's ({first_line(e)})") from e
