"""Whatever stands in a file: readers of rows answer with rows or with a LabError, and a store takes all or nothing."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llama2lab.annotation.files.adding import add_pairs, read_pairs
from llama2lab.annotation.files.exporting import export_preferences
from llama2lab.annotation.files.importing import import_preferences
from llama2lab.annotation.rows import resolve
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine.dialogues import SAFETY
from llama2lab.engine.errors import LabError
from llama2lab.engine.rows import rows_of
from llama2lab.engine.scale import GRADES
from llama2lab.model.chat import segments
from llama2lab.run.realdata import SourceSettings, load_role

ANYTHING = settings(suppress_health_check=list(HealthCheck))
ENDINGS = (".jsonl", ".json", ".csv", ".txt", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz", ".txt.gz")
PAIR = {name: name for name in ("prompt", "chosen", "rejected", "grade", "safety")}
ROLES: list[tuple[str, dict[str, Any]]] = [
    ("pretrain", {"text": ["text", "prompt"]}),
    ("sft", {"messages": "prompt"}),
    ("sft", {"answer": "chosen"}),
    ("helpful", PAIR),
    ("harmless", {}),
    ("refusals", {"label": ["safety", "grade"]}),
]

text = st.text(st.characters(codec=None), max_size=8) | st.sampled_from(
    ["\n\nHuman: a\n\nAssistant: b", "Q", "\x1a0041"]
)
plain = st.text(min_size=1, max_size=8).filter(str.strip)
number = st.integers() | st.floats() | st.sampled_from([0, 1, 2, 3, 2 / 3, 10**400, 2_000_000_000, 2**63])
value = st.recursive(
    st.none() | st.booleans() | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]) | value, "content": text | value}
)
said = text | st.lists(message, max_size=3) | value
word = text | st.sampled_from(
    [*GRADES, *SAFETY, "safe", "Better ", "helpfulness", "safety", "person", "Ada", "imported"]
)
moment = st.datetimes().map(str) | st.sampled_from(["0001-01-01T00:00:00+14:00", "2026-01-01T00:00:00+00:00"])
optional = {
    "text": text,
    "prompt": said,
    "chosen": said,
    "rejected": said,
    "answers": st.lists(text, max_size=3),
    "margin": number,
    **dict.fromkeys(
        (
            "grade",
            "safety",
            "kind",
            "annotator",
            "vendor",
            "annotator_kind",
            "prompt_id",
            "comment",
            "label_id",
            "annotator_id",
            "item_id",
            "supersedes",
            "guidelines",
            "table",
        ),
        word,
    ),
    **dict.fromkeys(("choice", "left", "seconds", "overlap", "position"), number),
    **dict.fromkeys(("created_at", "item_created_at", "annotator_created_at"), moment),
    **dict.fromkeys(("flag", "safe_1", "safe_2"), st.booleans() | st.none()),
    "models": st.lists(text, max_size=3),
    "gold": value.map(json.dumps) | st.just('{"choice": 1}') | value,
    "meta": value,
    "row": value,
}
good = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["Q", "R"]) | plain.map(lambda x: [{"role": "user", "content": x}]),
        "chosen": st.sampled_from(["a", "b"]) | plain.map(lambda x: [{"role": "assistant", "content": x}]),
        "rejected": st.sampled_from(["c", "d"]) | plain,
        "grade": st.sampled_from(GRADES),
    },
    optional={
        "annotator": st.sampled_from(["Ada", "imported"]) | plain,
        "kind": st.just("safety"),
        "comment": plain,
        "annotator_kind": st.sampled_from(["person", "simulated"]),
        "safety": st.sampled_from(list(SAFETY)),
        "overlap": st.integers(0, 3),
        "seconds": st.floats(0, 9),
        "prompt_id": plain | st.integers(0, 9),
        "meta": value.map(json.dumps),
        "flag": st.booleans(),
        "models": st.lists(plain, min_size=2, max_size=2),
        "created_at": st.datetimes().map(lambda x: f"{x}+00:00"),
    },
)
pair = st.fixed_dictionaries(
    {
        "kind": st.just("safety"),
        "prompt": st.lists(message, min_size=1, max_size=2),
        "answers": st.lists(text, min_size=2, max_size=2),
    },
    optional={"gold": value, "models": value, "meta": value, "prompt_id": value},
)
noise = st.fixed_dictionaries({}, optional=optional)
nearly = st.tuples(good, noise).map(lambda two: two[0] | dict(list(two[1].items())[:2]))
queued = st.fixed_dictionaries(
    {
        "kind": st.just("helpfulness"),
        "answers": st.lists(plain, min_size=2, max_size=2, unique=True),
        "prompt": plain.map(lambda x: [{"role": "user", "content": x}]),
    }
)
rows = st.one_of(
    st.lists(good, min_size=1, max_size=4),
    st.lists(queued, min_size=1, max_size=3),
    st.lists(good | nearly | pair | noise | value, max_size=4),
)


@st.composite
def contents(draw: Any) -> tuple[str, bytes]:
    """A file: (ending, bytes), from plain noise to rows that are nearly right."""
    ending = draw(st.sampled_from(ENDINGS))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        data = draw(st.binary(max_size=200) | text.map(lambda x: x.encode("utf-8", "surrogatepass")))
    elif ending == ".parquet":
        data = parquet(draw(rows))
    elif ".csv" in ending:
        cells = draw(st.lists(st.lists(text | word | number.map(repr), min_size=4, max_size=5), max_size=4))
        head = "prompt,chosen,rejected," + draw(st.sampled_from(["grade", "margin", "prompt", "label", "text"]))
        lines = [head, *(",".join(cell if draw(st.booleans()) else f'"{cell}"' for cell in row) for row in cells)]
        data = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines).encode("utf-8", "surrogatepass")
    else:
        found, ascii_ = draw(rows), draw(st.booleans())
        end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
        whole = (
            json.dumps(found, ensure_ascii=ascii_)
            if kind == 1
            else end.join(json.dumps(row, ensure_ascii=ascii_) for row in found)
        )
        data = draw(st.sampled_from(["", "\ufeff"])).encode() + whole.encode("utf-8", "surrogatepass")
    if kind == 2 and data:  # damage
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 2)) :]
    if ending.endswith(".gz") and kind != 0:
        data = gzip.compress(data)
        data = data[: draw(st.integers(0, len(data)))] if kind == 3 else data
    return ending, data


def parquet(found: list[Any]) -> bytes:
    try:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([row for row in found if isinstance(row, dict)]), sink)
        return sink.getvalue().to_pybytes()
    except Exception:  # rows that no table can hold
        return b"PAR1"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with open_store(tmp_path_factory.mktemp("anything") / "labels.db") as opened:
        yield opened


def sizes(store: Store) -> list[int]:
    with store.begin(read=True) as conn:
        return [
            conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in (t.items, t.secrets, t.annotators, t.labels, t.guidelines, t.slots)
        ]


@ANYTHING
@given(contents())
@example((".jsonl", b"[" * 100_000))
@example((".json", b'[{"a": ' * 10_000))
@example((".csv", b'a\n"' + b"x" * 200_000))
def test_only_rows_and_lab_errors_come_out(
    store: Store, tmp_path_factory: pytest.TempPathFactory, content: tuple[str, bytes]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "anything [1]"
    folder.mkdir(exist_ok=True)
    file: Path = folder / f"file{content[0]}"
    for old in folder.iterdir():
        old.unlink()
    file.write_bytes(content[1])
    try:
        for number, row in rows_of(file):
            assert number > 0 and isinstance(row, dict | str)
            assert not isinstance(row, dict) or ".parquet" in content[0] or json.dumps(row, ensure_ascii=False).encode()
    except LabError as e:
        assert "\n" not in str(e)
    for role, columns in ROLES:
        try:
            loaded, _ = load_role(role, SourceSettings(files=("file*",), columns=columns), folder, max_malformed=1.0)
        except LabError:
            continue
        for row in loaded:
            json.dumps(row, ensure_ascii=False).encode()
            for messages in ([*row["prompt"], *row["chosen"]] if "chosen" in row else row.get("messages"),):
                assert messages is None or segments(messages)
    before = sizes(store)
    for take in (
        lambda: import_preferences(store, file),
        lambda: add_pairs(store, read_pairs(file)),
        lambda: import_preferences(store, file, margins="small"),
    ):
        try:
            take()
            before = sizes(store)
        except LabError:
            assert sizes(store) == before


def test_what_came_in_can_be_trained_on_and_goes_out_and_in_again(store: Store, tmp_path: Path) -> None:
    """Runs after the test above, on what it has left in the store."""
    found = store.labels()
    for kind in ("helpfulness", "safety"):
        result = resolve(found, kind)
        for row in result.rows:
            assert segments([*row["prompt"], *row["chosen"]]) and json.dumps(row, ensure_ascii=False).encode()
    for ending in ("jsonl", "parquet"):
        export_preferences(store, tmp_path / f"out.{ending}")
        with open_store(tmp_path / f"{ending}.db") as other:
            import_preferences(other, tmp_path / f"out.{ending}")
            assert other.labels() == found
