"""Stores that other people hand in, into one: read as a copy, without anything in it that runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from llama2lab.annotation.files.records import Records, check, read
from llama2lab.annotation.files.taking_in import Counts, take_in
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.engines import parse_url
from llama2lab.annotation.store.faults import StoreError, explain
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine.errors import LabError, first_line

MAX_BYTES = 2**30  # of a file
MAX_ROWS = 1_000_000  # of all its tables
MAX_VALUE = 2**26  # bytes of one value
SECONDS = 120  # that looking through one file may take


def merge(
    store: Store, paths: Sequence[str | os.PathLike[str]], only: str | None = None, trust: bool = False
) -> Counts:
    """Take the labels of other stores (students' files, usually) into this one: of all of them or of none.

    Nothing that is here changes, and merging the same file again adds nothing. The other files are only read. What a
    file is not believed is in taking_in.py; `trust` believes it (who makes copies of the class's own store), and `only`
    takes the labels of the annotator of this name alone.

    Raises:
        LabError: a file that is no store, that was tampered with, or that adds labels in names it has no right to.
    """
    for path in paths:
        if store.path and os.path.exists(path) and os.path.samefile(path, store.path):
            raise LabError(f"{path} is the store that it should be merged into; leave it out")
    sources = [read_other(path) for path in paths]

    def work(conn: sa.Connection) -> Counts:
        counts = Counts()
        fresh = conn.execute(sa.select(t.items.c.id).limit(1)).scalar() is None
        for records in sources:
            take_in(conn, records, counts, trust, only, fresh)
        return counts

    return store.write(work)


def read_other(path: str | os.PathLike[str]) -> Records:
    """All rows of another store, checked. The store stays as it is, even if it is of an older version.

    Raises:
        LabError: no store, a damaged one, or one whose rows or tables are not what the library writes.
    """
    url = parse_url(path)
    if url.get_backend_name() != "sqlite":
        with open_store(path, create=False) as other, other.begin(read=True) as conn:
            return check(read(conn, other.where))
    file = Path(url.database or "")
    if not file.is_file():
        raise StoreError(f"there is no file {file} to merge; check the path")
    if file.stat().st_size > MAX_BYTES:
        raise LabError(
            f"{file} is larger than {MAX_BYTES // 2**20:,} MB, which no class's labels are; nothing was merged"
        )
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.db"
        try:
            _copy(file, copy)
            _without_what_runs(copy, file)
        except sqlite3.Error as e:
            if getattr(e, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise LabError(f"{file} takes longer to look through than a store may; nothing was merged") from e
            raise explain(e, str(file)) or _none(file, e) from e
        try:
            with open_store(copy, create=False) as other, other.begin(read=True) as conn:
                return check(read(conn, str(file)))
        except StoreError as e:
            raise StoreError(str(e).replace(str(copy), str(file)), e.retry) from e
        except (ValueError, TypeError, RecursionError, SQLAlchemyError) as e:  # a text where a time or JSON should be
            raise _none(file, e) from e


def _none(file: Path, e: Exception) -> LabError:
    return LabError(f"{file} holds rows that are none of an annotation store's ({first_line(e)})")


def _copy(file: Path, copy: Path) -> None:
    """As SQLite reads it, with whoever writes to it at this moment; with its journal where a writer died."""
    uri = f"file:{quote(os.fsencode(file))}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=30)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    except sqlite3.OperationalError as e:
        beside = [Path(f"{file}{ending}") for ending in ("-journal", "-wal") if Path(f"{file}{ending}").is_file()]
        if not beside:
            raise
        try:
            for path in (file, *beside):
                shutil.copyfile(path, f"{copy}{str(path)[len(str(file)) :]}")
        except OSError as other:
            raise LabError(f"{file} cannot be read ({other.strerror}); check its permissions") from e


def _without_what_runs(copy: Path, file: Path) -> None:
    """Take views and triggers out of the copy; LabError where a table of the store is no plain table of sound rows."""
    until = time.monotonic() + SECONDS
    with closing(sqlite3.connect(copy, isolation_level=None)) as conn:
        conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        conn.set_progress_handler(lambda: time.monotonic() > until, 100_000)
        conn.execute("PRAGMA trusted_schema=OFF")
        conn.execute("PRAGMA cell_size_check=ON")
        ours = {*t.metadata.tables, t.VERSION_TABLE}
        rows = 0
        for kind, name, made in conn.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
            quoted = '"' + name.replace('"', '""') + '"'
            if name.lower() in ours and kind in ("table", "view"):
                plain = kind == "table" and not made.upper().startswith("CREATE VIRTUAL")
                if not plain or any(hidden for *_, hidden in conn.execute(f"PRAGMA table_xinfo({quoted})")):
                    raise LabError(
                        f"{file}: {name} is no plain table but is made up when it is read; the file was "
                        "tampered with; nothing was merged"
                    )
                rows += conn.execute(f"SELECT count(*) FROM {quoted}").fetchone()[0]
            elif kind in ("view", "trigger"):
                conn.execute(f"DROP {kind} {quoted}")
        if rows > MAX_ROWS:
            raise LabError(f"{file} holds {rows:,} rows, more than the {MAX_ROWS:,} of any class; nothing was merged")
        sound = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
    if sound != "ok":
        raise StoreError(
            f"{file} is damaged ({sound}); nothing was merged; rescue what is in it with: "
            "sqlite3 FILE .recover | sqlite3 NEW"
        )
