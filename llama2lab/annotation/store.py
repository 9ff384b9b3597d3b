"""Where items and labels live: an SQLite file by default, a PostgreSQL database by URL; the same code for both.

SQLite runs with a rollback journal and full fsync: an acknowledged label survives a power cut. Never with WAL: SQLite
before 3.51.3 can damage a WAL file that two processes use, and WAL does not work on network home directories. Every
transaction opens the file anew, so that a file that was moved away is noticed, not written to.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from llama2lab.annotation import server
from llama2lab.annotation import tables as t
from llama2lab.annotation.faults import StoreError, explain
from llama2lab.annotation.scale import KINDS
from llama2lab.errors import LabError

T = TypeVar("T")
BUSY_SECONDS = 30
ATTEMPTS = 4  # of a transaction that the database refused because others were writing
NAME_CHARS = 200
# Marks that make the text after them run the other way: a name could disguise itself, or its neighbours, with them.
BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Store:
    """An open annotation store; `with open_store(url) as store: ...` closes it."""

    def __init__(self, engine: sa.Engine, url: URL):
        self.engine = engine
        self.url = url.render_as_string(hide_password=True)
        self.path = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
        self.where = str(self.path) if self.path else self.url

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
                patient = attempt < ATTEMPTS - 1 and time.monotonic() - start < BUSY_SECONDS
                if not (patient and _collision(e.__cause__)):
                    raise
                time.sleep(0.05 * 2**attempt)
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
            whose = self._whose(conn)
            if whose is not None:
                raise LabError(f"this URL is {whose}'s; label under that name, or ask your teacher for your own URL")
            new = uuid.uuid4().hex
            conn.execute(t.annotators.insert().values(id=new, name=name, kind=kind, vendor=vendor))
            return new

        return self.write(find)

    def login(self) -> str | None:
        """The name of the annotator whose URL this is; None where anybody may say who they are."""
        with self.begin(read=True) as conn:
            return self._whose(conn)

    def _whose(self, conn: sa.Connection) -> str | None:
        if self.sqlite:
            return None
        me = conn.execute(sa.select(sa.func.llama2lab_me())).scalar()
        return None if me is None else conn.execute(
            sa.select(t.annotators.c.name).where(t.annotators.c.id == me)).scalar_one()

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


def guidelines_version(kind: str, text: str) -> str:
    """The same for the same text, so that nobody can put another text in its place."""
    return hashlib.sha256(f"{kind}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def newest_guidelines(kind: str, *columns: Any) -> sa.Select:
    g = t.guidelines
    # What is dated at the epoch came with labels of other stores (records.py), and is kept for these alone.
    return sa.select(*columns).where(g.c.kind == kind, g.c.created_at > t.LONG_AGO).order_by(
        g.c.created_at.desc(), g.c.version).limit(1)


def clean_name(name: str) -> str:
    """A person's name as it is kept: one line without control characters; LabError for what is none."""
    cleaned = " ".join(unicodedata.normalize("NFC", name).split())
    if not cleaned:
        raise LabError("an annotator needs a name; give one")
    if len(cleaned) > NAME_CHARS:
        raise LabError(f"the name {cleaned[:20]!r}... is longer than {NAME_CHARS} characters; shorten it")
    bad = next((c for c in cleaned if unicodedata.category(c) in ("Cc", "Cs", "Cn") or c in BIDI), None)
    if bad is not None:
        raise LabError(f"the name {cleaned!r} holds the character U+{ord(bad):04X}, which no name needs; leave it out")
    return cleaned


def parse_url(url: str | os.PathLike[str]) -> URL:
    """A path, sqlite:///path or postgresql://user:password@host/database as SQLAlchemy's URL."""
    text = os.fspath(url)
    if "://" not in text:
        if not text.strip():
            raise LabError("the annotation store's URL is empty; give a file (labels.db) or postgresql://...")
        return URL.create("sqlite", database=os.path.abspath(os.path.expanduser(text)))
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError) as e:
        raise StoreError("the annotation store's URL cannot be read; it looks like labels.db, sqlite:///labels.db or "
                         "postgresql://user:password@host:5432/database") from e
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise StoreError(f"{parsed.drivername}:// is no annotation store; give a file, sqlite:/// or postgresql://")
    if parsed.drivername == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise StoreError("a store in memory would lose its labels; give a file, such as labels.db")
        parsed = URL.create("sqlite", database=os.path.abspath(os.path.expanduser(parsed.database)))
    return parsed


def open_store(url: str | os.PathLike[str], create: bool = True) -> Store:
    """The store at `url`, made when new (unless `create` is False) and brought to this version's schema."""
    parsed = parse_url(url)
    try:
        engine = _sqlite(parsed, create) if parsed.drivername == "sqlite" else _postgres(parsed, server.NOBODYS)
    except NoSuchModuleError as e:
        raise StoreError(f"{parsed.drivername}: the driver is missing; pip install 'psycopg[binary]'") from e
    store = Store(engine, parsed)
    try:
        try:
            home = _prepare(store, create)
        except StoreError as e:  # another has moved the store to its own schema at this moment
            if getattr(getattr(e.__cause__, "orig", None), "sqlstate", None) != "42P01":
                raise
            home = _prepare(store, create)
    except BaseException:
        store.close()
        raise
    if home:  # from here on no session searches anything but the store's schema
        store.close()
        store.engine = _postgres(parsed, server.search_path(home))
    return store


def _prepare(store: Store, create: bool) -> str | None:
    """Make the tables, or bring them up to date; StoreError for what is no store of ours or a newer one.

    The schema that the store stands in; None on SQLite.
    """
    home = None
    with store.begin(read=True) as conn:
        if store.sqlite:
            version, tables = _version(conn)
            current = version == t.SCHEMA
        else:
            encoding = conn.exec_driver_sql("SHOW server_encoding").scalar()
            if encoding != "UTF8":
                raise StoreError(f"{store.where}: the database's encoding is {encoding}, which cannot hold every "
                                 "text; create one with ENCODING 'UTF8'")
            found = server.look(conn)
            home, version, tables = found.schema, found.version, set(found.tables)
            current = version == t.SCHEMA and not found.moves
    if current:
        missing = set(t.metadata.tables) - tables
        if missing:  # a view in the place of a table could go on for ever
            raise StoreError(f"{store.where} has not the tables of an annotation store ({', '.join(sorted(missing))}); "
                             "give the path of one, or of a new file")
        return home
    if version is None:
        if tables & set(t.metadata.tables) or (tables and store.sqlite):
            raise StoreError(f"{store.where} holds other tables ({', '.join(sorted(tables)[:3])}), not those of an "
                             "annotation store; give another path or database")
        if not create:
            raise StoreError(f"there is no annotation store in {store.where}; check the path or the end of the URL")
    from llama2lab.annotation import migrations  # Alembic takes a while to import, and is seldom needed

    if version is not None and version not in migrations.revisions():
        raise StoreError(f"{store.where} was made by a newer llama2lab (schema {version}, this one knows {t.SCHEMA}); "
                         "pip install -U llama2lab")
    try:
        with store.begin() as conn:
            if not store.sqlite:
                home = server.settle(conn, store.where)
            if _version(conn)[0] != t.SCHEMA:
                migrations.upgrade(conn)
    except StoreError as e:
        state = getattr(getattr(e.__cause__, "orig", None), "sqlstate", None)
        if state == "42501":
            raise StoreError(f"{store.where}: the database is not set up for this version of llama2lab (schema "
                             f"{version or 'none'}, wanted {t.SCHEMA}), and this login may not do it; ask whoever made "
                             "it to open it once") from e
        raise
    return home


def _version(conn: sa.Connection) -> tuple[str | None, set[str]]:
    """The schema's version, None where there is none, and the tables that there are: real ones, no views."""
    if conn.dialect.name == "sqlite":
        tables = set(conn.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE "
                                          "'sqlite_%' AND sql NOT LIKE 'CREATE VIRTUAL%'").scalars())
    else:
        tables = set(sa.inspect(conn).get_table_names())
    if t.VERSION_TABLE not in tables:
        return None, tables
    return conn.execute(sa.text(f"SELECT version_num FROM {t.VERSION_TABLE}")).scalar(), tables


def _sqlite(url: URL, create: bool) -> sa.Engine:
    path = Path(url.database or "")
    if not path.exists():
        if not create:
            raise StoreError(f"there is no annotation store at {path}; check the path")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as e:
            raise StoreError(f"{path} cannot be made ({e.strerror}); choose another place") from e
    if path.is_dir():
        raise StoreError(f"{path} is a folder; give the path of a file in it, such as {path / 'labels.db'}")
    address = f"file:{quote(str(path))}?mode=rw"  # never makes a new, empty file in the place of one that vanished

    def connect() -> sqlite3.Connection:
        # isolation_level None: sqlite3 opens no transaction of its own; `begin` below does.
        return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)

    @sa.event.listens_for(engine, "connect")
    def settings(connection: Any, _: Any) -> None:
        for pragma in (f"busy_timeout={BUSY_SECONDS * 1000}", "foreign_keys=ON", "journal_mode=DELETE",
                       "synchronous=FULL", "trusted_schema=OFF"):
            connection.execute(f"PRAGMA {pragma}").fetchall()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # IMMEDIATE: the lock is taken before anything is read, so that two claims cannot see the same free slot.
        read = connection.get_execution_options().get("llama2lab_read")
        connection.exec_driver_sql("BEGIN" if read else "BEGIN IMMEDIATE")

    return engine


def _postgres(url: URL, search_path: str) -> sa.Engine:
    path = re.sub(r"([\\ ])", r"\\\1", search_path)  # as libpq wants it
    # No native hstore: to look for its type is a query more for each connection.
    return sa.create_engine(url, pool_size=2, max_overflow=3, pool_pre_ping=True, pool_timeout=BUSY_SECONDS,
                            use_native_hstore=False,
                            connect_args={"connect_timeout": 10, "tcp_user_timeout": 15000, "keepalives_idle": 20,
                                          "application_name": "llama2lab",
                                          "options": f"-c lock_timeout={BUSY_SECONDS * 1000} -c TimeZone=UTC "
                                                     f"-c search_path={path}"})


def _collision(cause: BaseException | None) -> bool:
    """Refused because others were writing, and certainly not committed."""
    original = getattr(cause, "orig", cause)
    code, state = getattr(original, "sqlite_errorcode", None), getattr(original, "sqlstate", None)
    return (code is not None and code & 0xFF in (5, 6)) or (state is not None and (state[:2] == "40"
                                                                                   or state in ("55P03", "23505")))
