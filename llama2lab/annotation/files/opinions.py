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
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.files.records import Records
from llama2lab.annotation.files.taking_in import UNNAMED, Counts, take_in
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.in_force import current_labels

SAYS = ("choice", "grade", "safe_1", "safe_2")  # what makes two labels of one pair the same


@dataclass
class Opinion:
    """A label of others, before it is known whose it is."""

    where: str
    person: dict[str, Any]  # the annotator; id and name are "" where none is given
    dated: bool
    label: dict[str, Any]  # without annotator
    edit: bool = False  # one of several different opinions, with times

    @property
    def who(self) -> str:
        return self.person["id"] or self.person["name"]

    @property
    def item_id(self) -> str:
        return self.label["item_id"]

    @property
    def says(self) -> tuple[Any, ...]:
        return tuple(self.label[name] for name in SAYS)


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
            wrong.append(
                f"{other.where}: {other.person['name']!r} judges this pair otherwise than in {mine[0].where}; "
                "leave one of them out, or give both a created_at"
            )
        for one in mine:
            one.edit = other is not None
    return wrong


def find_ties(records: Records) -> list[str]:
    """Labels of one annotator that say different things of a pair at the same moment: neither could be in force."""
    superseded = {row["supersedes"] for row in records.labels.values()}
    newest: dict[tuple[str, str, Any], dict[str, Any]] = {}
    wrong = []
    for key, row in records.labels.items():
        if key not in superseded:
            other = newest.setdefault((row["item_id"], row["annotator_id"], row["created_at"]), row)
            if (other["choice"], other["grade"]) != (row["choice"], row["grade"]):
                wrong.append(
                    f"{records.source}: labels {other['id']} and {key} are of one annotator, pair and moment, "
                    "and say different things; leave one of them out"
                )
    return wrong


def write(conn: sa.Connection, old: Records, opinions: Sequence[Opinion]) -> Counts:
    """Records and opinions into the store of this transaction. Both stay as they are: a transaction that other writers
    undid is tried again."""
    counts = Counts()
    records = replace(old, annotators=dict(old.annotators), labels=dict(old.labels))
    in_force, ids = _labels_there(conn) if opinions else ({}, {})
    here: dict[tuple[str, str], set[str]] = defaultdict(set)  # ids of labels that this import gives somebody
    for one in sorted(opinions, key=lambda one: one.label["created_at"]):  # in the file's order, where undated
        who, number = one.who or UNNAMED, 1
        there = in_force.get((who, one.item_id), {})
        while not one.who and (here[who, one.item_id] or (there and one.says not in there)):
            number += 1
            who = f"{UNNAMED} ({number})"
            there = in_force.get((who, one.item_id), {})
        person = one.person | {"id": one.person["id"] or short("annotator", who), "name": one.person["name"] or who}
        moment = (one.label["created_at"].isoformat(),) if one.edit else ()
        key = there.get(one.says) or _label_id(one.label, person["id"], *moment)
        if key in ids and one.says not in there:  # the id was given to the same choice with other marks, or earlier
            key = key if one.says == ids[key] else _label_id(one.label, person["id"], *moment, str(one.says[2:]))
        if key in here[who, one.item_id]:
            counts.repeated += 1
            continue
        here[who, one.item_id].add(key)
        counts.votes += number > 1
        counts.replaced += bool(there) and one.says not in there and key not in ids
        records.add_annotator(person, one.where, by_name=not one.person["id"])
        records.labels[key] = one.label | {"id": key, "annotator_id": person["id"]}
    records.check_whole()
    take_in(conn, records, counts)
    return counts


def _labels_there(conn: sa.Connection) -> tuple[dict[tuple[str, str], dict[tuple, str]], dict[str, tuple]]:
    """The labels in force in the store: by annotator (name, and id too) and item what they say and their id; and what
    every label says, by id."""
    in_force = set(conn.execute(current_labels()).scalars())
    found: dict[tuple[str, str], dict[tuple, str]] = defaultdict(dict)
    ids: dict[str, tuple] = {}
    lab, a = t.labels.c, t.annotators.c
    said = sa.select(lab.id, lab.item_id, lab.annotator_id, a.name, *(lab[name] for name in SAYS))
    for row in conn.execute(said.join(t.annotators, a.id == lab.annotator_id)):
        ids[row.id] = tuple(getattr(row, name) for name in SAYS)
        if row.id in in_force:
            for who in (row.name, row.annotator_id):
                found[who, row.item_id][ids[row.id]] = row.id
    return found, ids


def short(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _label_id(label: dict[str, Any], person: str, *more: str) -> str:
    return short("label", label["item_id"], person, label["grade"], str(label["choice"]), *more)
