"""Rows in other people's files: read alike whatever program wrote them; what is none is named with its line."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llama2lab.engine import rows as rows_module
from llama2lab.engine.errors import LabError
from llama2lab.engine.rows import NOT_UTF8, NUL, Unreadable, rows_of

RECORDS = [{"text": "Grüße, 你好"}, {"text": "two\nlines"}]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, content: bytes | str) -> list:
    return list(rows_of(written(path, content)))


def csv_of(*rows: list[str], end: str = "\n") -> str:
    return end.join(",".join(f'"{cell}"' for cell in row) for row in rows) + end


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt", ".jsonl.gz", ".csv.gz"])
def test_marks_and_line_ends_change_nothing(tmp_path, end, mark, ending):
    kind = ending.split(".")[1]
    texts = ["Grüße, 你好", "second"]
    content = mark + {
        "csv": csv_of(["text"], *([t] for t in texts), end=end),
        "txt": f"{end}{end}".join(texts) + end,
    }.get(kind, end.join(json.dumps({"text": t}, ensure_ascii=False) for t in texts))
    data = gzip.compress(content.encode()) if ending.endswith(".gz") else content
    found = read(tmp_path / f"a{ending}", data)
    assert [record for _, record in found] == [{"text": t} for t in texts]
    assert [number for number, _ in found] == {"csv": [2, 3], "txt": [1, 3]}.get(kind, [1, 2])


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
def test_an_array_of_rows_is_read_and_bad_ones_are_named_by_their_line(tmp_path, indent, name):
    text = "\ufeff\n" + json.dumps([*RECORDS, 3, {"a": "X"}], indent=indent).replace('"X"', "NaN")
    found = read(tmp_path / name, gzip.compress(text.encode()) if name.endswith("gz") else text)
    lines = [2, 2, 2, 2] if indent is None else [3, 6, 9, 10]
    assert found == list(zip(lines, [*RECORDS, "not a JSON object", "NaN is no JSON"], strict=True))
    assert read(tmp_path / "b.json", "[]") == []


@pytest.mark.parametrize(
    "text, says",
    [
        ('[\n{"a": 1},\n{"a" 1}\n]', r"a\.json:3: broken JSON .*one array of objects"),
        ('[{"a": 1}', r"a\.json:1: broken JSON"),
        ('[{"a": 1}] tail', r"a\.json:1: broken JSON"),
        ('{\n "rows": [\n {"a": 1}]\n}', r"a\.json:1: is one JSON object as a whole; each line is one"),
    ],
)
def test_json_that_is_neither_lines_nor_an_array_says_what_is_wanted(tmp_path, text, says):
    with pytest.raises(LabError, match=says):
        read(tmp_path / "a.json", text)


def test_lines_that_begin_with_a_list_are_lines(tmp_path):
    assert read(tmp_path / "a.jsonl", '[1]\n{"a": 1}\n') == [(1, "not a JSON object"), (2, {"a": 1})]
    assert read(tmp_path / "a.jsonl", '{"a": \n{"a": 1}\n') == [(1, "broken JSON"), (2, {"a": 1})]


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"a": "\\ud83d"}', "half a character"),
        (b'{"a": "\xed\xa0\xbd"}', NOT_UTF8),
        (b'{"a": "\xe9"}', NOT_UTF8),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b"1" * 5000, "thousands of digits"),
        (b'{"a": 1e999}', "too large"),
        (b"[" * 900 + b"]" * 900, "nested too deeply"),
        (b'{"a": "\0"}', NUL),
        (b'{"a": ' * 100_000, "nested too deeply|broken JSON"),
        (b"null", "not a JSON object"),
    ],
)
def test_a_line_that_is_no_row_spoils_itself_alone(tmp_path, line, reason):
    one, bad, two = read(tmp_path / "a.jsonl", b'{"a": 1}\n' + line + b'\r\n{"a": 2}')
    assert (one, two) == ((1, {"a": 1}), (3, {"a": 2}))
    assert bad[0] == 2 and any(part in bad[1] for part in reason.split("|"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_named_with_the_cure(tmp_path, name, encoding):
    text = {"a.csv": "text\nHello there\n", "a.txt": "Hello there\n"}.get(name, '{"text": "Hello there"}\n')
    with pytest.raises(LabError, match=r"is UTF-(16|32)\w*, not UTF-8.*iconv -f UTF-(16|32)"):
        read(tmp_path / name, text.encode(encoding))


def test_csv_in_an_old_encoding_says_which_and_how_to_convert_it(tmp_path):
    with pytest.raises(LabError, match=r"a\.csv:3: .*iconv -f WINDOWS-1252"):
        read(tmp_path / "a.csv", b"text\nplain\ncaf\xe9\n")


def test_a_csv_field_may_be_as_long_as_in_json_and_the_limit_of_others_stays(tmp_path):
    before, long = csv.field_size_limit(), "x" * 200_000
    assert read(tmp_path / "a.csv", csv_of(["text", "b"], [long, "1"])) == [(2, {"text": long, "b": "1"})]
    assert csv.field_size_limit() == before == 131_072


@pytest.mark.parametrize(
    "text, says",
    [
        ("text,b,text\n1,2,3\n", "column 'text' stands there twice"),
        ("prompt;label\na;b\n", "divided by commas here, not by ;"),
        ("prompt\tlabel\na\tb\n", "not by tabs"),
        ('text\n"open\n' + "more\n" * 9, r"a\.csv:2: .*is a quote not closed"),
        ("text\na\0b\n", r"a\.csv:2: .*NUL"),
    ],
)
def test_csv_that_would_mean_something_else_is_refused(tmp_path, text, says):
    with pytest.raises(LabError, match=says):
        read(tmp_path / "a.csv", text)


def test_csv_rows_are_named_by_the_line_they_begin_on(tmp_path):
    found = read(tmp_path / "a.csv", 'a,,\n"x\ny\nz",,\n\n1,2\n')
    assert found == [(2, {"a": "x\ny\nz", "": ""}), (6, "wrong number of columns")]


def test_parquet_values_that_python_cannot_hold_spoil_their_row_alone(tmp_path):
    texts = pa.array([b"good", b"caf\xe9", b"fine"]).view(pa.string())
    times = pa.array([0, 2**60, 0], pa.timestamp("ms", "UTC"))
    nested = pa.array([[{"a": [1]}], None, []])
    pq.write_table(pa.table({"text": texts, "time": times, "nested": nested}), tmp_path / "a.parquet")
    found = list(rows_of(tmp_path / "a.parquet"))
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert [n for n, _ in found] == [1, 2, 3]
    assert found[0][1] == {"text": "good", "time": epoch, "nested": [{"a": [1]}]} and found[2][1]["text"] == "fine"
    assert isinstance(found[1][1]["text"], Unreadable) and isinstance(found[1][1]["time"], Unreadable)
    pq.write_table(pa.table([texts.slice(0, 1)] * 2, names=["text", "text"]), tmp_path / "b.parquet")
    with pytest.raises(LabError, match="column 'text' stands there twice"):
        list(rows_of(tmp_path / "b.parquet"))


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt", ".parquet", ".jsonl.gz"])
def test_folders_pipes_and_devices_are_refused_at_once(tmp_path, ending):
    os.mkdir(tmp_path / f"folder{ending}")
    os.mkfifo(tmp_path / f"pipe{ending}")
    os.symlink("/dev/zero", tmp_path / f"zero{ending}")
    for name, says in (
        ("folder", "is a folder"),
        ("pipe", "is a pipe or a device"),
        ("zero", "is a pipe or a device"),
        ("nothing", "cannot be read"),
    ):
        with pytest.raises(LabError, match=says):
            list(rows_of(tmp_path / f"{name}{ending}"))


@pytest.mark.parametrize(
    "content, says",
    [
        (b"no gzip", "cannot be read"),
        (gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "cannot be read"),
        (b"", None),
        (gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:40] + b"\xff" * 40, "cannot be read"),
    ],
)
def test_damaged_archives(tmp_path, content, says):
    if says is None:
        assert read(tmp_path / "a.jsonl.gz", content) == []
        return
    with pytest.raises(LabError, match=f"a.jsonl.gz: {says}"):
        read(tmp_path / "a.jsonl.gz", content)


@pytest.mark.parametrize("line", [b'{"a": 1}\n', b"\n", b"x"])
def test_an_archive_that_unpacks_without_end_is_stopped_in_little_memory(tmp_path, monkeypatch, line):
    monkeypatch.setattr(rows_module, "UNPACKED", 10)
    monkeypatch.setattr(rows_module, "UNPACKED_FREE", 1 << 16)
    monkeypatch.setattr(rows_module, "ROW_LIMIT", 1 << 17)
    written(tmp_path / "a.jsonl.gz", gzip.compress(line * (1 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(LabError, match=r"unpacks to more than 10 times|a line of more than"):
            for _ in rows_of(tmp_path / "a.jsonl.gz"):
                pass
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "name, head", [("a.jsonl", ""), ("a.csv", 'text\n"'), ("a.txt", ""), ("b.txt", "\n"), ("a.json", "[")]
)
def test_rows_without_an_end_are_stopped(tmp_path, monkeypatch, name, head):
    monkeypatch.setattr(rows_module, "ROW_LIMIT", 10_000)
    monkeypatch.setattr(rows_module, "ARRAY_LIMIT", 10_000)
    body = "x" * 11_000 if name != "b.txt" else "word\n" * 11_000
    with pytest.raises(LabError, match="more than 10,000 characters"):
        read(tmp_path / name, head + body)


def test_unknown_endings_are_said(tmp_path):
    with pytest.raises(LabError, match="what kind of file is this"):
        list(rows_of(tmp_path / "a.xlsx"))
    with pytest.raises(LabError, match=r"Give \.jsonl or \.csv \(also as \.gz\)"):
        list(rows_of(tmp_path / "a.txt", (".jsonl", ".csv")))
