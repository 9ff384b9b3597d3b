"""A class's two files: the roster that a teacher gives, and the URLs that the teacher hands out."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from llama2lab.annotation.store.checks import clean_name
from llama2lab.engine.errors import LabError
from llama2lab.engine.rows import has_end

ROSTER_BYTES = 1 << 24
HEADER = ["name", "url"]


def read_roster(path: str | os.PathLike[str]) -> list[str]:
    """The names of a roster: one in each line, or the column `name` of a CSV file. Broken lines are named."""
    file = Path(os.path.expanduser(path))
    try:
        has_end(file)
        if file.stat().st_size > ROSTER_BYTES:
            raise LabError(f"the roster {file} is larger than {ROSTER_BYTES:,} bytes; is this the right file?")
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as e:
        raise LabError(f"the roster {file} cannot be read ({e.strerror}); check the path") from e
    except UnicodeDecodeError as e:
        raise LabError(
            f"the roster {file} line {e.object[: e.start].count(10) + 1} is not UTF-8; save it as UTF-8"
        ) from e
    found: dict[str, tuple[str, int]] = {}
    wrong = []
    for line, name in _names(text, file):
        try:
            name = clean_name(name)
            if name[0] in "=+@(":
                raise LabError(f"the name {name!r} begins with {name[0]!r}; leave that out")
            first = found.get(name.casefold())
            if first:
                raise LabError(f"{name!r} is in line {first[1]} already; tell the two apart, or remove one")
            found[name.casefold()] = (name, line)
        except LabError as e:
            wrong.append(f"line {line}: {e}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise LabError(f"the roster {file}: {'; '.join(wrong[:5])}{more}; nothing was made")
    if not found:
        raise LabError(f"the roster {file} holds no name; write one in each line")
    return [name for name, _ in found.values()]


def _names(text: str, file: Path) -> list[tuple[int, str]]:
    lines = text.splitlines()
    header = [cell.strip().casefold() for cell in next(csv.reader(lines[:1]), [])]
    if "name" not in header:
        names = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"]
        _no_table([line for _, line in names], file)
        return names
    column, rows = header.index("name"), csv.reader(io.StringIO(text, newline=""), strict=True)
    names, line = [], 1
    try:
        for number, row in enumerate(rows):
            if number and any(cell.strip() for cell in row):
                names.append((line, row[column] if column < len(row) else ""))
            line = rows.line_num + 1
    except csv.Error as e:
        raise LabError(f"the roster {file} line {rows.line_num} is no CSV ({e}); mend the quotes") from e
    return names


def _no_table(names: Sequence[str], file: Path) -> None:
    """LabError for the rows of a table whose column of names we cannot tell: each would be somebody's whole name."""
    for divider, what in ((";", "semicolons"), ("\t", "tabs"), (r",(?=\S)", "commas"), (r'^".*"$', "")):
        rows = [re.split(divider, name.strip()) for name in names]
        if (len(rows) > 1 and all(len(row) > 1 for row in rows)) or (
            rows and what and "name" in (cell.strip(' "').casefold() for cell in rows[0]) and len(rows[0]) > 1
        ):
            said = f"columns divided by {what}" if what else "quotes around each line"
            raise LabError(
                f"the roster {file} is a table ({said}), and not a name in each line; give CSV with commas "
                "whose first line names the column 'name'"
            )


def read_urls(file: Path) -> dict[str, str]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.reader(lines))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise LabError(
            f"{file} cannot be read ({getattr(e, 'strerror', None) or e}); choose another file for the URLs"
        ) from e
    if rows[:1] != [HEADER] or any(len(row) != 2 for row in rows):
        raise LabError(f"{file} is there and is no file of a class's URLs; choose another one")
    return {name: url for name, url in rows[1:]}


def write_urls(file: Path, urls: dict[str, str]) -> None:
    """Readable for nobody else, at no moment."""
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        with os.fdopen(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline=""
        ) as out:
            csv.writer(out).writerows([HEADER, *map(list, urls.items())])
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, file)
    except OSError as e:
        raise LabError(
            f"{file} cannot be written ({e.strerror}); choose another place for the URLs; no login was made"
        ) from e
