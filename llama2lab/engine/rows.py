"""Rows in files that other people wrote: .jsonl, .json, .csv, .txt (also as .gz) and .parquet, read in one way.

The recipe on real text and the annotation store both read through `rows_of`: a row is a record, or the reason why it
is none, with the line at which it begins. One broken row spoils itself alone; a file that as a whole is something else
(another encoding, a pipe, a damaged archive) is a LabError with the cure. Nothing larger than a row is held in memory,
save a JSON array. No torch, and pyarrow only where there is a Parquet file.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import re
import stat
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.validation import NotStrict, shown, strict_json

ROW_LIMIT = 1 << 26  # characters of a row: a file without line ends, or with a quote that nobody closes, has no end
ARRAY_LIMIT = 1 << 28  # characters of a JSON array, which is held in memory as a whole
UNPACKED = 100  # a .gz of text is unpacked to at most so many times its size (text: 3 to 20 times) and UNPACKED_FREE
UNPACKED_FREE = 1 << 26
SHOWN = 5  # malformed rows that a message names

BLANK = " \t\n\r\v\f\ufeff"
NOT_UTF8 = "not UTF-8"
NUL = "holds a NUL byte, which no text has"
BROKEN = "broken JSON"
CURES = {
    NOT_UTF8: "the file is probably in Windows-1252 or another old encoding: save it as UTF-8, or give: "
    "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW",
    BROKEN: "each line is one whole JSON object, or the whole file is one array of objects",
}

Record = dict[str, Any]
Rows = Iterator[tuple[int, Record | str]]


@dataclass(frozen=True)
class Unreadable:
    """In the place of a value of a Parquet file that Python cannot hold."""

    why: str


def rows_of(path: Path, endings: Sequence[str] = (".jsonl", ".json", ".csv", ".txt", ".parquet")) -> Rows:
    """(number, record) of every row of a file, or (number, reason) where the row is none.

    The number is the line at which the row begins; in a Parquet file, its place among the rows. The values of a CSV
    file are texts; plain text gives records {"text"}, divided by blank lines.

    Raises:
        LabError: another ending than `endings` (or these with .gz), and what concerns the file as a whole.
    """
    ending = ending_of(path, endings)
    try:
        yield from READERS[ending](path)
    except (OSError, EOFError, zlib.error) as e:  # a damaged .gz is any of the three
        why = getattr(e, "strerror", None) or first_line(e)
        raise LabError(f"{path}: cannot be read ({why}); check the path, or get the file anew") from e


def ending_of(path: Path, endings: Sequence[str]) -> str:
    """Which of `endings` the file's name has; LabError if none."""
    name = path.name.lower()
    for ending in endings:
        if name.endswith(ending) or (ending != ".parquet" and name.endswith(ending + ".gz")):
            return ending
    packed = " (also as .gz)" if any(e != ".parquet" for e in endings) else ""
    raise LabError(f"{path}: what kind of file is this? Give {' or '.join(endings)}{packed}")


def complaint(wrong: Sequence[str], total: int, so: str, reasons: Iterable[str]) -> LabError:
    """The error that names the first malformed rows, for those who take all rows or none."""
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return LabError(
        f"{len(wrong)} of {total} rows are malformed, so {so}: {'; '.join(wrong[:SHOWN])}{more}{cures_of(reasons)}"
    )


def cures_of(reasons: Iterable[str]) -> str:
    """What can be done about reasons that a whole file usually shares, for the end of a message."""
    return "".join(f"; {cure}" for reason, cure in CURES.items() if reason in reasons)


# ---- files as lines of text --------------------------------------------------------------------------------------


class _Unpacked(io.RawIOBase):
    """A gzip file that cannot fill the memory or run for hours: its size bounds what comes out of it."""

    def __init__(self, file: IO[bytes], path: Path):
        self.packed, self.path = gzip.GzipFile(fileobj=file), path
        self.left = UNPACKED * os.fstat(file.fileno()).st_size + UNPACKED_FREE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.packed.read1(len(buffer))
        self.left -= len(data)
        if self.left < 0:
            wrong = f"unpacks to more than {UNPACKED} times its size, which no text does"
            raise LabError(f"{self.path}: {wrong}; unpack it yourself and look")
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _opened(path: Path, newline: str | None = "") -> Iterator[io.TextIOWrapper]:
    """The file as text. Bytes that are no UTF-8 come as halves of characters, so that a row can be refused for them."""
    ordinary(path)
    packed = path.name.lower().endswith(".gz")
    with open(path, "rb") as file:
        buffer = io.BufferedReader(_Unpacked(file, path), 1 << 18) if packed else file
        encoding = _wide(buffer.peek(4096)[:4096])
        if encoding:
            cure = f"iconv -f {encoding} -t UTF-8 FILE > NEW{' (unpacked)' if packed else ''}"
            raise LabError(f"{path}: is {encoding}, not UTF-8; save it as UTF-8, or give: {cure}")
        yield io.TextIOWrapper(buffer, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def ordinary(path: Path) -> None:
    """LabError for a folder, and for what `has_end` refuses."""
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise LabError(f"{path}: is a folder; name its files, such as {path / '*.jsonl'}")
    has_end(path)


def has_end(path: Path) -> None:
    """LabError for a pipe or a device, whose reading might never end; a folder is for the caller to refuse."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise LabError(f"{path}: is a pipe or a device, which may have no end; copy what it gives into a file")


def _wide(head: bytes) -> str:
    """The name of an encoding of two or four bytes a character, if the file begins like one."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    for offset, name in ((1, "UTF-16LE"), (0, "UTF-16BE")):  # Latin letters: every second byte is 0
        nuls, others = head[offset::2], head[1 - offset :: 2]
        if len(nuls) > 3 and nuls.count(0) > 0.6 * len(nuls) and others.count(0) < 0.1 * len(others):
            return name
    return ""


def _lines(file: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(ROW_LIMIT):
        number += 1
        if len(line) >= ROW_LIMIT:
            raise LabError(f"{path}:{number}: a line of more than {ROW_LIMIT:,} characters; is this the right file?")
        yield number, line


def _unreadable(text: str) -> str:
    """Why a piece of the file is no text; "" if it is."""
    if "\0" in text:
        return NUL
    return "" if text.isascii() or not re.search("[\ud800-\udfff]", text) else NOT_UTF8


# ---- kinds of files ----------------------------------------------------------------------------------------------


def json_lines(path: Path) -> Rows:
    """JSON objects, one a line, whatever the file is called; or an array of them."""
    with _opened(path) as file:
        lines = ((n, line) for n, line in _lines(file, path) if line.strip(BLANK))
        first = next(lines, None)
        if first is None:
            return
        begins = first[1].strip(BLANK)[0]
        if begins == "[" or (begins == "{" and _record(first[1]) == BROKEN):
            rows = _whole(path)
            if rows is not None:
                yield from rows
                return
        yield first[0], _record(first[1])
        for number, line in lines:
            yield number, _record(line)


def _record(text: str) -> Record | str:
    bad = _unreadable(text)
    if bad:
        return bad
    try:
        found = strict_json(text.strip(BLANK))
    except json.JSONDecodeError:
        return BROKEN
    except NotStrict as e:
        return str(e)
    return found if isinstance(found, dict) else "not a JSON object"


def _whole(path: Path) -> list[tuple[int, Record | str]] | None:
    """The rows of a file that is one JSON array, None if these are lines after all."""
    with _opened(path, newline=None) as file:
        text = file.read(ARRAY_LIMIT + 1)
    start = len(text) - len(text.lstrip(BLANK))
    line, counted = 1 + text.count("\n", 0, start), start
    if text[start] == "{":  # perhaps one object over several lines
        try:
            json.loads(text, parse_int=str)
        except (ValueError, RecursionError):
            return None
        raise LabError(f"{path}:{line}: is one JSON object as a whole; {CURES[BROKEN]}")
    first = text[start:].split("\n", 1)[0]
    rows: list[tuple[int, Record | str]] = []
    decoder = json.JSONDecoder(parse_int=str)  # finds where an element ends; `_record` reads it strictly
    at = start + 1
    try:
        while True:
            at = _over(text, at)
            if text[at : at + 1] == "]" and not rows:
                at += 1
                break
            line, counted = line + text.count("\n", counted, at), at
            _, end = decoder.raw_decode(text, at)
            rows.append((line, _record(text[at:end])))
            at = _over(text, end)
            if text[at : at + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at += 1
            if text[at - 1] == "]":
                break
        if text[at:].strip(BLANK):
            raise json.JSONDecodeError("Extra data", text, at)
        return rows
    except (json.JSONDecodeError, RecursionError) as e:
        if _record(first) != BROKEN:  # lines, the first of which holds a list
            return None
        if len(text) > ARRAY_LIMIT:
            cure = "write one JSON object a line (.jsonl), which has no limit"
            raise LabError(f"{path}: an array of more than {ARRAY_LIMIT:,} characters; {cure}") from e
        if isinstance(e, RecursionError):
            raise LabError(f"{path}:{line}: nested too deeply; mend it") from e
        line = text.count("\n", 0, e.pos) + 1
        raise LabError(f"{path}:{line}: broken JSON ({e.msg}); mend it: {CURES[BROKEN]}") from e


def _over(text: str, at: int) -> int:
    """The next place that is not blank."""
    found = re.compile("[ \t\r\n]*").match(text, at)
    return found.end() if found else at


def _csv(path: Path) -> Rows:
    with _opened(path) as file:
        at = 0

        def lines() -> Iterator[str]:
            nonlocal at
            for at, line in _lines(file, path):
                bad = _unreadable(line)
                if bad:
                    raise LabError(f"{path}:{at}: is not CSV in UTF-8 ({bad}); {CURES.get(bad, 'export it anew')}")
                yield line

        rows = csv.reader(lines(), strict=True)
        header: list[str] = []
        while True:
            start = at + 1
            try:
                row = _next_row(rows)
            except csv.Error as e:
                cure = "is a quote not closed? Mend or export it anew"
                raise LabError(f"{path}:{start}: is not CSV in UTF-8 ({e}); {cure}") from e
            if row is None:
                return
            if row and header:
                same = len(row) == len(header)
                yield start, dict(zip(header, row, strict=True)) if same else "wrong number of columns"
            elif row:
                header = _header(row, path, start)


_csv_limit = threading.Lock()


def _next_row(rows: Iterator[list[str]]) -> list[str] | None:
    """The next row. The limit for a field's length (131,072 characters) is the process's: it is lifted only here."""
    with _csv_limit:
        before = csv.field_size_limit(ROW_LIMIT)
        try:
            return next(rows, None)
        finally:
            csv.field_size_limit(before)


def _header(names: list[str], path: Path, line: int) -> list[str]:
    if len(names) == 1 and re.search("[;\t]", names[0]):
        divider = ";" if ";" in names[0] else "tabs"
        wrong = f"columns are divided by commas here, not by {divider}"
        raise LabError(f"{path}:{line}: {wrong}; export it as CSV with commas")
    _once([name for name in names if name], path)  # columns without a name cannot be asked for
    return names


def _once(names: Sequence[str], path: Path) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LabError(f"{path}: the column {shown(twice)} stands there twice, and which counts? Rename or remove one")


def _text(path: Path) -> Rows:
    with _opened(path, newline=None) as file:
        start, size = 1, 0
        lines: list[str] = []
        for number, line in itertools.chain(_lines(file, path), [(0, "")]):  # the end closes the last one
            if line.strip(BLANK):
                start = start if lines else number
                lines.append(line.removeprefix("\ufeff"))
                size += len(line)
                if size > ROW_LIMIT:
                    wrong = f"a document of more than {ROW_LIMIT:,} characters"
                    raise LabError(f"{path}:{start}: {wrong}; divide documents by blank lines")
            elif lines:
                text = "".join(lines)
                yield start, _unreadable(text) or {"text": text.strip()}
                size, lines = 0, []


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    ordinary(path)
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _once(names, path)
            for batch in file.iter_batches(batch_size=256):
                for values in zip(*map(_values, batch.columns), strict=True):
                    number += 1
                    yield number, dict(zip(names, values, strict=True))
    except LabError:
        raise
    except Exception as e:  # pyarrow raises many kinds
        raise LabError(f"{path}: is not a Parquet file and cannot be read ({first_line(e)}); get the file anew") from e


def _values(column: Any) -> list[Any]:
    """A column's values; what Python cannot hold (a year 300,000, a text that is no UTF-8) spoils its row alone."""
    try:
        return column.to_pylist()
    except Exception:  # pyarrow raises many kinds
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception as e:  # pyarrow raises many kinds
        return Unreadable(first_line(e))


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": json_lines,
    ".json": json_lines,
    ".csv": _csv,
    ".txt": _text,
    ".parquet": _parquet,
}
