"""Several rows of others on one pair: whose they are, and what becomes of them. Nothing is overruled in silence.

Without an annotator, each row is the label of somebody of their own, "imported", "imported (2)" and so on, also beside
what earlier imports brought: so training counts them as votes, and a tie is a tie. Of a named annotator, equal rows are
one label, different ones with times are edits, and without times a mistake. An opinion that replaces an earlier one of
the same annotator in the store is counted. The same rows imported again add nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.files import records as r
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import ID, check_moment
from llama2lab.annotation.store.in_force import current_labels
from llama2lab.annotation.store.store import clean_name
from llama2lab.engine.errors import LabError
from llama2lab.engine.validation import shown

UNNAMED = "imported"  # the annotator of rows that name none


@dataclass
class Imported(r.Counts):
    """What came in, and what became of rows of others that judge one pair several times."""

    repeated: int = 0  # rows that say again what another one says
    votes: int = 0  # rows without an annotator on a pair that another such row judges
    replaced: int = 0  # labels over an earlier one of the same annotator that was in the store

    def __str__(self) -> str:
        said = super().__str__()
        if self.repeated:
            said += f"; {self.repeated} rows repeat another row and count once"
        if self.votes:
            said += (f"; {self.votes} rows without an annotator judge a pair that another one judges, too: each is a "
                     f"vote of its own, by '{UNNAMED} (2)' and so on")
        if self.replaced:
            said += f"; {self.replaced} labels take the place of an earlier one of the same annotator"
        return said


@dataclass
class Opinion:
    """A label of others, before it is known whose it is."""

    where: str
    item_id: str
    person: str  # the annotator's id, "" where none is given
    name: str  # "" where none is given
    kind: str
    vendor: str
    since: Any  # when the annotator was first seen
    dated: bool
    label: dict[str, Any]
    edit: bool = False  # one of several different opinions, with times

    @property
    def who(self) -> str:
        return self.person or self.name

    @property
    def says(self) -> tuple[Any, ...]:
        return tuple(self.label[name] for name in ("choice", "grade", "safe_1", "safe_2"))


def find_edits(opinions: Sequence[Opinion]) -> list[str]:
    """Marks the histories: a named annotator has one opinion of a pair, or several with times. What is neither, in
    words that name both rows."""
    wrong = []
    several: dict[tuple[str, str], list[Opinion]] = defaultdict(list)
    for one in opinions:
        if one.who:
            several[one.who, one.item_id].append(one)
    for mine in several.values():
        other = next((one for one in mine if one.says != mine[0].says), None)
        if other and len({one.label["created_at"] for one in mine if one.dated}) < len(mine):
            wrong.append(f"{other.where}: {other.name!r} judges this pair otherwise than in {mine[0].where}; leave one "
                         "of them out, or give both a created_at")
        for one in mine:
            one.edit = other is not None
    return wrong


def find_ties(records: r.Records) -> list[str]:
    """Labels of one annotator that say different things of a pair at the same moment: neither could be in force."""
    superseded = {row["supersedes"] for row in records.labels.values()}
    newest: dict[tuple[str, str, Any], dict[str, Any]] = {}
    wrong = []
    for key, row in records.labels.items():
        if key not in superseded:
            other = newest.setdefault((row["item_id"], row["annotator_id"], row["created_at"]), row)
            if (other["choice"], other["grade"]) != (row["choice"], row["grade"]):
                wrong.append(f"{records.source}: labels {other['id']} and {key} are of one annotator, pair and moment, "
                             "and say different things; leave one of them out")
    return wrong


def write(conn: sa.Connection, old: r.Records, opinions: Sequence[Opinion]) -> Imported:
    """Records and opinions into the store of this transaction. Both stay as they are: a transaction that other writers
    undid is tried again."""
    counts = Imported()
    records = r.Records(old.source, dict(old.annotators), old.guidelines, old.items, old.secrets, dict(old.labels))
    in_force, ids = _labels_there(conn) if opinions else ({}, {})
    here: dict[tuple[str, str], set[str]] = defaultdict(set)  # ids of labels that this import gives somebody
    for one in sorted(opinions, key=lambda one: one.label["created_at"]):  # in the file's order, where undated
        who, number = one.who or UNNAMED, 1
        there = in_force.get((who, one.item_id), {})
        while not one.who and (here[who, one.item_id] or (there and one.says not in there)):
            number += 1
            who = f"{UNNAMED} ({number})"
            there = in_force.get((who, one.item_id), {})
        person = one.person or short("annotator", who)
        moment = (one.label["created_at"].isoformat(),) if one.edit else ()
        key = there.get(one.says) or label_id(one.label, person, *moment)
        if key in ids and one.says not in there:  # the id was given to the same choice with other marks, or earlier
            key = key if one.says == ids[key] else label_id(one.label, person, *moment, str(one.says[2:]))
        if key in here[who, one.item_id]:
            counts.repeated += 1
            continue
        here[who, one.item_id].add(key)
        counts.votes += number > 1
        counts.replaced += bool(there) and one.says not in there and key not in ids
        add_annotator(records, person, one.name or who, one.kind, one.vendor, one.since, one.where,
                       by_name=not one.person)
        records.labels[key] = one.label | {"id": key, "annotator_id": person}
    r.check_whole(records)
    for name, value in vars(r.take_in(conn, records)).items():
        setattr(counts, name, value)
    return counts


def _labels_there(conn: sa.Connection) -> tuple[dict[tuple[str, str], dict[tuple, str]], dict[str, tuple]]:
    """The labels in force in the store: by annotator (name, and id too) and item what they say and their id; and what
    every label says, by id."""
    lab, a = t.labels.c, t.annotators.c
    in_force = set(conn.execute(current_labels()).scalars())
    found: dict[tuple[str, str], dict[tuple, str]] = defaultdict(dict)
    ids: dict[str, tuple] = {}
    for row in conn.execute(sa.select(lab.id, lab.item_id, lab.annotator_id, a.name, lab.choice, lab.grade, lab.safe_1,
                                      lab.safe_2).join(t.annotators, a.id == lab.annotator_id)):
        ids[row.id] = (row.choice, row.grade, row.safe_1, row.safe_2)
        if row.id in in_force:
            for who in (row.name, row.annotator_id):
                found[who, row.item_id][ids[row.id]] = row.id
    return found, ids


def short(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def label_id(label: dict[str, Any], person: str, *more: str) -> str:
    return short("label", label["item_id"], person, label["grade"], str(label["choice"]), *more)


def clean(name: Any, where: str) -> str:
    try:
        return clean_name(name)
    except LabError as e:
        raise LabError(f"{where}: annotator: {e}") from e


def add_annotator(records: r.Records, key: Any, name: Any, kind: Any, vendor: Any, created_at: Any, where: str,
                   by_name: bool = False) -> None:
    if not isinstance(key, str) or not ID.fullmatch(key) or len(key) > 32:
        raise LabError(f"{where}: an annotator's id has up to 32 letters and digits, not {shown(key)}")
    if not isinstance(name, str) or kind not in ("person", "simulated") or not isinstance(vendor, str):
        raise LabError(f"{where}: an annotator has a name, a vendor, and is a person or simulated")
    new = {"id": key, "name": clean(name, where), "kind": kind, "vendor": clean(vendor, where) if vendor else "",
           "by_name": by_name, "created_at": check_moment(created_at, "annotator_created_at", where)}
    known = records.annotators.setdefault(key, new)
    if any(known[part] != new[part] for part in ("name", "kind", "vendor")):
        raise LabError(f"{where}: annotator {key} is {known['name']!r} in another row")
