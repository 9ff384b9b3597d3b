"""Addresses of annotation stores: what may be shown of them, and what was meant for one and is none.

A database's address can hold secrets in many places, also a mistyped one. So what was given is never repeated: messages
show `public(address)`, and `hidden` is the net under texts that come from elsewhere. No SQLAlchemy: the command line
uses this for every error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

FORM = "postgresql://user:password@host:5432/database"
ESCAPES = "in the password, @ : / ? # % are written %40 %3A %2F %3F %23 %25"
STARS = "***"
NO_SQLITE = "sqlite:///..."  # what stands for sqlite:// with a host or a user
_WORDS = (
    "host|hostaddr|port|dbname|database|user|username|password|passwd|pwd|passfile|service|servicefile|sslmode|"
    "sslkey|sslcert|sslpassword|options"
)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_SCHEME = re.compile(
    r"(?:[A-Za-z][\w.+-]+:/|(?:jdbc:)?(?:postgre|pgsql|psql)[\w+]*(?::|;|//|\\))", re.ASCII | re.IGNORECASE
)
_USERINFO = re.compile(r".*:.*@|.*@[\w.-]+:\d+(?:/|$)", re.DOTALL)
_NAMES_ONE = re.compile(r"(?:postgre|pgsql|psql)", re.IGNORECASE)
_KEYS = re.compile(rf"(?:^|[\s?&;,'\"{{(])(?:{_WORDS})['\"]?\s*[=:]", re.IGNORECASE)
_PLAIN = re.compile(r"[\w.,:-]+", re.ASCII)  # a host or a database as an ordinary one is written
# In anybody's text: a URL with something before an @, or with ?..., and words such as password=... .
_URL_IN_TEXT = re.compile(r"[A-Za-z][\w+.-]*:/{0,3}[^\s'\"<>]*[@?][^\s'\"<>]*")
_KEY_IN_TEXT = re.compile(
    r"\b(password|passwd|pwd|sslpassword|passfile)(['\"]?\s*[=:]\s*)"
    r"('[^']*'|\"[^\"]*\"|[^\s&;,'\"]+)",
    re.IGNORECASE,
)
_HARMLESS = {"host", "hostaddr", "port", "dbname", "database", "sslmode", "connect_timeout", "application_name"}


def meant_for_database(text: str) -> bool:
    """Whether this is a database's address, right or mistyped, and not a file's; a file that is there is a file."""
    text = text.strip().strip("'\"").strip()
    if text[:9].lower() == "sqlite://" or text[:2] == "./" or not text:
        return False
    try:
        if "://" not in text and os.path.exists(os.path.expanduser(text)):
            return False
    except ValueError:  # a NUL
        pass
    rest = text[2:] if _DRIVE.match(text) else text
    return any(_SCHEME.match(one) or _USERINFO.match(one) or _KEYS.search(one) for one in (rest, unquote(rest)))


def public(address: str | os.PathLike[str]) -> str:
    """The address as anybody may see it: a file's path, or postgresql://host:port/database without all the rest."""
    text = os.fspath(address).strip()
    if text[:9].lower() == "sqlite://":
        return text.split("?")[0] if text[9:10] == "/" else NO_SQLITE
    if not meant_for_database(text):
        return text
    unreadable = "postgresql://..."
    try:
        found = urlsplit(text)
        host, port, database = found.hostname or "", found.port, found.path.lstrip("/")
        scheme = found.scheme.split("+")[0]
    except ValueError:
        return unreadable
    # An @ behind the server's part was one of the password, which an unescaped / or ? has cut in two.
    if (
        scheme not in ("postgresql", "postgres")
        or "://" not in text
        or text.count("@") > 1
        or ("@" in text and "@" not in found.netloc)
        or not _PLAIN.fullmatch(host or "localhost")
    ):
        return unreadable
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    return f"postgresql://{place}/{database if _PLAIN.fullmatch(database) else '...'}"


def secrets_in(address: str) -> list[str]:
    """Every part of an address that may be a secret, however it was meant to be written; the longest first."""
    rest = re.sub(r"^\s*['\"]?(?:[A-Za-z][\w+.-]*:(?=/)/*|[A-Za-z]\w*//)", "", address)
    found: set[str] = set()
    before, at, _ = rest.rpartition("@")
    if at:
        found.add(before)
        after_user = before.partition(":")[2] or before
        found |= {after_user, *after_user.split("@"), *after_user.split("/"), *before.split(":")[1:]}
    for key, value in re.findall(r"([\w.]+)['\"]?\s*[=:]\s*('(?:[^'\\]|\\.)*'|\"[^\"]*\"|[^\s&;,]+)", rest):
        if key.lower() not in _HARMLESS:
            found |= {value, value.strip("'\"")}
    found |= {unquote(one) for one in found}
    return sorted((one for one in found if len(one) > 2), key=len, reverse=True)


def hidden(text: str, addresses: Iterable[str] = ()) -> str:
    """A text of somebody else's, such as a driver's message, without the secrets of these addresses, and without what
    looks like a database's address inside it. How one is written (FORM) stays."""
    for address in addresses:
        shown = public(address)
        if meant_for_database(address) or shown == NO_SQLITE:
            for whole in (address, repr(address)[1:-1], address.strip()):
                text = text.replace(whole, shown)
            for secret in secrets_in(address):
                text = text.replace(secret, STARS)

    def replaced(m: re.Match[str]) -> str:
        return public(m[0]) if _NAMES_ONE.match(m[0]) else STARS if _USERINFO.match(m[0]) else m[0]

    return FORM.join(
        _KEY_IN_TEXT.sub(lambda m: m[1] + m[2] + STARS, _URL_IN_TEXT.sub(replaced, part)) for part in text.split(FORM)
    )
