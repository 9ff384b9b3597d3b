"""Preferences from files and data sets, checked row by row: what exporting.py wrote, or others' files.

A row of others says what its author knew: prompt, chosen and rejected in any shape of dialogues.pair_of, and a grade,
or a margin of a table that the user states. Several rows on one pair: see opinions.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo
from sqlalchemy.exc import IntegrityError

from llama2lab.annotation.files import opinions as op
from llama2lab.annotation.files.exporting import rest_of
from llama2lab.annotation.files.records import Records, renamed
from llama2lab.annotation.files.taking_in import UNNAMED, Counts
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import (
    MAX_SECONDS,
    AnnotatorRow,
    Answer,
    Grade,
    Id,
    Moment,
    Overlap,
    PersonId,
    Position,
    Row,
    check_label,
    check_slots,
    checked,
    tidy,
)
from llama2lab.annotation.store.store import Store
from llama2lab.engine.dialogues import SAFETY, Malformed, is_dialogue, pair_of
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.rows import Record, Unreadable, complaint, ending_of, json_lines, rows_of
from llama2lab.engine.scale import GRADES, MARGINS
from llama2lab.engine.validation import shown, strict_json

if TYPE_CHECKING:
    import datasets

TABLES = ("annotators", "guidelines", "items", "labels", "verdicts")
ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
CLOSE = 0.006  # margins are written with two decimals, too
Where = tuple[str, Record | str]  # a place and the row there, or why there is none


def _json_text(text: Any, info: ValidationInfo) -> Any:
    if text is None:
        return None
    if not isinstance(text, str):
        raise LabError(f"{info.field_name} is a JSON text, not {shown(text)}")
    try:
        return strict_json(text, halves=True)
    except ValueError as e:
        raise LabError(f"{info.field_name} is a JSON text ({e})") from e


JsonText = Annotated[Any, BeforeValidator(_json_text)]


class Known(Row):
    """What a row may say of its item beside the pair."""

    item_id: Any = None
    prompt_id: Any = None
    models: Any = None
    gold: JsonText = None
    meta: JsonText = None


class Theirs(Known):
    """What a row of preferences may hold besides prompt, chosen and rejected."""

    grade: Grade | None = None
    margin: Any = None
    safety: Annotated[Literal[tuple(SAFETY)], BeforeValidator(tidy)] = ""  # type: ignore[valid-type]
    kind: Annotated[Literal["helpfulness", "safety"], BeforeValidator(tidy)] = "helpfulness"
    annotator: str = ""
    annotator_id: PersonId | None = None
    annotator_kind: Annotated[Literal["person", "simulated"], BeforeValidator(tidy)] | None = None
    annotator_created_at: Moment | None = None
    vendor: str = ""
    label_id: Id | None = None
    choice: Answer | None = None
    left: Answer | None = None
    safe_1: bool | None = None
    safe_2: bool | None = None
    comment: str = ""
    flag: bool = False
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 0.0
    guidelines: Id | None = None
    supersedes: Id | None = None
    created_at: Moment | None = None
    overlap: Overlap = 1
    position: Position | None = None
    item_created_at: Moment | None = None


class Cells(Theirs):
    """The same from CSV, where all is text: "1" is a number there."""

    model_config = ConfigDict(strict=False, extra="ignore")


@dataclass
class Reading:
    """Everything that a source holds, checked, before anything is written."""

    records: Records
    margins: dict[str, float] | None
    annotator_kind: str
    now: datetime
    opinions: list[op.Opinion] = field(default_factory=list)


def import_preferences(
    store: Store,
    source: str | os.PathLike[str] | datasets.Dataset | datasets.DatasetDict,
    annotator_kind: str = "person",
    margins: str | None = None,
) -> Counts:
    """Take in what was exported, or another file of preferences (prompt, chosen, rejected, and grade or margin).

    All rows or none: rows that are malformed are counted, and named by file and line. `annotator_kind` is for rows that
    do not say whether a person or a simulated annotator made them. `margins` says what a margin without a grade means:
    "small", "large", or four numbers for significantly, better, slightly, negligibly.
    """
    if annotator_kind not in ("person", "simulated"):
        raise LabError(f"annotators are of kind 'person' or 'simulated', not {annotator_kind!r}")
    table = None if margins is None else _table_of(margins)
    rest: Iterator[Where] | list[Where] = []
    if isinstance(source, (str, os.PathLike)):
        file = Path(os.path.expanduser(source))
        name, rows, csv = str(file), _placed(file, rows_of(file, ENDINGS)), ending_of(file, ENDINGS) == ".csv"
        if rest_of(file).exists():
            rest = _placed(rest_of(file), json_lines(rest_of(file)))
    else:
        name, csv, (rows, rest) = "the data set", False, _rows_of_dataset(source)
    reading = Reading(Records(name), table, annotator_kind, t.now())
    wrong: list[str] = []
    reasons: set[str] = set()
    total = 0
    for take, several in ((_take_rest, rest), (partial(_take_pair, csv=csv), rows)):
        for where, row in several:
            total += 1
            if isinstance(row, str):
                wrong.append(f"{where}: {row}")
                reasons.add(row)
            else:
                _try(wrong, partial(take, reading, row, where))
    if not wrong:
        _try(wrong, partial(check_slots, [item["overlap"] for item in reading.records.items.values()], name))
        wrong += [*op.find_edits(reading.opinions), *op.find_ties(reading.records)]
    if wrong:
        raise complaint(wrong, total, "nothing was imported", reasons)
    try:
        return store.write(lambda conn: op.write(conn, reading.records, reading.opinions))
    except IntegrityError as e:
        raise LabError(
            f"{name}: a row contradicts what is in the store, such as a label that supersedes another "
            f"annotator's ({first_line(e.orig or e)}); nothing was imported"
        ) from e


def _try(wrong: list[str], work: Callable[[], object]) -> None:
    try:
        work()
    except LabError as e:
        wrong.append(str(e))


def _table_of(margins: str) -> dict[str, float]:
    """A table of margins by grade, in which each margin means one grade."""
    if margins in MARGINS and margins != "none":
        return MARGINS[margins]
    try:
        numbers = [float(part) for part in margins.split(",")]
    except ValueError:
        numbers = []
    apart = all(abs(a - b) > 2 * CLOSE for i, a in enumerate(numbers) for b in numbers[:i])
    if len(numbers) != len(GRADES) or not all(map(math.isfinite, numbers)) or not apart:
        raise LabError(
            "margins are small or large (the report's Table 27), or four different numbers for "
            f"{', '.join(GRADES)}, such as 4,3,2,1; not {margins!r}"
        )
    return dict(zip(GRADES, numbers, strict=True))


# ---- rows with their places ----------------------------------------------------------------------------------------


def _placed(file: Path, rows: Iterator[tuple[int, Record | str]]) -> Iterator[Where]:
    word = "row" if file.suffix == ".parquet" else "line"
    return ((f"{file} {word} {number}", row) for number, row in rows)


def _rows_of_dataset(source: Any) -> tuple[Iterator[Where], list[Where]]:
    splits = dict(source) if isinstance(source, dict) else {"train": source}
    rest: list[Where] = [(f"split rest row {n}", row) for n, row in enumerate(splits.pop("rest", []), 1)]
    return ((f"split {name} row {n}", row) for name, rows in splits.items() for n, row in enumerate(rows, 1)), rest


def _unplain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unplain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_unplain(v) for v in value]
    return t.unescape(value) if isinstance(value, str) else value


def _take_rest(reading: Reading, line: Any, where: str) -> None:
    row = line.get("row")
    try:
        row = strict_json(row, halves=True) if isinstance(row, str) else row
    except ValueError as e:
        raise LabError(f"{where}: row is a JSON text ({e})") from e
    if line.get("table") not in TABLES or not isinstance(row, dict):
        raise LabError(f"{where} is no row of {', '.join(TABLES)}")
    row, records = _unplain(row), reading.records
    if line["table"] == "annotators":
        records.add_annotator(row, where)
    elif line["table"] == "guidelines":
        moment = records.add_guidelines(row, where)["created_at"]
        if (moment - reading.now).days >= 1:
            raise LabError(
                f"{where}: these guidelines are dated {moment:%Y-%m-%d}, so they would be in force over "
                "all others; correct created_at"
            )
    elif line["table"] == "items":
        item = renamed(row)
        records.add_item(item | checked(Known, item, where).model_dump(), where)
    elif line["table"] == "verdicts":
        records.add_verdict(row, "", where)
    else:
        records.add_label(row, "", where)


def _take_pair(reading: Reading, row: Record, where: str, csv: bool) -> None:
    row = {key: value for key, value in row.items() if value is not None and not (csv and value == "")}
    exported = "label_id" in row  # texts are escaped as in the store, and may be anything
    if exported:
        row = _unplain(row)
    missing = [name for name in ("prompt", "chosen", "rejected") if name not in row]
    if missing and (missing != ["prompt"] or not is_dialogue(row["chosen"])):
        raise LabError(f"{where}: {', '.join(missing)} is missing")
    for name in ("prompt", "chosen", "rejected"):
        if isinstance(row.get(name), Unreadable):
            raise LabError(f"{where}: {name} cannot be read ({row[name].why})")
    try:
        prompt, *answers = pair_of(row.get("prompt"), row["chosen"], row["rejected"], strip=False, blank=exported)
    except Malformed as e:
        what = "both answers are the same; leave the pair out" if str(e) == "equal sides" else e
        raise LabError(f"{where}: {what}") from e
    given: Theirs = checked(Cells if csv else Theirs, row, where)
    # A file of others does not say which answer came first; to say "the chosen one" would make 1 always the better.
    first, second = (hashlib.sha256(a.encode("utf-8", "surrogatepass")).digest() for a in answers)
    choice = given.choice or (1 if first < second else 2)
    safe = SAFETY[given.safety][:: 1 if choice == 1 else -1]
    records, now = reading.records, reading.now
    item = records.add_item(
        given.model_dump()
        | {
            "prompt": prompt,
            "answers": answers[:: 1 if choice == 1 else -1],
            "item_created_at": given.item_created_at or now,
            "position": len(records.items) + 1 if given.position is None else given.position,
        },
        where,
    )
    label = given.model_dump(include={"left", "comment", "flag", "seconds", "guidelines", "supersedes"}) | {
        "id": given.label_id or "none",
        "item_id": item["id"],
        "annotator_id": "none",
        "choice": choice,
        "skip_reason": None,
        "created_at": given.created_at or now,
        "grade": _grade(given, None if exported and given.grade else reading.margins, csv, where),
        "safe_1": safe[0] if given.safe_1 is None else given.safe_1,
        "safe_2": safe[1] if given.safe_2 is None else given.safe_2,
    }
    if given.safety and (label["safe_1"], label["safe_2"]) != safe:
        raise LabError(f"{where}: safety says {given.safety}, and safe_1 and safe_2 say otherwise")
    name, known = given.annotator.strip(), given.annotator_id is not None
    person = {
        "id": given.annotator_id or op.short("annotator", name or UNNAMED),
        "name": name or UNNAMED,
        "kind": given.annotator_kind or reading.annotator_kind,
        "vendor": given.vendor,
        "created_at": given.annotator_created_at or now,
    }
    if exported and given.created_at and (name or known):  # a label that we can tell from others
        records.add_annotator(person, where, by_name=not known)
        records.add_label(label | {"annotator_id": person["id"]}, given.kind, where)
        return
    person = checked(AnnotatorRow, person, where).model_dump()
    if not known:
        person |= {"id": "", "name": "" if name in ("", UNNAMED) else person["name"]}
    reading.opinions.append(
        op.Opinion(where, person, given.created_at is not None, check_label(label, given.kind, where))
    )


def _grade(given: Theirs, table: dict[str, float] | None, csv: bool, where: str) -> str:
    """The grade, or the one that the margin means: by the stated table, or where the report's tables leave no doubt."""
    margin = given.margin
    if given.grade and (table is None or margin is None):
        return given.grade
    number = math.nan
    if not isinstance(margin, bool) and (csv or not isinstance(margin, str)):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(margin)
    tables = [table] if table else [MARGINS[name] for name in ("small", "large", "none")]
    meant = {grade for one in tables for grade, value in one.items() if abs(number - value) < CLOSE}
    if given.grade and meant != {given.grade}:
        raise LabError(f"{where}: the grade is {given.grade}, and the margin {shown(margin)} says otherwise")
    if not meant:
        known = "that table" if table else "the report's Table 27"
        raise LabError(f"{where}: there is no grade, and the margin {shown(margin)} is none of {known}")
    if len(meant) > 1:
        raise LabError(
            f"{where}: the margin {shown(margin)} means {' or '.join(g for g in GRADES if g in meant)}; say "
            "by which table, with --margins small, large or four numbers, or give grades"
        )
    return meant.pop()
