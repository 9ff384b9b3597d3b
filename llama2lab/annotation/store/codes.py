"""Personal codes: how visitors of `llama2lab annotate` are known again, where nothing better says who somebody is.

Whoever gives a name for the first time chooses its code. Only a salted hash (scrypt) is kept, and every try is counted
before it is looked at, so that many at once are no way around the limit. `forget` lets a name choose anew.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import unicodedata
import uuid
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.checks import clean_name
from llama2lab.annotation.store.store import Store
from llama2lab.engine.errors import LabError

SHORTEST, LONGEST = 6, 200
DIFFERENT = 4  # characters that a code has at least
TRIES = 5  # wrong codes in a row; then one every WAIT
WAIT = timedelta(minutes=10)
COST = {"n": 2**14, "r": 8, "p": 1}  # 16 MB and a few hundredths of a second for each try


def hashed(code: str, salt: bytes | None = None) -> str:
    salt = salt or os.urandom(16)
    made = hashlib.scrypt(code.encode("utf-8", "surrogatepass"), salt=salt, dklen=32, **COST)
    return f"scrypt${salt.hex()}${made.hex()}"


def agrees(code: str, kept: str) -> bool:
    """Whether this is the code; none is where the hash is damaged, and `forget` helps."""
    try:
        salt = bytes.fromhex(kept.split("$")[1])
    except (IndexError, ValueError):
        return False
    return hmac.compare_digest(hashed(code, salt).encode(), kept.encode("utf-8", "surrogatepass"))


def clean_code(code: str | None) -> str:
    """The code as it is compared: blanks at the ends do not count, and an accent is one however it was typed."""
    return unicodedata.normalize("NFC", (code or "").strip())


def enter(store: Store, name: str, code: str | None) -> tuple[str, bool]:
    """The annotator's id, and whether the code is new: chosen just now.

    Raises:
        LabError: no code, a new one that is too easy, a wrong one, or too many wrong ones; a name with a class's login.
    """
    name, code = clean_name(name), clean_code(code)
    if not code:
        raise LabError(
            f"your code is missing; type it, or choose one of {SHORTEST} characters or more if this is your first visit"
        )
    with store.begin(read=True) as conn:
        first = _kept(conn, name) is None
    new = hashed(_chosen(name, code)) if first else ""  # before the transaction, which others wait for

    def count(conn: sa.Connection) -> tuple[str, str | None]:
        who = _person(conn, name)
        kept = _kept(conn, name, lock=True)
        if kept is None:
            conn.execute(t.codes.insert().values(annotator_id=who, hash=new or hashed(_chosen(name, code)), tries=0))
            return who, None
        now = t.now()
        wait = (kept.tried_at or now) + WAIT - now
        if kept.tries >= TRIES and timedelta() < wait <= WAIT:
            raise LabError(
                f"{kept.tries} wrong codes were given for {name!r}; the next try is in "
                f"{math.ceil(wait.total_seconds() / 60)} minutes; whoever runs this can give a new code"
            )
        conn.execute(t.codes.update().where(t.codes.c.annotator_id == who).values(tries=kept.tries + 1, tried_at=now))
        return who, kept.hash

    who, known = store.write(count)
    if known is None:
        return who, True
    if not agrees(code, known):
        raise LabError(
            f"this is not the code of {name!r}; type the one that was chosen at the first visit, or another "
            "name if you are somebody else"
        )
    store.write(lambda conn: conn.execute(t.codes.update().where(t.codes.c.annotator_id == who).values(tries=0)))
    return who, False


def forget(store: Store, name: str) -> None:
    """Whoever comes next under this name chooses a new code. LabError for a name that is not there or has none."""
    name = clean_name(name)

    def remove(conn: sa.Connection) -> int:
        who = sa.select(t.annotators.c.id).where(t.annotators.c.name == name).scalar_subquery()
        return conn.execute(t.codes.delete().where(t.codes.c.annotator_id == who)).rowcount

    if not store.write(remove):
        raise LabError(f"{name!r} has no code here; check how the name is written")


def _chosen(name: str, code: str) -> str:
    if not SHORTEST <= len(code) <= LONGEST or len(set(code)) < DIFFERENT or code.casefold() in name.casefold():
        raise LabError(
            f"{name!r} is new here: choose a code of {SHORTEST} to {LONGEST} characters, {DIFFERENT} of "
            "them different, and not the name itself"
        )
    return code


def _person(conn: sa.Connection, name: str) -> str:
    found = conn.execute(sa.select(t.annotators).where(t.annotators.c.name == name)).first()
    if found is None:
        new = uuid.uuid4().hex
        conn.execute(t.annotators.insert().values(id=new, name=name, kind="person", vendor=""))
        return new
    if found.kind != "person":
        raise LabError(f"{name!r} is a simulated annotator's name; take another one")
    if conn.execute(sa.select(t.members.c.role).where(t.members.c.annotator_id == found.id)).first():
        raise LabError(
            f"{name!r} has a login of the class and labels under it, with the URL that the teacher gave; "
            "take another name if you are somebody else"
        )
    return found.id


def _kept(conn: sa.Connection, name: str, lock: bool = False) -> Any:
    rows = sa.select(t.codes).join(t.annotators).where(t.annotators.c.name == name)
    return conn.execute(rows.with_for_update(of=t.codes) if lock else rows).first()
