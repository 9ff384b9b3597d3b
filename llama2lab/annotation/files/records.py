"""The rows of a store outside of it, by their ids (an item's is that of its content), each checked when it is added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import (
    MAX_TEXT,
    AnnotatorRow,
    GuidelinesRow,
    ItemRow,
    check_label,
    check_verdict,
    checked,
    guidelines_version,
)
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.validation import shown

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
    verdicts: dict[str, Row] = field(default_factory=dict)

    def add_annotator(self, row: Row, where: str, by_name: bool = False) -> None:
        new = checked(AnnotatorRow, row, where).model_dump() | {"by_name": by_name}
        known = self.annotators.setdefault(new["id"], new)
        if any(known[part] != new[part] for part in ("name", "kind", "vendor")):
            raise LabError(f"{where}: annotator {new['id']} is {known['name']!r} in another row")

    def add_guidelines(self, row: Row, where: str) -> Row:
        new = checked(GuidelinesRow, row, where).model_dump()
        return self.guidelines.setdefault(new["version"], new)

    def add_item(self, row: Row, where: str) -> Row:
        """The row of `items`; its secrets are kept beside it."""
        given = checked(ItemRow, row, where)
        item, secret = given.rows()
        if given.item_id not in (None, item["id"]):
            raise LabError(f"{where}: item_id: its id is not that of its content; one of them was changed")
        item |= {"overlap": given.overlap, "position": given.position, "created_at": given.item_created_at}
        self.secrets.setdefault(item["id"], secret)
        return self.items.setdefault(item["id"], item)

    def add_label(self, row: Row, kind: str, where: str) -> None:
        new = check_label(row, kind, where)
        if self.labels.setdefault(new["id"], new) != new:
            raise LabError(f"{where}: label {new['id']} is another one in another row")

    def add_verdict(self, row: Row, kind: str, where: str) -> None:
        new = check_verdict(row, kind, where)
        if self.verdicts.setdefault(new["id"], new) != new:
            raise LabError(f"{where}: verdict {new['id']} is another one in another row")

    def check_whole(self) -> None:
        """LabError for labels whose item or annotator is in no row, or that supersede what is not their annotator's;
        and for verdicts without their item."""
        for key, verdict in self.verdicts.items():
            if verdict["item_id"] not in self.items:
                raise LabError(
                    f"{self.source}: verdict {key} is on an item that is not there; import FILE and FILE.rest together"
                )
            before = self.verdicts.get(verdict["supersedes"] or "")
            if before and before["item_id"] != verdict["item_id"]:
                raise LabError(f"{self.source}: verdict {key} supersedes another item's")
        for key, label in self.labels.items():
            if label["item_id"] not in self.items or label["annotator_id"] not in self.annotators:
                raise LabError(
                    f"{self.source}: label {key} belongs to an item or an annotator that is not there; "
                    "import FILE and FILE.rest together"
                )
            parent = self.labels.get(label["supersedes"] or "")
            if parent and whose(parent) != whose(label):
                raise LabError(f"{self.source}: label {key} supersedes another annotator's or another item's")


def whose(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["item_id"], row["annotator_id"]


def read(conn: sa.Connection, source: str) -> Records:
    """All rows of a store."""
    found = Records(source)
    for table in (t.annotators, t.guidelines, t.items, t.secrets, t.labels, t.verdicts):
        (key,) = table.primary_key.columns.keys()
        rows = conn.execute(sa.select(table)).mappings()
        getattr(found, table.name).update({row[key]: dict(row) for row in rows})
    for row in found.secrets.values():  # what is handed out to nobody is no gold elsewhere either
        if row["gold"] and row["gold"]["choice"] and not row["gold_choice"]:
            row["gold"] = claimed(row["gold"])
    return found


def renamed(item: Row) -> Row:
    """A row of `items` as ItemRow takes it."""
    answers = [item.get("answer_1"), item.get("answer_2")]
    return item | {"item_id": item.get("id"), "answers": answers, "item_created_at": item.get("created_at")}


def claimed(gold: Any) -> Any:
    return {"choice": None, "claimed": gold}


def check(found: Records) -> Records:
    """The rows of somebody else's file, whose database may have let anything pass; without what we do not know."""
    records, where = Records(found.source), found.source
    try:
        for item in found.items.values():
            place = f"{where} item {item['id']}"
            secret = found.secrets.get(item["id"]) or {}
            models = [secret.get("model_1"), secret.get("model_2")]
            records.add_item(
                renamed(item) | {"gold": secret.get("gold"), "meta": secret.get("meta"), "models": models}, place
            )
            texts = (item["prompt_id"], item["answer_1"], item["answer_2"], *(m["content"] for m in item["prompt"]))
            if max(map(len, (*texts, *(model or "" for model in models)))) > MAX_TEXT:
                raise LabError(f"{place}: a text is longer than {MAX_TEXT:,} characters")
        for person in found.annotators.values():
            records.add_annotator(person, where)
            if any(records.annotators[person["id"]][part] != person[part] for part in ("name", "vendor")):
                raise LabError(f"{where}: the annotator's name {person['name']!r} is not one line")
        for row in found.guidelines.values():
            records.add_guidelines(row, where)
            if row["text"] and guidelines_version(row["kind"], row["text"]) != row["version"]:
                raise LabError(f"{where}: the guidelines {row['version']} are not what they were; they were changed")
        for label in found.labels.values():
            kind = records.items[label["item_id"]]["kind"] if label["item_id"] in records.items else ""
            records.add_label(label, kind, f"{where} label {shown(label['id'])}")
        for verdict in found.verdicts.values():
            kind = records.items[verdict["item_id"]]["kind"] if verdict["item_id"] in records.items else ""
            records.add_verdict(verdict, kind, f"{where} verdict {shown(verdict['id'])}")
        records.check_whole()
    except (TypeError, KeyError, AttributeError) as e:
        raise LabError(f"{where} holds rows that are none of an annotation store's ({first_line(e)})") from e
    return records
