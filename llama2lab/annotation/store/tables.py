"""The tables of the annotation store, the same on SQLite and PostgreSQL.

`labels` and `verdicts` are append-only: an edit is a new row that supersedes the old one. What annotators must not see
(the models' names, the known answers of gold items) is in `secrets`, a table that their database roles cannot read.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator

from llama2lab.engine.scale import GRADES

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)  # of guidelines that are never in force
VERSION_TABLE = "llama2lab_version"
SCHEMA = "0005"  # the newest migration in migrations/versions; a test holds that it is

# Characters that a database or a Parquet file cannot hold: U+0000 (PostgreSQL), lone surrogates (not UTF-8), and the
# sign we write them with. Each is stored as U+001A and four hex digits, so that any Python string comes back as it was.
_UNSTORABLE = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")


def escape(text: str) -> str:
    return _UNSTORABLE.sub(lambda m: f"\x1a{ord(m[0]):04x}", text)


def unescape(text: str) -> str:
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), text)


def now() -> datetime:
    return datetime.now(UTC)


class AnyText(TypeDecorator[str]):
    """Any Python string, unchanged."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else escape(value)

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else unescape(value)


class Json(TypeDecorator[Any]):
    """JSON as ASCII text: every character survives on both databases, and NULL stays None."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else json.dumps(value, allow_nan=False)

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        return None if value is None else json.loads(value)


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite, which knows no time zones, gets it without one."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(v) for v in values)})"


metadata = sa.MetaData()

annotators = sa.Table(
    "annotators",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("vendor", sa.Text, nullable=False, default=""),
    sa.Column("created_at", UtcTime, nullable=False, default=now),
    sa.CheckConstraint(one_of("kind", ("person", "simulated")), name="annotators_kind"),
)

guidelines = sa.Table(
    "guidelines",
    metadata,
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("text", AnyText, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False, default=now),
)

# Which database role is which annotator (PostgreSQL, classroom.py).
members = sa.Table(
    "members",
    metadata,
    sa.Column("role", sa.Text, primary_key=True),
    sa.Column("annotator_id", sa.ForeignKey("annotators.id"), nullable=False, unique=True),
)

# The codes by which visitors of `llama2lab annotate` are known again (codes.py); no annotator's login sees them.
codes = sa.Table(
    "codes",
    metadata,
    sa.Column("annotator_id", sa.ForeignKey("annotators.id"), primary_key=True),
    sa.Column("hash", sa.Text, nullable=False),  # salted
    sa.Column("tries", sa.Integer, nullable=False, default=0),  # wrong ones since the last right one
    sa.Column("tried_at", UtcTime),
)

items = sa.Table(
    "items",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("prompt", Json, nullable=False),
    sa.Column("answer_1", AnyText, nullable=False),
    sa.Column("answer_2", AnyText, nullable=False),
    sa.Column("prompt_id", AnyText, nullable=False, default=""),
    sa.Column("overlap", sa.Integer, nullable=False),  # how many annotators; 0 is everybody (gold)
    sa.Column("position", sa.Integer, nullable=False),  # in the queue
    sa.Column("created_at", UtcTime, nullable=False, default=now),
    sa.CheckConstraint(one_of("kind", ("helpfulness", "safety")), name="items_kind"),
    sa.Index("items_position", "position"),
)

secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("item_id", sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("model_1", AnyText),
    sa.Column("model_2", AnyText),
    sa.Column("meta", Json),
    sa.Column("gold", Json),
    # What `gold` says, where SQL can compare it; grades as ",significantly,better,", "" where any will do.
    sa.Column("gold_choice", sa.Integer),
    sa.Column("gold_grades", sa.Text, nullable=False, default=""),
    sa.Column("gold_safe_1", sa.Boolean),
    sa.Column("gold_safe_2", sa.Boolean),
    sa.Index(
        "secrets_gold",
        "item_id",
        sqlite_where=sa.text("gold_choice IS NOT NULL"),
        postgresql_where=sa.text("gold_choice IS NOT NULL"),
    ),
)

# One row for each wanted annotator of an item, so that overlap is exact by construction. An expired lease is free.
slots = sa.Table(
    "slots",
    metadata,
    sa.Column("item_id", sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),  # the item's, for the queue's index
    sa.Column("annotator_id", sa.ForeignKey("annotators.id")),
    sa.Column("left", sa.Integer),  # which answer stands left; drawn at the claim
    sa.Column("leased_until", UtcTime),
    sa.Column("state", sa.String(8), nullable=False, default="free"),
    sa.UniqueConstraint("item_id", "annotator_id", name="slots_once"),
    sa.CheckConstraint(one_of("state", ("free", "leased", "done", "skipped")), name="slots_state"),
    sa.CheckConstraint("(state = 'free') = (annotator_id IS NULL)", name="slots_holder"),
    sa.CheckConstraint('"left" IN (1, 2)', name="slots_left"),
    sa.Index(
        "slots_open",
        "position",
        "number",
        sqlite_where=sa.text("state IN ('free', 'leased')"),
        postgresql_where=sa.text("state IN ('free', 'leased')"),
    ),
    sa.Index("slots_mine", "annotator_id", "state"),
)

labels = sa.Table(
    "labels",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("item_id", sa.String(32), nullable=False),
    sa.Column("annotator_id", sa.String(32), nullable=False),
    sa.Column("choice", sa.Integer),  # of the item's answers, not the side
    sa.Column("grade", sa.String(16)),
    sa.Column("safe_1", sa.Boolean),
    sa.Column("safe_2", sa.Boolean),
    sa.Column("comment", AnyText, nullable=False, default=""),
    sa.Column("flag", sa.Boolean, nullable=False, default=False),
    sa.Column("skip_reason", AnyText),
    sa.Column("seconds", sa.Double, nullable=False, default=0.0),
    sa.Column("left", sa.Integer),  # NULL where a label came from elsewhere and nobody recorded it
    sa.Column("guidelines", sa.ForeignKey("guidelines.version")),
    sa.Column("supersedes", sa.String(64)),
    sa.Column("created_at", UtcTime, nullable=False, default=now),
    # Only who was given the item can label it, and nobody can supersede another's label.
    sa.ForeignKeyConstraint(["item_id", "annotator_id"], ["slots.item_id", "slots.annotator_id"], name="labels_slot"),
    sa.ForeignKeyConstraint(
        ["supersedes", "item_id", "annotator_id"],
        ["labels.id", "labels.item_id", "labels.annotator_id"],
        name="labels_own",
    ),
    sa.UniqueConstraint("id", "item_id", "annotator_id", name="labels_key"),
    sa.CheckConstraint("(skip_reason IS NULL) = (choice IS NOT NULL)", name="labels_choice_or_skip"),
    sa.CheckConstraint("(choice IS NULL) = (grade IS NULL)", name="labels_choice_and_grade"),
    sa.CheckConstraint("choice IN (1, 2)", name="labels_choice"),
    sa.CheckConstraint(one_of("grade", GRADES), name="labels_grade"),
    sa.CheckConstraint('"left" IN (1, 2)', name="labels_left"),
    sa.CheckConstraint("seconds >= 0 AND seconds < 1e300", name="labels_seconds"),  # neither infinite nor NaN
    sa.Index("labels_item", "item_id", "annotator_id"),
    sa.Index("labels_annotator", "annotator_id"),
    sa.Index("labels_supersedes", "supersedes"),
)

# What a teacher decided on a pair about which people disagree; append-only, too. No label: it has seen the labels that
# it decides on, and these stay as they are.
verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("item_id", sa.ForeignKey("items.id"), nullable=False),
    sa.Column("teacher", sa.Text, nullable=False),  # the name as it was given
    sa.Column("login", sa.Text, nullable=False, default=""),  # who was connected, as PostgreSQL knows it
    sa.Column("choice", sa.Integer),  # NULL: neither answer is better, the pair trains nothing
    sa.Column("grade", sa.String(16)),
    sa.Column("safe_1", sa.Boolean),
    sa.Column("safe_2", sa.Boolean),
    sa.Column("reason", AnyText, nullable=False, default=""),
    sa.Column("labels", Json, nullable=False),  # ids of the labels that were in force when it was decided
    sa.Column("guidelines", sa.ForeignKey("guidelines.version")),
    sa.Column("supersedes", sa.String(64)),
    sa.Column("created_at", UtcTime, nullable=False, default=now),
    sa.UniqueConstraint("id", "item_id", name="verdicts_key"),
    sa.ForeignKeyConstraint(["supersedes", "item_id"], ["verdicts.id", "verdicts.item_id"], name="verdicts_own"),
    sa.CheckConstraint("(choice IS NULL) = (grade IS NULL)", name="verdicts_choice_and_grade"),
    sa.CheckConstraint("choice IN (1, 2)", name="verdicts_choice"),
    sa.CheckConstraint(one_of("grade", GRADES), name="verdicts_grade"),
    sa.Index("verdicts_item", "item_id"),
)
