"""Labels as `datasets`, Parquet and JSON Lines in TRL's preference format, written without loss.

A file holds one row for each choice in force: prompt, chosen, rejected and margin as TRL reads them, and everything
else that the store knows of the label, its item and its annotator. What is no such row (skips, superseded labels, items
without a label, guidelines, teachers' verdicts) stands beside it in FILE.rest, which is read when the file is imported.

Characters that Parquet or UTF-8 cannot hold are written as in the store (tables.escape).
"""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama2lab.annotation.files import records as r
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.in_force import current_labels
from llama2lab.annotation.store.store import Store
from llama2lab.engine.dialogues import SAFETY
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import MARGINS

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

# The columns in their order, each behind its type.
COLUMNS = (
    ("messages", "prompt", "chosen", "rejected"),
    ("number", "margin"),
    ("text", "grade", "safety", "kind", "prompt_id", "annotator", "vendor", "annotator_kind"),
    ("text", "label_id", "item_id", "annotator_id"),
    ("whole", "choice", "left"),
    ("yes or no", "safe_1", "safe_2"),
    ("text", "comment"),
    ("yes or no", "flag"),
    ("number", "seconds"),
    ("text", "guidelines", "supersedes", "created_at"),
    ("texts", "models"),
    ("text", "gold", "meta"),
    ("whole", "overlap", "position"),
    ("text", "item_created_at", "annotator_created_at"),
)
BINS = {safe: name for name, safe in SAFETY.items() if name}


def export_preferences(store: Store, path: str | os.PathLike[str], margins: str = "small") -> int:
    """Write FILE (.jsonl or .parquet) and FILE.rest; how many preferences there are. Old files are replaced."""
    file = known_format(path)
    pairs, rest = _split(*_read(store), _table_of(margins))
    try:
        if file.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            new = _beside(file)
            pq.write_table(pa.Table.from_pylist(pairs, schema=_schema()), new)
            os.replace(new, file)
        else:
            _write_lines(file, pairs)
        _write_lines(rest_of(file), rest)
    except OSError as e:
        raise LabError(f"{file} cannot be written ({e.strerror}); free some space or choose another place") from e
    return len(pairs)


def to_dataset(store: Store, margins: str = "small") -> datasets.DatasetDict:
    """The same as `datasets`: the split "train" is what TRL reads, "rest" what is needed to import without loss."""
    import datasets
    import pyarrow as pa

    pairs, rest = _split(*_read(store), _table_of(margins))
    rows = [{"table": row["table"], "row": json.dumps(row["row"])} for row in rest]
    train = pa.Table.from_pylist(pairs, schema=_schema())
    others = pa.Table.from_pylist(rows, schema=pa.schema({"table": pa.string(), "row": pa.string()}))
    return datasets.DatasetDict({"train": datasets.Dataset(train), "rest": datasets.Dataset(others)})


def _read(store: Store) -> tuple[r.Records, set[str]]:
    """All rows, and the ids of the labels in force."""
    with store.begin(read=True) as conn:
        return r.read(conn, store.where), set(conn.execute(current_labels()).scalars())


def _table_of(margins: str) -> dict[str, float]:
    if margins not in MARGINS:
        raise LabError(f"margins are {', '.join(MARGINS)} (the report's Table 27), not {margins!r}")
    return MARGINS[margins]


def known_format(path: str | os.PathLike[str]) -> Path:
    file = Path(os.path.expanduser(path))
    if file.suffix not in (".jsonl", ".parquet"):
        raise LabError(f"{file}: preferences are written as .jsonl or .parquet; give the file one of these endings")
    return file


def rest_of(file: Path) -> Path:
    return file.with_name(file.name + ".rest")


def _beside(file: Path) -> Path:
    return file.with_name(f".{file.name}.{os.getpid()}.new")


def _split(found: r.Records, current: set[str], margins: dict[str, float]) -> tuple[list[dict], list[dict]]:
    """Rows for training, and everything else."""
    ordered = sorted(found.labels.values(), key=lambda row: (row["created_at"], row["id"]))
    ids = {key for key in current if found.labels[key]["choice"] is not None}
    pairs = sorted(
        (row for row in ordered if row["id"] in ids),
        key=lambda row: (found.items[row["item_id"]]["position"], row["item_id"]),
    )
    items, people = {row["item_id"] for row in pairs}, {row["annotator_id"] for row in pairs}
    rest = [("annotators", row) for key, row in sorted(found.annotators.items()) if key not in people]
    rest += [("guidelines", row) for _, row in sorted(found.guidelines.items())]
    queue = sorted(found.items.items(), key=lambda pair: (pair[1]["position"], pair[0]))
    rest += [("items", row | _secrets(found.secrets.get(key))) for key, row in queue if key not in items]
    rest += [("labels", row) for row in ordered if row["id"] not in ids]
    rest += [("verdicts", row) for _, row in sorted(found.verdicts.items())]
    lines = [{"table": table, "row": _plain(row)} for table, row in rest]
    return [_pair(row, found, margins) for row in pairs], lines


def _pair(label: dict, found: r.Records, margins: dict[str, float]) -> dict[str, Any]:
    item, person = found.items[label["item_id"]], found.annotators[label["annotator_id"]]
    chosen, rejected = (1, 2) if label["choice"] == 1 else (2, 1)
    safe = (label[f"safe_{chosen}"], label[f"safe_{rejected}"])
    row = item | label | _secrets(found.secrets.get(item["id"]))
    plain = _plain(
        row
        | {
            "label_id": label["id"],
            "margin": margins[label["grade"]],
            "chosen": [{"role": "assistant", "content": item[f"answer_{chosen}"]}],
            "rejected": [{"role": "assistant", "content": item[f"answer_{rejected}"]}],
            "safety": BINS.get(safe, "") if item["kind"] == "safety" else "",
            "item_created_at": item["created_at"],
            "annotator": person["name"],
            "vendor": person["vendor"],
            "annotator_kind": person["kind"],
            "annotator_created_at": person["created_at"],
        }
    )
    return {name: plain[name] for _, *names in COLUMNS for name in names}


def _secrets(secret: dict | None) -> dict[str, Any]:
    """`gold` and `meta` as JSON texts: their shape differs from row to row, which tables do not like."""
    secret = secret or {}
    models = [secret.get("model_1"), secret.get("model_2")]
    return {
        "models": None if models == [None, None] else models,
        **{name: None if secret.get(name) is None else json.dumps(secret[name]) for name in ("gold", "meta")},
    }


def _plain(value: Any) -> Any:
    """Without times and without characters that a file cannot hold."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds")
    return t.escape(value) if isinstance(value, str) else value


def _write_lines(file: Path, rows: list[dict]) -> None:
    new = _beside(file)
    with new.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        out.flush()
        os.fsync(out.fileno())
    os.replace(new, file)


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "number": pa.float64(),
        "whole": pa.int64(),
        "yes or no": pa.bool_(),
        "text": pa.string(),
        "texts": pa.list_(pa.string()),
    }
    return pa.schema([(name, types[kind]) for kind, *names in COLUMNS for name in names])
