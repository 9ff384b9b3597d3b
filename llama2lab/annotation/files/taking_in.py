"""Rows from outside into a store: what merging and importing share.

Taking the same rows in twice changes nothing, and no row that is already there is changed.

What a teacher imports is the teacher's own word. A file that others hand in is not: it may say anything in anybody's
name. So of a file that is not trusted

- labels are taken: of people who are new here, or of one person alone whom the store knows (it is said whose they are).
  Not in the name of somebody who has a login in this class;
- pairs that are new are kept with their labels, but queued for nobody, and no gold is handed out. What a pair claims to
  be is kept beside (`claimed`): its labels count neither as training rows nor as agreement with gold. Only in a store
  that has no pair of its own, and so no gold to go by, the figures go by the files';
- guidelines are kept for the labels that name them, and are not in force;
- a teacher's verdicts are not taken;
- times in the future are refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.files.records import Records, Row, claimed, whose
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import gold_columns
from llama2lab.annotation.store.in_force import current
from llama2lab.annotation.store.tables import LONG_AGO
from llama2lab.engine.errors import LabError

CHUNK = 500
SKEW = timedelta(days=1)  # that another machine's clock may be ahead
UNNAMED = "imported"  # the annotator of rows that name none
SAME = ("choice", "grade", "safe_1", "safe_2", "comment", "flag", "skip_reason", "seconds")  # of one label, everywhere


@dataclass
class Counts:
    """What came in: how many new rows; `known` labels were there already; `renamed` annotators by old and new name;
    `notes`: in whose name each file added labels, and what of it was not taken as it says."""

    items: int = 0
    annotators: int = 0
    guidelines: int = 0
    labels: int = 0
    verdicts: int = 0
    known: int = 0
    repeated: int = 0  # rows of others that say again what another one says
    votes: int = 0  # rows without an annotator on a pair that another such row judges
    replaced: int = 0  # labels over an earlier one of the same annotator that was in the store
    renamed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            f"{self.labels} labels, {self.items} items and {self.annotators} annotators are new",
            f"{self.known} labels were there already",
            *(f"another {old!r} is there, so this one is now {new!r}" for old, new in self.renamed.items()),
        ]
        if self.verdicts:
            parts.append(f"{self.verdicts} verdicts of teachers are new")
        if self.repeated:
            parts.append(f"{self.repeated} rows repeat another row and count once")
        if self.votes:
            parts.append(
                f"{self.votes} rows without an annotator judge a pair that another one judges, too: each is a "
                f"vote of its own, by '{UNNAMED} (2)' and so on"
            )
        if self.replaced:
            parts.append(f"{self.replaced} labels take the place of an earlier one of the same annotator")
        return "\n".join(["; ".join(parts), *self.notes])


def take_in(
    conn: sa.Connection,
    records: Records,
    counts: Counts,
    trust: bool = True,
    only: str | None = None,
    fresh: bool = False,
) -> None:
    """Put the rows that are new into the store of this transaction, and count them.

    `trust`: take pairs, gold, guidelines and everybody's labels as the rows say. `only`: labels of this annotator
    alone. `fresh`: the store had no pair before the files that come together.

    Raises:
        LabError: labels in a name that the rows have no right to, times or overlaps that nobody means, a label that is
            another one here. Nothing may be committed then.
    """
    if only is not None:
        records = _of_one(records, only)
    _moments(records, counts, trust)
    _guidelines(conn, records, counts, trust)
    before = set(conn.execute(sa.select(t.annotators.c.id)).scalars())
    names = _annotators(conn, records, counts)
    _items(conn, records, counts, trust, fresh)
    _labels(conn, records, names, before, counts, trust)
    _verdicts(conn, records, counts, trust)


def insert(conn: sa.Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    for start in range(0, len(rows), CHUNK):
        conn.execute(table.insert(), list(rows[start : start + CHUNK]))


def _in_parts(conn: sa.Connection, query: sa.Select, column: Any, keys: Iterable[str]) -> Iterator[Any]:
    """Rows of the query whose column is among the keys, in the order of the keys, however many these are."""
    wanted = sorted(keys)
    for start in range(0, len(wanted), CHUNK):
        yield from conn.execute(query.where(column.in_(wanted[start : start + CHUNK])))


def free_slots(item: Row, after: int = 0) -> list[Row]:
    """Rows of `slots` with the numbers after this one, up to as many as the item wants annotators."""
    return [
        {"item_id": item["id"], "number": number, "position": item["position"], "state": "free"}
        for number in range(after + 1, item["overlap"] + 1)
    ]


def _of_one(records: Records, name: str) -> Records:
    """The records with the labels of one annotator, and no other annotators."""
    names = sorted({row["name"] for row in records.annotators.values()})
    people = {key: row for key, row in records.annotators.items() if row["name"] == name}
    if not people:
        raise LabError(f"{records.source}: nobody is called {name!r} there; the names are {', '.join(names) or 'none'}")
    labels = {key: row for key, row in records.labels.items() if row["annotator_id"] in people}
    return replace(records, annotators=people, labels=labels, verdicts={})


def _moments(records: Records, counts: Counts, trust: bool) -> None:
    """No time in the future: what is dated 9999 would be the newest for ever."""
    now = t.now()
    parts = (records.annotators, records.guidelines, records.items, records.labels, records.verdicts)
    dated = [row for part in parts for row in part.values()]
    late = [row for row in dated if row["created_at"] > now + SKEW]
    if late and not trust:
        raise LabError(
            f"{records.source}: {len(late)} rows lie in the future ({late[0]['created_at']:%Y-%m-%d}); the "
            "clock of that machine was wrong, or somebody changed them; --trust takes them as of now"
        )
    for row in late:
        row["created_at"] = now
    if late:
        counts.notes.append(f"{records.source}: {len(late)} rows lay in the future and are dated now")
    if any(row["created_at"] < LONG_AGO for row in dated):
        raise LabError(f"{records.source} holds rows from before 1970; correct their created_at")


def _guidelines(conn: sa.Connection, records: Records, counts: Counts, trust: bool) -> None:
    g = t.guidelines.c
    wanted = {version: row if trust else row | {"created_at": LONG_AGO} for version, row in records.guidelines.items()}
    # A version that is named and whose text did not come along.
    for row in (*records.labels.values(), *records.verdicts.values()):
        version = row["guidelines"]
        if version and version not in wanted:
            kind = (records.items.get(row["item_id"]) or {"kind": "helpfulness"})["kind"]
            wanted[version] = {"version": version, "kind": kind, "text": "", "created_at": LONG_AGO}
    known = {row.version: row for row in conn.execute(sa.select(t.guidelines))}
    for version, row in wanted.items():
        there = known.get(version)
        if there and row["text"] and (there.text == "" or row["created_at"] > there.created_at == LONG_AGO):
            new_text = {"text": row["text"], "created_at": row["created_at"]}
            conn.execute(t.guidelines.update().where(g.version == version).values(**new_text))
    new = [row for version, row in wanted.items() if version not in known]
    insert(conn, t.guidelines, new)
    counts.guidelines += len(new)
    if not trust and any(row["text"] for row in new):
        counts.notes.append(f"{records.source}: its guidelines are kept for its labels, and are not in force here")


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


def _items(conn: sa.Connection, records: Records, counts: Counts, trust: bool, fresh: bool) -> None:
    there = conn.execute(sa.select(t.items.c.id, t.items.c.position, t.items.c.overlap)).mappings()
    known = {row["id"]: dict(row) for row in there}
    new = [row for key, row in records.items.items() if key not in known]
    new.sort(key=lambda row: (row["position"], row["id"]))
    if new and known:  # behind those that are there; into an empty store as they were
        last = max(row["position"] for row in known.values())
        new = [row | {"position": position} for position, row in enumerate(new, last + 1)]
    insert(conn, t.items, new)
    secrets = [records.secrets[row["id"]] for row in new]
    gold = sum(row["gold_choice"] is not None for row in secrets)
    if not trust:
        secrets = [
            row | gold_columns(claimed(row["gold"])) | ({"gold": row["gold"]} if fresh else {})
            if row["gold_choice"]
            else row
            for row in secrets
        ]
    insert(conn, t.secrets, secrets)
    counts.items += len(new)
    if trust:
        insert(conn, t.slots, [slot for row in new for slot in free_slots(row)])
        _take_after_all(conn, records, known)
    elif new:
        said = f", {gold} of them gold as the file says" if gold else ""
        counts.notes.append(
            f"{records.source}: {len(new)} pairs are new here{said}; they are shown to nobody else "
            "unless you merge the file with --trust"
        )


def _take_after_all(conn: sa.Connection, records: Records, known: dict[str, Row]) -> None:
    """Queue what came in untrusted before, and let it be gold where it says so."""
    again = set(records.items) & set(known)
    s, g = t.slots.c, t.secrets.c
    held = sa.select(g.item_id).where(g.gold_choice.is_(None), g.gold.is_not(None))
    for row in list(_in_parts(conn, held, g.item_id, again)):
        gold = records.secrets[row.item_id]["gold"]
        if gold and gold["choice"]:
            conn.execute(t.secrets.update().where(g.item_id == row.item_id).values(**gold_columns(gold)))
    count, last = sa.func.count().label("count"), sa.func.max(s.number).label("last")
    taken = sa.select(s.item_id, count, last).group_by(s.item_id)
    slots = {row.item_id: row for row in _in_parts(conn, taken, s.item_id, again)}
    for key in sorted(again):
        missing, after = known[key]["overlap"], 0
        if key in slots:
            missing, after = missing - slots[key].count, slots[key].last
        insert(conn, t.slots, free_slots(known[key] | {"overlap": after + missing}, after))


def _labels(
    conn: sa.Connection, records: Records, names: dict[str, str], before: set[str], counts: Counts, trust: bool
) -> None:
    mapped = {key: row | {"annotator_id": names[row["annotator_id"]]} for key, row in records.labels.items()}
    keys = {*mapped, *(row["supersedes"] for row in mapped.values() if row["supersedes"])}
    there = {row.id: row._mapping for row in _in_parts(conn, sa.select(t.labels), t.labels.c.id, keys)}
    new = {key: row for key, row in mapped.items() if key not in there}
    counts.known += len(mapped) - len(new)
    differ = [key for key in mapped if key in there and not _same(mapped[key], there[key])]
    if differ and not trust:
        raise LabError(
            f"{records.source}: label {differ[0]} is another one here ({len(differ)} such labels): one of "
            "the two was changed after it was made; --trust leaves those here and takes the rest"
        )
    if differ:
        counts.notes.append(f"{records.source}: {len(differ)} labels differ from those here, which stay")
    for row in new.values():
        parent = new.get(row["supersedes"] or "") or there.get(row["supersedes"] or "")
        if parent is None:  # an edit whose earlier version did not come along
            row["supersedes"] = None
        elif whose(parent) != whose(row):
            raise LabError(
                f"{records.source}: label {row['id']} supersedes another annotator's or another item's; "
                "the file was changed; nothing was taken"
            )
    several = Counter(row["annotator_id"] for row in new.values())
    called = dict(conn.execute(sa.select(t.annotators.c.id, t.annotators.c.name)).tuples().all())
    if not trust:
        _check_names(conn, records, sorted(several, key=called.__getitem__), before, called)
    ordered = _parents_first(new, records.source)
    pairs = {whose(row) for row in ordered}
    was = {(item, who): current(conn, who, item) for item, who in pairs if who in before}
    _slots(conn, ordered)
    insert(conn, t.labels, ordered)
    changed: Counter[str] = Counter()
    for item_id, annotator_id in pairs:
        # The slot is as the label in force says, which need not be the one that came in last.
        lab = t.labels.c
        key = current(conn, annotator_id, item_id)
        skipped, left = conn.execute(sa.select(lab.skip_reason, lab.left).where(lab.id == key)).one()
        slot = t.slots.update().where(t.slots.c.item_id == item_id, t.slots.c.annotator_id == annotator_id)
        conn.execute(slot.values(state="done" if skipped is None else "skipped", left=left or 1))
        changed[annotator_id] += was.get((item_id, annotator_id)) not in (None, key)
    counts.labels += len(ordered)
    for who, count in sorted(several.items(), key=lambda pair: called[pair[0]]):
        instead = f", {changed[who]} of them in place of what was in force" if changed[who] else ""
        counts.notes.append(f"{records.source}: {count} labels of {called[who]}{instead}")


def _verdicts(conn: sa.Connection, records: Records, counts: Counts, trust: bool) -> None:
    known = set(conn.execute(sa.select(t.verdicts.c.id)).scalars())
    new = {key: dict(row) for key, row in records.verdicts.items() if key not in known}
    if new and not trust:
        counts.notes.append(
            f"{records.source}: its {len(new)} verdicts of a teacher are not taken; --trust takes them, if you know "
            "that they are a teacher's"
        )
        return
    for row in new.values():
        if row["supersedes"] not in known and row["supersedes"] not in new:
            row["supersedes"] = None
    for row in _parents_first(new, records.source):  # one by one: each refers to what stands before it
        conn.execute(t.verdicts.insert().values(**row))
    counts.verdicts += len(new)


def _same(row: Row, there: Mapping[str, Any]) -> bool:
    return all(row[name] == there[name] for name in ("item_id", "annotator_id", *SAME))


def _check_names(
    conn: sa.Connection, records: Records, names: Sequence[str], before: set[str], called: dict[str, str]
) -> None:
    """Whether a file that anybody may have made adds labels in one name only, where the store knows that name."""
    old = [who for who in names if who in before]
    logins = set(conn.execute(sa.select(t.members.c.annotator_id)).scalars()) if old else set()
    mine = [called[who] for who in old if who in logins]
    if mine:
        raise LabError(
            f"{records.source} adds labels in the name of {mine[0]}, who has a login in this class and "
            "labels there; --trust takes them, if you know that they are from the person of that name"
        )
    if old and len(names) > 1:
        others = [called[who] for who in names if who != old[0]]
        raise LabError(
            f"{records.source} adds labels of {called[old[0]]}, whom this store knows, and of {others[0]}"
            f"{' and others' if len(others) > 1 else ''}: one person's file has labels of one. Take those "
            "of whoever made it with --only NAME, or all with --trust, if you know where it comes from"
        )


def _parents_first(rows: dict[str, Row], source: str) -> list[Row]:
    """Oldest first, and each edit after what it supersedes, whatever the clocks said."""
    ordered: list[Row] = []
    placed: set[str] = set()
    for row in sorted(rows.values(), key=lambda r: (r["created_at"], r["id"])):
        chain: list[Row] = []
        link: Row | None = row
        while link is not None and link["id"] not in placed:
            if link in chain:
                raise LabError(
                    f"{source}: label {link['id']} supersedes itself: the file is damaged; nothing was taken"
                )
            chain.append(link)
            link = rows.get(link["supersedes"])
        for link in reversed(chain):
            placed.add(link["id"])
            ordered.append(link)
    return ordered


def _slots(conn: sa.Connection, labels: Sequence[Row]) -> None:
    """Each label's item counts as given to its annotator: free slots are used up first, then there is one more."""
    s = t.slots.c
    first = {whose(row): row for row in reversed(labels)}
    wanted = {item_id for item_id, _ in first}
    held: set[tuple[str, str]] = set()
    last: dict[str, int] = {}
    for slot in _in_parts(conn, sa.select(t.slots).order_by(s.item_id, s.number), s.item_id, wanted):
        held.add((slot.item_id, slot.annotator_id))
        last[slot.item_id] = slot.number
    # A slot that somebody is being given at this moment is not waited for: there is one more instead.
    open_: dict[str, list[int]] = defaultdict(list)
    free = sa.select(s.item_id, s.number).where(s.state == "free").order_by(s.item_id, s.number)
    for slot in _in_parts(conn, free.with_for_update(skip_locked=True), s.item_id, wanted):
        open_[slot.item_id].append(slot.number)
    positions = dict(conn.execute(sa.select(t.items.c.id, t.items.c.position)).tuples().all())
    for (item_id, annotator_id), row in sorted(first.items(), key=lambda pair: (pair[1]["created_at"], pair[1]["id"])):
        if (item_id, annotator_id) in held:
            continue
        values = {"annotator_id": annotator_id, "left": row["left"] or 1, "state": "done"}
        if open_.get(item_id):
            slot = t.slots.update().where(s.item_id == item_id, s.number == open_[item_id].pop(0))
            conn.execute(slot.values(**values))
        else:
            last[item_id] = last.get(item_id, 0) + 1
            new = {"item_id": item_id, "number": last[item_id], "position": positions[item_id]}
            conn.execute(t.slots.insert().values(**new, **values))
