"""Files and data sets of preferences, checked row by row, into the store: what exporting.py wrote, or others' files.

A row of others says what its author knew: prompt, chosen and rejected in any shape of dialogues.pair_of, and a grade,
or a margin of a table that the user states. Several rows on one pair: see opinions.py.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy.exc import IntegrityError

from llama2lab.annotation.files import opinions as op
from llama2lab.annotation.files import records as r
from llama2lab.annotation.files.exporting import rest_of
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import (
    ID,
    MAX_POSITION,
    MAX_SECONDS,
    Answer,
    Grade,
    Row,
    check_label,
    check_messages,
    check_moment,
    check_pair,
    check_prompt_id,
    check_slots,
    tidy,
)
from llama2lab.annotation.store.store import Store
from llama2lab.engine.dialogues import SAFETY, Malformed, is_dialogue, pair_of
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.rows import Record, Unreadable, complaint, ending_of, json_lines, rows_of
from llama2lab.engine.scale import GRADES, MARGINS, MAX_OVERLAP
from llama2lab.engine.validation import fault, shown, strict_json

if TYPE_CHECKING:
    import datasets

TABLES = ("annotators", "guidelines", "items", "labels")
ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
CLOSE = 0.006  # margins are written with two decimals, too
Where = tuple[str, Record | str]  # a place and the row there, or why there is none


class Theirs(Row):
    """What a row of preferences may hold besides prompt, chosen and rejected; times and texts are checked later."""

    grade: Grade | None = None
    margin: Any = None
    safety: Annotated[Literal[tuple(SAFETY)], BeforeValidator(tidy)] = ""  # type: ignore[valid-type]
    kind: Annotated[Literal["helpfulness", "safety"], BeforeValidator(tidy)] = "helpfulness"
    annotator: str = ""
    annotator_kind: Annotated[Literal["person", "simulated"], BeforeValidator(tidy)] | None = None
    vendor: str = ""
    choice: Answer | None = None
    left: Answer | None = None
    safe_1: bool | None = None
    safe_2: bool | None = None
    comment: str = ""
    flag: bool = False
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 0.0
    overlap: int = 1
    position: int | None = None


class Cells(Theirs):
    """The same from CSV, where all is text: "1" is a number there."""

    model_config = ConfigDict(strict=False, extra="ignore")


THEIRS, CELLS = TypeAdapter(Theirs), TypeAdapter(Cells)


@dataclass
class Reading:
    """Everything that a source holds, checked, before anything is written."""

    records: r.Records
    margins: dict[str, float] | None
    annotator_kind: str
    now: datetime
    opinions: list[op.Opinion] = field(default_factory=list)


def import_preferences(store: Store, source: str | os.PathLike[str] | datasets.Dataset | datasets.DatasetDict,
                       annotator_kind: str = "person", margins: str | None = None) -> op.Imported:
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
    reading = Reading(r.Records(name), table, annotator_kind, t.now())
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
        raise LabError(f"{name}: a row contradicts what is in the store, such as a label that supersedes another "
                       f"annotator's ({first_line(e.orig or e)}); nothing was imported") from e


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
        raise LabError("margins are small or large (the report's Table 27), or four different numbers for "
                       f"{', '.join(GRADES)}, such as 4,3,2,1; not {margins!r}")
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


def _json_text(text: Any, name: str, where: str) -> Any:
    if text is None:
        return None
    if not isinstance(text, str):
        raise LabError(f"{where}: {name} is a JSON text, not {shown(text)}")
    try:
        return strict_json(text, halves=True)
    except ValueError as e:
        raise LabError(f"{where}: {name} is a JSON text ({e})") from e


def _take_rest(reading: Reading, line: Any, where: str) -> None:
    row = _json_text(line["row"], "row", where) if isinstance(line.get("row"), str) else line.get("row")
    if line.get("table") not in TABLES or not isinstance(row, dict):
        raise LabError(f"{where} is no row of {', '.join(TABLES)}")
    row, records = _unplain(row), reading.records
    try:
        if line["table"] == "annotators":
            op.add_annotator(records, row["id"], row["name"], row["kind"], row["vendor"], row["created_at"], where)
        elif line["table"] == "guidelines":
            if not all(isinstance(row[key], str) for key in ("version", "kind", "text")) or not ID.fullmatch(
                    row["version"]) or row["kind"] not in ("helpfulness", "safety"):
                raise LabError(f"{where}: guidelines have version, kind and text")
            moment = check_moment(row["created_at"], "created_at", where)
            if (moment - reading.now).days >= 1:
                raise LabError(f"{where}: these guidelines are dated {moment:%Y-%m-%d}, so they would be in force over "
                               "all others; correct created_at")
            records.guidelines[row["version"]] = {"version": row["version"], "kind": row["kind"], "text": row["text"],
                                                  "created_at": moment}
        elif line["table"] == "items":
            _add_item(records, row | {"item_id": row["id"], "item_created_at": row["created_at"]},
                      check_messages(row["prompt"], where), [row["answer_1"], row["answer_2"]], where)
        else:
            _add_label(records, row, "", where)
    except KeyError as e:
        raise LabError(f"{where}: {e} is missing") from e


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
        given: Theirs = (CELLS if csv else THEIRS).validate_python(row)
    except Malformed as e:
        what = "both answers are the same; leave the pair out" if str(e) == "equal sides" else e
        raise LabError(f"{where}: {what}") from e
    except ValidationError as e:
        raise LabError(f"{where}: {fault(e)}") from e
    # A file of others does not say which answer came first; to say "the chosen one" would make 1 always the better.
    first, second = (hashlib.sha256(a.encode("utf-8", "surrogatepass")).digest() for a in answers)
    choice = given.choice or (1 if first < second else 2)
    safe = SAFETY[given.safety][::1 if choice == 1 else -1]
    label = given.model_dump(include={"left", "comment", "flag", "seconds"}) | {
        "choice": choice, "skip_reason": None,
        "grade": _grade(given, None if exported and given.grade else reading.margins, csv, where),
        "safe_1": safe[0] if given.safe_1 is None else given.safe_1,
        "safe_2": safe[1] if given.safe_2 is None else given.safe_2,
        "guidelines": row.get("guidelines"), "supersedes": row.get("supersedes"),
        "created_at": row.get("created_at", reading.now)}
    if given.safety and (label["safe_1"], label["safe_2"]) != safe:
        raise LabError(f"{where}: safety says {given.safety}, and safe_1 and safe_2 say otherwise")
    records = reading.records
    item = _add_item(records, row | {"kind": given.kind, "overlap": given.overlap, "position": given.position
                                     if given.position is not None else len(records.items) + 1,
                                     "item_created_at": row.get("item_created_at", reading.now)},
                     prompt, answers[::1 if choice == 1 else -1], where)
    label["item_id"] = item["id"]
    name, kind = given.annotator.strip(), given.annotator_kind or reading.annotator_kind
    since = row.get("annotator_created_at", reading.now)
    label["id"] = row.get("label_id", "none")
    _check_ids(label, ("id", "guidelines", "supersedes"), where)
    if exported and "created_at" in row and (name or "annotator_id" in row):  # a label that we can tell from others
        name = name or op.UNNAMED
        person = row.get("annotator_id", op.short("annotator", name))
        op.add_annotator(records, person, name, kind, given.vendor, since, where, by_name="annotator_id" not in row)
        _add_label(records, label | {"annotator_id": person}, given.kind, where)
        return
    check_label(label, given.kind, where)
    label["created_at"] = check_moment(label["created_at"], "created_at", where)
    person = row.get("annotator_id", "")
    if "annotator_id" not in row and name == op.UNNAMED:
        name = ""
    op.add_annotator(r.Records(""), row.get("annotator_id", "x"), name or op.UNNAMED, kind, given.vendor, since, where)
    known_as = op.clean(name, where) if name else op.UNNAMED if person else ""
    reading.opinions.append(op.Opinion(where, item["id"], person, known_as, kind, given.vendor, since,
                                       "created_at" in row, label))


def _grade(given: Theirs, table: dict[str, float] | None, csv: bool, where: str) -> str:
    """The grade, or the one that the margin means: by the stated table, or where the report's tables leave no doubt."""
    margin = given.margin
    if given.grade and (table is None or margin is None):
        return given.grade
    try:
        number = float(margin) if not isinstance(margin, bool) and (csv or not isinstance(margin, str)) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    tables = [table] if table else [MARGINS[name] for name in ("small", "large", "none")]
    meant = {grade for one in tables for grade, value in one.items() if abs(number - value) < CLOSE}
    if given.grade and meant != {given.grade}:
        raise LabError(f"{where}: the grade is {given.grade}, and the margin {shown(margin)} says otherwise")
    if not meant:
        known = "that table" if table else "the report's Table 27"
        raise LabError(f"{where}: there is no grade, and the margin {shown(margin)} is none of {known}")
    if len(meant) > 1:
        raise LabError(f"{where}: the margin {shown(margin)} means {' or '.join(g for g in GRADES if g in meant)}; say "
                       "by which table, with --margins small, large or four numbers, or give grades")
    return meant.pop()


def _add_item(records: r.Records, row: dict, prompt: list, answers: list, where: str) -> dict[str, Any]:
    """The row of `items`, after a look at it and its secrets."""
    texts = {name: _json_text(row.get(name), name, where) for name in ("gold", "meta")}
    item, secret = check_pair({"kind": row["kind"], "prompt": prompt, "answers": answers,
                               "prompt_id": check_prompt_id(row.get("prompt_id"), where),
                               "models": row.get("models"), **texts}, where)
    if row.get("item_id", item["id"]) != item["id"]:
        raise LabError(f"{where}: item_id is not that of this prompt and these answers; one of them was changed")
    for name, most in (("overlap", MAX_OVERLAP), ("position", MAX_POSITION)):
        if isinstance(row[name], bool) or not isinstance(row[name], int) or not 0 <= row[name] <= most:
            raise LabError(f"{where}: {name} is a whole number from 0 to {most:,}, not {shown(row[name])}")
    item |= {"overlap": row["overlap"], "position": row["position"],
             "created_at": check_moment(row["item_created_at"], "item_created_at", where)}
    records.secrets.setdefault(item["id"], secret)
    return records.items.setdefault(item["id"], item)


def _check_ids(label: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in names:
        value = label[name]
        if not (isinstance(value, str) and ID.fullmatch(value)) and (value is not None or name.endswith("id")):
            raise LabError(f"{where}: {name} has 1 to 64 letters, digits, - and _, not {shown(value)}")


def _add_label(records: r.Records, row: dict, kind: str, where: str) -> None:
    label: dict[str, Any] = {column.name: row.get(column.name) for column in t.labels.columns}
    _check_ids(label, ("id", "item_id", "annotator_id", "guidelines", "supersedes"), where)
    check_label(label, kind, where)
    label["created_at"] = check_moment(label["created_at"], "created_at", where)
    if records.labels.setdefault(label["id"], label) != label:
        raise LabError(f"{where}: label {label['id']} is another one in another row")
