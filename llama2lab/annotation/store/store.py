"""Where items and labels live: an SQLite file by default, a PostgreSQL database by URL; the same code for both."""

from __future__ import annotations

import os
import random
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from llama2lab.annotation.store import engines, server
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import clean_name, guidelines_version
from llama2lab.annotation.store.engines import parse_url, public_url
from llama2lab.annotation.store.faults import StoreError, explain, sqlstate
from llama2lab.annotation.store.in_force import labels_in_force
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import KINDS

T = TypeVar("T")
ATTEMPTS = 8  # of a transaction that the database refused because others were writing


class Store:
    """An open annotation store; `with open_store(url) as store: ...` closes it."""

    def __init__(self, engine: sa.Engine, url: URL, where: str | None = None):
        self.engine = engine
        self.url = public_url(url)
        self.path = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
        self.where = where or (str(self.path) if self.path else self.url)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.engine.dispose()

    @property
    def sqlite(self) -> bool:
        return self.path is not None

    @contextmanager
    def begin(self, read: bool = False) -> Iterator[sa.Connection]:
        """A transaction. Faults of the database leave it as StoreError; on return it is committed and on the disk.

        `read` waits for no other reader and works on a file that may not be written to.
        """
        try:
            before = self._inode()
            engine = self.engine.execution_options(llama2lab_read=True) if read else self.engine
            with engine.begin() as conn:
                yield conn
            if self._inode() != before:
                raise StoreError(f"{self.where} was moved away or replaced while it was written to; put it back", True)
        except (SQLAlchemyError, sqlite3.Error) as e:
            fault = explain(e, self.where)
            if fault is None:
                raise
            raise fault from e

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """`work` in a transaction, again where others were in the way; it must not matter how often it runs."""
        start = time.monotonic()
        for attempt in range(ATTEMPTS):
            try:
                with self.begin() as conn:
                    return work(conn)
            except StoreError as e:
                patient = attempt < ATTEMPTS - 1 and time.monotonic() - start < 2 * engines.BUSY_SECONDS
                if not (patient and engines.collision(e.__cause__)):
                    raise
                time.sleep(random.uniform(0, min(1.0, 0.05 * 2**attempt)))
        raise AssertionError("unreachable")

    def _inode(self) -> tuple[int, int] | None:
        if self.path is None:
            return None
        try:
            found = os.stat(self.path)
        except OSError as e:
            raise StoreError(f"{self.where} has vanished ({e.strerror}); put it back", retry=True) from e
        return found.st_dev, found.st_ino

    def annotator(self, name: str, kind: str = "person", vendor: str = "") -> str:
        """The id of the annotator of this name, who is created when new."""
        name = clean_name(name)
        if kind not in ("person", "simulated"):
            raise LabError(f"annotators are of kind 'person' or 'simulated', not {kind!r}")

        def find(conn: sa.Connection) -> str:
            known = conn.execute(sa.select(t.annotators.c.id).where(t.annotators.c.name == name)).scalar()
            if known:
                return known
            whose = self.login_of(conn)
            if whose is not None:
                raise LabError(f"this URL is {whose}'s; label under that name, or ask your teacher for your own URL")
            new = uuid.uuid4().hex
            conn.execute(t.annotators.insert().values(id=new, name=name, kind=kind, vendor=vendor))
            return new

        return self.write(find)

    def login(self) -> str | None:
        """The name of the annotator whose URL this is; None where anybody may say who they are."""
        with self.begin(read=True) as conn:
            return self.login_of(conn)

    def login_of(self, conn: sa.Connection) -> str | None:
        """The same, inside a transaction."""
        if self.sqlite:
            return None
        me = sa.select(sa.func.llama2lab_me()).scalar_subquery()
        return conn.execute(sa.select(t.annotators.c.name).where(t.annotators.c.id == me)).scalar()

    def add_guidelines(self, kind: str, text: str) -> str:
        """The version of these guidelines, which are the ones in force for this kind from now on."""
        if kind not in KINDS:
            raise LabError(f"guidelines are for {' or '.join(KINDS)}, not {kind!r}")
        version = guidelines_version(kind, text)

        def add(conn: sa.Connection) -> str:
            g = t.guidelines
            if conn.execute(sa.select(g.c.version).where(g.c.version == version)).scalar():
                conn.execute(g.update().where(g.c.version == version).values(created_at=t.now()))
            else:
                conn.execute(g.insert().values(version=version, kind=kind, text=text))
            return version

        return self.write(add)

    def guidelines(self, kind: str) -> tuple[str, str]:
        """(version, text) of the guidelines in force for this kind; ("", "") where there are none."""
        with self.begin(read=True) as conn:
            found = conn.execute(newest_guidelines(kind, t.guidelines.c.version, t.guidelines.c.text)).first()
        return (found[0], found[1]) if found else ("", "")

    def labels(self) -> list[dict[str, Any]]:
        """Every label in force, with its item and its annotator, in the order of the queue."""
        with self.begin(read=True) as conn:
            return labels_in_force(conn)


def newest_guidelines(kind: str, *columns: Any) -> sa.Select:
    g = t.guidelines
    # What is dated at the epoch came with labels of other stores (taking_in.py), and is kept for these alone.
    return (
        sa.select(*columns)
        .where(g.c.kind == kind, g.c.created_at > t.LONG_AGO)
        .order_by(g.c.created_at.desc(), g.c.version)
        .limit(1)
    )


def open_store(url: str | os.PathLike[str], create: bool = True, where: str | None = None) -> Store:
    """The store at `url`, made when new (unless `create` is False) and brought to this version's schema.

    `where` is what messages call it, for places where the path or the server's name is nobody's business.
    """
    parsed = parse_url(url)
    shown = where or public_url(parsed)
    engine = (
        engines.sqlite_engine(parsed, create, where)
        if parsed.drivername == "sqlite"
        else engines.postgres_engine(parsed, shown, server.NOBODYS)
    )
    store = Store(engine, parsed, where)
    try:
        for attempt in range(ATTEMPTS):
            try:
                home = _prepare(store, create)
                break
            except StoreError as e:  # another has moved the store to its own schema at this moment, or is about to
                state = sqlstate(e.__cause__)
                if attempt == ATTEMPTS - 1 or not (state == "42P01" or state[:2] == "40"):
                    raise
    except BaseException:
        store.close()
        raise
    if home:  # from here on no session searches anything but the store's schema
        store.close()
        store.engine = engines.postgres_engine(parsed, shown, server.search_path(home))
    return store


def _prepare(store: Store, create: bool) -> str | None:
    """Make the tables, or bring them up to date; StoreError for what is no store of ours or a newer one.

    The schema that the store stands in; None on SQLite.
    """
    home, moves = None, False
    with store.begin(read=True) as conn:
        if store.sqlite:
            version, tables = _version(conn)
        else:
            encoding = conn.exec_driver_sql("SHOW server_encoding").scalar()
            if encoding != "UTF8":
                raise StoreError(
                    f"{store.where}: the database's encoding is {encoding}, which cannot hold every "
                    "text; create one with ENCODING 'UTF8'"
                )
            found = server.look(conn)
            home, version, tables, moves = found.schema, found.version, set(found.tables), found.moves
    if version == t.SCHEMA and not moves:
        missing = set(t.metadata.tables) - tables
        if missing:  # a view in the place of a table could go on for ever
            raise StoreError(
                f"{store.where} has not the tables of an annotation store ({', '.join(sorted(missing))}); "
                "give the path of one, or of a new file"
            )
        return home
    if version is None:
        if tables & set(t.metadata.tables) or (tables and store.sqlite):
            raise StoreError(
                f"{store.where} holds other tables ({', '.join(sorted(tables)[:3])}), not those of an "
                "annotation store; give another path or database"
            )
        if not create:
            raise StoreError(f"there is no annotation store in {store.where}; check the path or the end of the URL")
    from llama2lab.annotation.store import migrations  # Alembic takes a while to import, and is seldom needed

    if version is not None and version not in migrations.revisions():
        raise StoreError(
            f"{store.where} was made by a newer llama2lab (schema {version}, this one knows {t.SCHEMA}); "
            "pip install -U llama2lab"
        )
    try:
        with store.begin() as conn:
            if not store.sqlite:
                home = server.settle(conn, store.where)
            if _version(conn)[0] != t.SCHEMA:
                migrations.upgrade(conn)
            elif not store.sqlite:  # it was only moved: its functions still search the schema that they came from
                server.install(conn)
    except StoreError as e:
        if sqlstate(e.__cause__) == "42501":
            raise StoreError(
                f"{store.where}: the database is not set up for this version of llama2lab (schema "
                f"{version or 'none'}, wanted {t.SCHEMA}), and this login may not do it; ask whoever made "
                "it to open it once"
            ) from e
        raise
    return home


def _version(conn: sa.Connection) -> tuple[str | None, set[str]]:
    """The schema's version, None where there is none, and the tables that there are: real ones, no views."""
    if conn.dialect.name == "sqlite":
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' "
        tables = set(conn.exec_driver_sql(query + "AND sql NOT LIKE 'CREATE VIRTUAL%'").scalars())
    else:
        tables = set(sa.inspect(conn).get_table_names())
    if t.VERSION_TABLE not in tables:
        return None, tables
    return conn.execute(sa.text(f"SELECT version_num FROM {t.VERSION_TABLE}")).scalar(), tables
