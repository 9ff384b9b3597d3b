"""From a store's URL to an SQLAlchemy engine, and what the two kinds of database need to be safe with many writers.

SQLite runs with a rollback journal and full fsync: an acknowledged label survives a power cut. Never with WAL: SQLite
before 3.51.3 can damage a WAL file that two processes use, and WAL does not work on network home directories. Every
transaction opens the file anew, so that a file that was moved away is noticed, not written to.
"""

from __future__ import annotations

import os
import random
import re
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from llama2lab.annotation.store import address
from llama2lab.annotation.store.faults import StoreError, sqlstate, unreachable
from llama2lab.engine.errors import LabError

BUSY_SECONDS = 30
IDLE_SECONDS = 15  # after this long without a transaction a server's connection is closed
IPV6 = re.compile(r"[0-9A-Fa-f:.]+(%\w+)?", re.ASCII)
PLACE = re.compile(r"[^@:?#=\s]*")  # a user, a host or a database in a URL


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
            raise StoreError(
                "the annotation store's URL is meant for a database and is none (it is not repeated "
                f"here: it may hold a password); the form is {address.FORM}; {address.ESCAPES}"
            )
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
    unreadable = StoreError(
        "the annotation store's URL cannot be read (it is not repeated here: it may hold a "
        f"password); it looks like labels.db, sqlite:///labels.db or {address.FORM}; "
        f"{address.ESCAPES}"
    )
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError):
        raise unreadable from None
    if parsed.drivername.lower().startswith("postgres"):
        # A sign of the password that is not escaped makes one of these odd.
        host, options = parsed.host or "", text.rpartition("@")[2].partition("?")[2].replace(";", "&").split("&")
        names = [parsed.username or "", parsed.database or "", "" if IPV6.fullmatch(host) else host]
        if (
            text.count("@") > 1
            or not all(PLACE.fullmatch(name) for name in names)
            or any(option and "=" not in option for option in options)
            or not 0 < (parsed.port or 1) < 65536
        ):
            raise unreadable
    return parsed


def public_url(url: str | os.PathLike[str] | URL) -> str:
    """What may be shown of a store's URL, in messages, pages and logs: a path, or the server and the database."""
    if not isinstance(url, URL):
        return address.public(url)
    if url.get_backend_name() == "sqlite":
        return url.database or ""
    return address.public(url.set(username=None, password=None, query={}).render_as_string(hide_password=True))


def sqlite_engine(url: URL, create: bool, where: str | None) -> sa.Engine:
    path = Path(url.database or "")
    if not path.exists():
        if not create:
            raise StoreError(
                f"there is no annotation store at {path}; check the path"
                if where is None
                else f"{where} is not there; tell whoever runs this"
            )
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
        wanted = ("foreign_keys=ON", "journal_mode=DELETE", "synchronous=FULL", "trusted_schema=OFF")
        _patiently(connection, *(f"PRAGMA {setting}" for setting in wanted))

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # IMMEDIATE: the lock is taken before anything is read, so that two claims cannot see the same free slot. A
        # reader takes its lock with the first row that it reads.
        read = connection.get_execution_options().get("llama2lab_read")
        statements = ("BEGIN", "SELECT 1 FROM sqlite_master LIMIT 1") if read else ("BEGIN IMMEDIATE",)
        _patiently(connection.connection.dbapi_connection, *statements)

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
            if not collision(e) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.002, 0.03))
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")  # for the commit, which waits for readers


def postgres_engine(url: URL, where: str, search_path: str) -> sa.Engine:
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
    places, own = url.get_dialect()().create_connect_args(url)
    options = {
        **own,
        "connect_timeout": 10,
        "tcp_user_timeout": 15000,
        "keepalives_idle": 20,
        "application_name": "llama2lab",
        "options": f"-c lock_timeout={BUSY_SECONDS * 1000} -c TimeZone=UTC -c search_path={path}",
    }

    def connect() -> Any:
        try:
            return psycopg.connect(*places, **options)
        except (psycopg.Error, ValueError, UnicodeError) as e:  # a ValueError: what no URL can hold, such as a NUL
            fault = unreachable(e, where)
        raise fault  # outside of the handler: the driver's words, which may hold parts of the URL, are not behind it

    pool = {"pool_size": 1, "max_overflow": 4, "pool_pre_ping": True, "pool_timeout": BUSY_SECONDS}
    # Hstore: to look for its type is a query more for each connection.
    given = {"creator": connect, "hide_parameters": True, "use_native_hstore": False}
    engine = sa.create_engine("postgresql+psycopg://", **given, **pool)
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


def collision(cause: BaseException | None) -> bool:
    """Refused because others were writing, and certainly not committed."""
    code, state = getattr(getattr(cause, "orig", cause), "sqlite_errorcode", 0), sqlstate(cause)
    return code & 0xFF in (5, 6) or state[:2] == "40" or state in ("55P03", "23505")
