"""What a database says when something is wrong with it, in words and with a cure."""

from __future__ import annotations

import re
import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from llama2lab.engine.errors import LabError, first_line


class StoreError(LabError):
    """The store cannot do it now. `retry`: the same call may succeed later, without anybody changing anything here."""

    def __init__(self, message: str, retry: bool = False):
        super().__init__(message)
        self.retry = retry


LOCKED = ("is locked by another program that writes to it; it is tried again, or close the other program", True)
# SQLite's primary result codes (the low byte of sqlite_errorcode).
SQLITE = {
    3: ("may not be read or written by you; mend its permissions", False),
    5: LOCKED,
    6: LOCKED,
    8: ("is read-only; mend the permissions of the file and its folder, or open a copy elsewhere", True),
    10: (
        "cannot be read or written: the disk or the network folder failed; check it, and keep the file on a disk of "
        "this machine",
        True,
    ),
    11: ("is damaged; keep it, and rescue what is in it with: sqlite3 FILE .recover | sqlite3 NEW", False),
    13: ("cannot grow: the disk is full, or your quota is; free some space", True),
    14: ("cannot be opened: it has vanished, or its folder or permissions are wrong; put it back", True),
    15: (
        "cannot be locked, as happens on network folders; it is tried again, or move the file to a disk of this "
        "machine",
        True,
    ),
    26: ("is no SQLite database, or is damaged; give the path of an annotation store", False),
}

# PostgreSQL's SQLSTATE, by code or by class.
POSTGRES = {
    "22": ("a value cannot be kept, such as a NUL character or a number that is too large; nothing was saved", False),
    "23505": ("another program wrote the same row at the same moment; it is tried again", True),
    "28P01": ("the server refuses this name and password; check the URL that your teacher gave you", False),
    "28": ("the server refuses this login; check the URL that your teacher gave you", False),
    "3D000": ("there is no database of this name on the server; check the end of the URL, or create it", False),
    "42501": ("this login may not do that; ask your teacher, whose URL may", False),
    "53100": ("the server's disk is full; tell whoever runs it; it is tried again", True),
    "53300": ("the server has too many connections; it is tried again", True),
    "53": ("the server is short of memory or disk; it is tried again", True),
    "25006": ("the server is read-only now; tell whoever runs it; it is tried again", True),
    "40": ("another program changed the same rows; it is tried again", True),
    "55P03": ("another program holds the rows that this needs; it is tried again", True),
    "57014": ("the server gave up waiting; it is tried again", True),
    "57": ("the server is shutting down or starting; it is tried again", True),
    "08": ("the connection to the server is lost; it is tried again", True),
    "XX001": ("the server says that its data are damaged; tell whoever runs it", False),
    "XX002": ("the server says that its data are damaged; tell whoever runs it", False),
}


def sqlstate(error: BaseException | None) -> str:
    """PostgreSQL's code of an error, its driver's or SQLAlchemy's; "" where there is none."""
    return getattr(getattr(error, "orig", error), "sqlstate", None) or ""


def explain(error: Exception, where: str) -> StoreError | None:
    """The StoreError for a database's exception; None if it is no fault of the database but of our code."""
    if isinstance(error, PoolTimeout):
        return StoreError(f"{where}: all connections are busy; it is tried again", retry=True)
    original: Exception = getattr(error, "orig", None) or error
    state = sqlstate(original)
    if type(original).__name__ == "DataError" and not state:
        return StoreError(f"{where}: {POSTGRES['22'][0]}")  # the driver would not even send it
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            return StoreError(f"{where} was moved away while it was written to; put it back", retry=True)
        if known := SQLITE.get(code & 0xFF):
            return StoreError(f"{where} {known[0]}", known[1])
        if "no such table" in str(original) or "no such column" in str(original):
            return StoreError(
                f"{where} has not the tables of an annotation store ({first_line(original)}); give the "
                "path of one, or of a new file"
            )
        return None
    if state:
        if known := POSTGRES.get(state) or POSTGRES.get(state[:2]):
            return StoreError(f"{where}: {known[0]}", known[1])
        if state in ("42P01", "42703", "42883"):
            return StoreError(
                f"{where}: the database has not the tables of an annotation store "
                f"({first_line(original)}); check the end of the URL"
            )
        return None
    lost = isinstance(error, InterfaceError) or (isinstance(error, DBAPIError) and error.connection_invalidated)
    return unreachable(original, where) if lost or type(original).__name__ == "OperationalError" else None


# What psycopg says, which has no code before there is a connection: (pattern, the code that it would be).
CONNECTING = (
    ("password authentication failed|no password supplied", "28P01"),
    ("database.*does not exist", "3D000"),
    (r"role.*does not exist|pg_hba\.conf", "28"),
    ("too many clients|too many connections|remaining connection slots", "53300"),
)
REASONS = (
    "Connection refused",
    "timeout expired",
    "No route to host",
    "Network is unreachable",
    "Name or service not known",
    "failed to resolve host",
    "Temporary failure in name resolution",
    "server closed the connection unexpectedly",
    "server does not support SSL",
    "SSL error",
    "certificate verify failed",
    "Connection reset by peer",
    "the database system is shutting down",
    "the database system is starting up",
    "No such file or directory",
    "Permission denied",
)


def unreachable(error: Exception, where: str) -> StoreError:
    """For a server with which there is no connection. The driver's own words can hold parts of the URL, a password
    that was not escaped among them: only words that we know are passed on."""
    said = str(error)
    for pattern, code in CONNECTING:
        if re.search(pattern, said, re.DOTALL):
            return StoreError(f"{where}: {POSTGRES[code][0]}", POSTGRES[code][1])
    reason = next((f" ({one})" for one in REASONS if one in said), "")
    return StoreError(
        f"{where}: the server does not answer{reason}; check that it runs, its name and port in the URL, "
        "and the network; it is tried again",
        retry=True,
    )
