"""Where items and labels live: an SQLite file by default, a PostgreSQL database by URL; the same code for both.

SQLite runs with a rollback journal and full fsync: an acknowledged label survives a power cut. Never with WAL: SQLite
before 3.51.3 can damage a WAL file that two processes use, and WAL does not work on network home directories. Every
transaction opens the file anew, so that a file that was moved away is noticed, not written to.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import sqlite3
import threading
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
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from llama2lab.annotation.store import address, server
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.faults import StoreError, explain, unreachable
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import KINDS

T = TypeVar("T")
BUSY_SECONDS = 30
ATTEMPTS = 8  # of a transaction that the database refused because others were writing
IDLE_SECONDS = 15  # after this long without a transaction a server's connection is closed
NAME_CHARS = 200
IPV6 = re.compile(r"[0-9A-Fa-f:.]+(%\w+)?", re.ASCII)
PLACE = re.compile(r"[^@:?#=\s]*")  # a user, a host or a database in a URL
# Marks that make the text after them run the other way: a name could disguise itself, or its neighbours, with them.
BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


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
                patient = attempt < ATTEMPTS - 1 and time.monotonic() - start < 2 * BUSY_SECONDS
                if not (patient and _collision(e.__cause__)):
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
    """A path, sqlite:///path or postgresql://user:password@host/database as SQLAlchemy's URL.

    Raises:
        LabError: what is none of them. The message never repeats an address that may hold a password, and has no
            exception behind it that does.
    """
    text = os.fspath(url).strip()
    if not text:
        raise LabError("the annotation store's URL is empty; give a file (labels.db) or postgresql://...")
    if "://" not in text:
        if address.meant_for_database(text):
            raise StoreError("the annotation store's URL is meant for a database and is none (it is not repeated "
                             f"here: it may hold a password); the form is {address.FORM}; {address.ESCAPES}")
        return URL.create("sqlite", database=os.path.abspath(os.path.expanduser(text)))
    parsed = _parsed(text)
    kind = parsed.drivername.lower()
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise StoreError("a store in memory would lose its labels; give a file, such as labels.db")
        if parsed.host or parsed.username or address.meant_for_database(parsed.database):
            raise StoreError("sqlite:// has no host and no user; an SQLite file is labels.db or sqlite:///labels.db")
        return URL.create("sqlite", database=os.path.abspath(os.path.expanduser(parsed.database)))
    if kind not in ("postgresql", "postgres", "postgresql+psycopg"):
        known = kind.split("+")[0]
        named = f"{known}:// is" if known in ("http", "https", "mysql", "file", "postgresql") else "it is"
        raise StoreError(f"{named} no annotation store; give a file, sqlite:///... or postgresql://...")
    return parsed.set(drivername="postgresql+psycopg")


def _parsed(text: str) -> URL:
    unreadable = StoreError("the annotation store's URL cannot be read (it is not repeated here: it may hold a "
                            f"password); it looks like labels.db, sqlite:///labels.db or {address.FORM}; "
                            f"{address.ESCAPES}")
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError):
        raise unreadable from None
    if parsed.drivername.lower().startswith("postgres"):
        # A sign of the password that is not escaped makes one of these odd.
        host, options = parsed.host or "", text.rpartition("@")[2].partition("?")[2].replace(";", "&").split("&")
        names = [parsed.username or "", parsed.database or "", "" if IPV6.fullmatch(host) else host]
        if (text.count("@") > 1 or not all(PLACE.fullmatch(name) for name in names)
                or any(option and "=" not in option for option in options) or not 0 < (parsed.port or 1) < 65536):
            raise unreadable
    return parsed


def public_url(url: str | os.PathLike[str] | URL) -> str:
    """What may be shown of a store's URL, in messages, pages and logs: a path, or the server and the database."""
    if not isinstance(url, URL):
        return address.public(url)
    if url.get_backend_name() == "sqlite":
        return url.database or ""
    return address.public(url.set(username=None, password=None, query={}).render_as_string(hide_password=True))


def open_store(url: str | os.PathLike[str], create: bool = True, where: str | None = None) -> Store:
    """The store at `url`, made when new (unless `create` is False) and brought to this version's schema.

    `where` is what messages call it, for places where the path or the server's name is nobody's business.
    """
    parsed = parse_url(url)
    shown = where or public_url(parsed)
    engine = _sqlite(parsed, create, where) if parsed.drivername == "sqlite" else _postgres(
        parsed, shown, server.NOBODYS)
    store = Store(engine, parsed, where)
    try:
        for attempt in range(ATTEMPTS):
            try:
                home = _prepare(store, create)
                break
            except StoreError as e:  # another has moved the store to its own schema at this moment, or is about to
                state = getattr(getattr(e.__cause__, "orig", None), "sqlstate", None) or ""
                if attempt == ATTEMPTS - 1 or not (state == "42P01" or state[:2] == "40"):
                    raise
    except BaseException:
        store.close()
        raise
    if home:  # from here on no session searches anything but the store's schema
        store.close()
        store.engine = _postgres(parsed, shown, server.search_path(home))
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
    from llama2lab.annotation.store import migrations  # Alembic takes a while to import, and is seldom needed

    if version is not None and version not in migrations.revisions():
        raise StoreError(f"{store.where} was made by a newer llama2lab (schema {version}, this one knows {t.SCHEMA}); "
                         "pip install -U llama2lab")
    try:
        with store.begin() as conn:
            if not store.sqlite:
                home = server.settle(conn, store.where)
            if _version(conn)[0] != t.SCHEMA:
                migrations.upgrade(conn)
            elif not store.sqlite:  # it was only moved: its functions still search the schema that they came from
                server.install(conn)
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


def _sqlite(url: URL, create: bool, where: str | None) -> sa.Engine:
    path = Path(url.database or "")
    if not path.exists():
        if not create:
            raise StoreError(f"there is no annotation store at {path}; check the path" if where is None else
                             f"{where} is not there; tell whoever runs this")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as e:
            raise StoreError(f"{path} cannot be made ({e.strerror}); choose another place") from e
    if path.is_dir():
        raise StoreError(f"{path} is a folder; give the path of a file in it, such as {path / 'labels.db'}")
    file = f"file:{quote(os.fsencode(path))}?mode=rw"  # never makes a new, empty file in the place of one that vanished

    def connect() -> sqlite3.Connection:
        # isolation_level None: sqlite3 opens no transaction of its own; `begin` below does.
        return sqlite3.connect(file, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def settings(connection: Any, _: Any) -> None:
        _patiently(connection, "PRAGMA foreign_keys=ON", "PRAGMA journal_mode=DELETE", "PRAGMA synchronous=FULL",
                   "PRAGMA trusted_schema=OFF")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # IMMEDIATE: the lock is taken before anything is read, so that two claims cannot see the same free slot. A
        # reader takes its lock with the first row that it reads.
        read = connection.get_execution_options().get("llama2lab_read")
        _patiently(connection.connection.dbapi_connection,
                   *(("BEGIN", "SELECT 1 FROM sqlite_master LIMIT 1") if read else ("BEGIN IMMEDIATE",)))

    return engine


def _patiently(connection: Any, *statements: str) -> None:
    """Statements that take SQLite's lock, tried until BUSY_SECONDS are over.

    SQLite's own waiting asks ever more seldom, so that among many writers those who came last are served first and
    some starve. Here everybody asks equally often, at random moments.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    connection.execute("PRAGMA busy_timeout=0")
    while True:
        try:
            for statement in statements:
                connection.execute(statement).fetchall()
            break
        except sqlite3.OperationalError as e:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not _collision(e) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.002, 0.03))
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")  # for the commit, which waits for readers


def _postgres(url: URL, where: str, search_path: str) -> sa.Engine:
    """An engine that holds one connection while it is busy and none when it rests: a page that nobody touches takes no
    place on the server. It connects by a function, so that neither the engine nor its errors know the URL."""
    try:
        import psycopg
        from psycopg.pq import Conninfo
    except ImportError as e:
        raise StoreError(f"{where}: the driver is missing; pip install 'psycopg[binary]'") from e
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    if not set(url.query) <= known:
        raise StoreError(f"{where}: the URL has an option after its ? that PostgreSQL does not know; correct it")
    path = re.sub(r"([\\ ])", r"\\\1", search_path)  # as libpq wants it
    places, given = url.get_dialect()().create_connect_args(url)
    options = {**given, "connect_timeout": 10, "tcp_user_timeout": 15000, "keepalives_idle": 20,
               "application_name": "llama2lab", "options": f"-c lock_timeout={BUSY_SECONDS * 1000} -c TimeZone=UTC "
                                                           f"-c search_path={path}"}

    def connect() -> Any:
        try:
            return psycopg.connect(*places, **options)
        except (psycopg.Error, ValueError, UnicodeError) as e:  # a ValueError: what no URL can hold, such as a NUL
            fault = unreachable(e, where)
        raise fault  # outside of the handler: the driver's words, which may hold parts of the URL, are not behind it

    engine = sa.create_engine("postgresql+psycopg://", creator=connect, pool_size=1, max_overflow=4, pool_pre_ping=True,
                              pool_timeout=BUSY_SECONDS, hide_parameters=True,
                              use_native_hstore=False)  # to look for its type is a query more for each connection
    _close_when_idle(engine)
    return engine


def _close_when_idle(engine: sa.Engine) -> None:
    lock = threading.Lock()
    timers: list[threading.Timer] = []

    def close() -> None:
        if not engine.pool.checkedout():  # type: ignore[attr-defined]
            engine.dispose()

    @sa.event.listens_for(engine, "checkin")
    def rested(*_: Any) -> None:
        timer = threading.Timer(IDLE_SECONDS, close)
        timer.daemon = True
        with lock:
            while timers:
                timers.pop().cancel()
            timers.append(timer)
        timer.start()


def _collision(cause: BaseException | None) -> bool:
    """Refused because others were writing, and certainly not committed."""
    original = getattr(cause, "orig", cause)
    code, state = getattr(original, "sqlite_errorcode", None), getattr(original, "sqlstate", None)
    return (code is not None and code & 0xFF in (5, 6)) or (state is not None and (state[:2] == "40"
                                                                                   or state in ("55P03", "23505")))
