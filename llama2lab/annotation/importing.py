"""Files and data sets of preferences, checked row by row, into the store: what exporting.py wrote, or others' files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama2lab.annotation import records as r
from llama2lab.annotation import tables as t
from llama2lab.annotation.checks import ID, check_label, check_messages, check_moment, check_pair
from llama2lab.annotation.exporting import known_format, rest_of
from llama2lab.annotation.scale import MARGINS
from llama2lab.annotation.store import Store, clean_name
from llama2lab.errors import LabError, first_line

if TYPE_CHECKING:
    import datasets

SHOWN = 5  # malformed rows that a message names
TABLES = ("annotators", "guidelines", "items", "labels")


def import_preferences(store: Store, source: str | os.PathLike[str] | datasets.Dataset | datasets.DatasetDict,
                       annotator_kind: str = "person") -> r.Counts:
    """Take in what was exported, or another file of preferences (prompt, chosen, rejected, and grade or margin).

    All rows or none: rows that are malformed are counted, and named by file and line. `annotator_kind` is for rows that
    do not say whether a person or a simulated annotator made them.
    """
    if annotator_kind not in ("person", "simulated"):
        raise LabError(f"annotators are of kind 'person' or 'simulated', not {annotator_kind!r}")
    if isinstance(source, (str, os.PathLike)):
        file = known_format(source)
        name, rows, rest = str(file), _rows_of(file), []
        if rest_of(file).exists():
            rest = list(_lines(rest_of(file)))
    else:
        name, rows, rest = "the data set", *_rows_of_dataset(source)
    records, now = r.Records(name), t.now()
    wrong: list[str] = []
    total = len(rest)
    for where, row in rest:
        _try(wrong, partial(_take_rest, records, row, where))
    for where, row in rows:
        total += 1
        _try(wrong, partial(_take_pair, records, row, where, annotator_kind, now))
    if not wrong:
        _try(wrong, partial(r.check_whole, records))
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise LabError(f"{len(wrong)} of {total} rows are malformed, so nothing was imported: "
                       f"{'; '.join(wrong[:SHOWN])}{more}")
    return store.write(lambda conn: r.take_in(conn, records))


def _try(wrong: list[str], work: Callable[[], object]) -> None:
    try:
        work()
    except LabError as e:
        wrong.append(str(e))


def _unplain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unplain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_unplain(v) for v in value]
    return t.unescape(value) if isinstance(value, str) else value


def _rows_of(file: Path) -> Iterator[tuple[str, dict]]:
    if file.suffix == ".jsonl":
        yield from _lines(file)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as e:
        raise LabError(f"{file} cannot be read ({first_line(e)}); give a Parquet file of preferences") from e
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{file} row {number}", row


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as e:
        raise LabError(f"{file} cannot be read ({e.strerror}); check the path") from e
    except UnicodeDecodeError as e:
        broken = e.object[:e.start].count(b"\n") + 1
        raise LabError(f"{file} line {broken} is not UTF-8; save the file as UTF-8") from e
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{file} line {number}", json.loads(line)
            except (ValueError, RecursionError):
                yield f"{file} line {number}", None


def _rows_of_dataset(source: Any) -> tuple[Iterator[tuple[str, dict]], list[tuple[str, Any]]]:
    splits = dict(source) if isinstance(source, dict) else {"train": source}
    rest = [(f"split rest row {n}", {"table": row["table"], "row": json.loads(row["row"])})
            for n, row in enumerate(splits.pop("rest", []), 1)]
    return ((f"split {name} row {n}", row) for name, rows in splits.items() for n, row in enumerate(rows, 1)), rest


def _take_rest(records: r.Records, line: Any, where: str) -> None:
    if not isinstance(line, dict) or line.get("table") not in TABLES or not isinstance(line.get("row"), dict):
        raise LabError(f"{where} is no row of {', '.join(TABLES)}")
    row = _unplain(line["row"])
    try:
        if line["table"] == "annotators":
            _add_annotator(records, row["id"], row["name"], row["kind"], row["vendor"], row["created_at"], where)
        elif line["table"] == "guidelines":
            if not all(isinstance(row[key], str) for key in ("version", "kind", "text")):
                raise LabError(f"{where}: guidelines have version, kind and text")
            records.guidelines[row["version"]] = {
                "version": row["version"], "kind": row["kind"], "text": row["text"],
                "created_at": check_moment(row["created_at"], "created_at", where)}
        elif line["table"] == "items":
            _add_item(records, row | {"item_id": row["id"], "item_created_at": row["created_at"]},
                      [row["answer_1"], row["answer_2"]], where)
        else:
            _add_label(records, row, "", where)
    except KeyError as e:
        raise LabError(f"{where}: {e} is missing") from e


def _take_pair(records: r.Records, row: Any, where: str, annotator_kind: str, now: datetime) -> None:
    if not isinstance(row, dict):
        raise LabError(f"{where} is no JSON object")
    row = _unplain({key: value for key, value in row.items() if value is not None})
    missing = [name for name in ("prompt", "chosen", "rejected") if name not in row]
    if missing:
        raise LabError(f"{where}: {', '.join(missing)} is missing")
    chosen, rejected = (_answer(row[name], name, where) for name in ("chosen", "rejected"))
    if isinstance(row["prompt"], str):
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    elif isinstance(row["prompt"], list) and isinstance(row["chosen"], list) and len(row["chosen"]) > 1:
        raise LabError(f"{where}: chosen is one message, the assistant's answer")
    moment = now.isoformat()
    ours = "label_id" in row
    if "choice" not in row:
        # A file of others does not say which answer came first; to say "the chosen one" would make 1 always the better.
        row["choice"] = 1 if hashlib.sha256(chosen.encode("utf-8", "surrogatepass")).digest() < hashlib.sha256(
            rejected.encode("utf-8", "surrogatepass")).digest() else 2
    answers = [chosen, rejected] if row["choice"] == 1 else [rejected, chosen]
    row = {"kind": "helpfulness", "overlap": 1, "position": len(records.items) + 1, "item_created_at": moment} | row
    item = _add_item(records, row, answers, where)
    name = row.get("annotator") or "imported"
    person = row.get("annotator_id") or _short("annotator", str(name))
    _add_annotator(records, person, name, row.get("annotator_kind", annotator_kind), row.get("vendor", ""),
                   row.get("annotator_created_at", moment), where, by_name="annotator_id" not in row)
    safe = _bin(row.get("safety") or "", row["choice"], where)
    label = {"grade": row.get("grade") or _grade(row.get("margin"), where), "safe_1": safe[0], "safe_2": safe[1],
             "comment": "", "flag": False, "seconds": 0.0, "created_at": moment, "left": None} | row
    label |= {"item_id": item["id"], "annotator_id": person, "skip_reason": None,
              "id": row["label_id"] if ours else _short("label", item["id"], person, label["grade"],
                                                        str(label["choice"]))}
    _add_label(records, label, item["kind"], where)


def _answer(value: Any, name: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) \
            and value[0].get("role") == "assistant" and isinstance(value[0].get("content"), str):
        return value[0]["content"]
    raise LabError(f"{where}: {name} is one message {{role: assistant, content}}")


def _grade(margin: Any, where: str) -> str:
    for table in (MARGINS["small"], MARGINS["large"]):
        for grade, value in table.items():
            if isinstance(margin, (int, float)) and not isinstance(margin, bool) and abs(margin - value) < 1e-6:
                return grade
    raise LabError(f"{where}: there is no grade, and the margin {margin!r} is none of the report's Table 27")


def _bin(safety: Any, choice: int, where: str) -> tuple[bool | None, bool | None]:
    known = {"": (None, None), "chosen_safe": (True, False), "both_safe": (True, True), "both_unsafe": (False, False)}
    if safety not in known:
        raise LabError(f"{where}: safety is chosen_safe, both_safe, both_unsafe or empty, not {safety!r}")
    chosen, rejected = known[safety]
    return (chosen, rejected) if choice == 1 else (rejected, chosen)


def _short(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _add_annotator(records: r.Records, key: Any, name: Any, kind: Any, vendor: Any, created_at: Any, where: str,
                   by_name: bool = False) -> None:
    if not isinstance(key, str) or not ID.fullmatch(key) or len(key) > 32:
        raise LabError(f"{where}: an annotator's id has up to 32 letters and digits, not {key!r}")
    if not isinstance(name, str) or kind not in ("person", "simulated") or not isinstance(vendor, str):
        raise LabError(f"{where}: an annotator has a name, a vendor, and is a person or simulated")
    try:
        name, vendor = clean_name(name), clean_name(vendor) if vendor else ""
    except LabError as e:
        raise LabError(f"{where}: {e}") from e
    new = {"id": key, "name": name, "kind": kind, "vendor": vendor, "by_name": by_name,
           "created_at": check_moment(created_at, "annotator_created_at", where)}
    known = records.annotators.setdefault(key, new)
    if any(known[part] != new[part] for part in ("name", "kind", "vendor")):
        raise LabError(f"{where}: annotator {key} is {known['name']!r} in another row")


def _add_item(records: r.Records, row: dict, answers: list, where: str) -> dict[str, Any]:
    """The row of `items`, after a look at it and its secrets."""
    texts = {}
    for name in ("gold", "meta"):
        try:
            texts[name] = None if row.get(name) is None else json.loads(row[name])
        except (TypeError, ValueError) as e:
            raise LabError(f"{where}: {name} is a JSON text") from e
    item, secret = check_pair({"kind": row["kind"], "prompt": check_messages(row["prompt"], where),
                               "answers": answers, "prompt_id": row.get("prompt_id", ""),
                               "models": row.get("models"), **texts}, where)
    if row.get("item_id", item["id"]) != item["id"]:
        raise LabError(f"{where}: item_id is not that of this prompt and these answers; one of them was changed")
    for name in ("overlap", "position"):
        if isinstance(row[name], bool) or not isinstance(row[name], int) or not -2**31 < row[name] < 2**31:
            raise LabError(f"{where}: {name} is a whole number, not {row[name]!r}")
    item |= {"overlap": row["overlap"], "position": row["position"],
             "created_at": check_moment(row["item_created_at"], "item_created_at", where)}
    records.secrets.setdefault(item["id"], secret)
    return records.items.setdefault(item["id"], item)


def _add_label(records: r.Records, row: dict, kind: str, where: str) -> None:
    label: dict[str, Any] = {column.name: row.get(column.name) for column in t.labels.columns}
    for name in ("id", "item_id", "annotator_id", "guidelines", "supersedes"):
        value = label[name]
        if not (isinstance(value, str) and ID.fullmatch(value)) and (value is not None or name.endswith("id")):
            raise LabError(f"{where}: {name} has 1 to 64 letters, digits, - and _, not {value!r}")
    check_label(label, kind, where)
    label["created_at"] = check_moment(label["created_at"], "created_at", where)
    if records.labels.setdefault(label["id"], label) != label:
        raise LabError(f"{where}: label {label['id']} is another one in another row")
