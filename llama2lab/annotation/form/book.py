"""The lines of a book about whom a pair names, to stand beside it.

Guidelines may end in a book of what is so: a part under a heading of the first level whose last word is "book", with a
list item for each person or place that begins with the name in bold,

    # The town's book
    - **Mira:** Mira works as a tailor. Mira lives on Forest Road.

A line is shown where the pair's texts (the whole talk, then both answers) hold its name as whole words, in the order in
which they name it; a name that the book writes small may begin with a capital there. Then, one step further, the lines
about those whom the shown lines name. Nothing else is known here of any town.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

HEADING = re.compile(r"^# +(.*\bbook)[ \t]*$", re.MULTILINE | re.IGNORECASE)
LINE = re.compile(r"^[-*] +\*\*([^*\n]+?):?\*\*:?[ \t]*(.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)
MOST_LINES = 12  # of each step


@dataclass(frozen=True)
class Book:
    """`lines` by name, in the book's order."""

    title: str
    lines: dict[str, str]


NO_BOOK = Book("", {})


@lru_cache(maxsize=16)
def split(guidelines: str) -> tuple[str, Book]:
    """(guidelines without their book, the book). A part in which no line is about anybody stays where it is."""
    headings = list(HEADING.finditer(guidelines))
    if not headings:
        return guidelines, NO_BOOK
    found = headings[-1]
    part = ((name.strip(), text) for name, text in LINE.findall(guidelines[found.end() :]))
    lines = {name: " ".join(text.split()) for name, text in part if name}
    if not lines:
        return guidelines, NO_BOOK
    return guidelines[: found.start()].rstrip(), Book(found[1].strip(), lines)


@lru_cache(maxsize=16)
def _forms(names: tuple[str, ...]) -> tuple[dict[str, str], re.Pattern[str]]:
    """The name of each form in which one may stand, and any form as whole words, the longest first."""
    forms = {name[0].upper() + name[1:]: name for name in names if name[0].islower()} | {name: name for name in names}
    words = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    return forms, re.compile(rf"(?<!\w)(?:{words})(?!\w)")


def named(book: Book, texts: Iterable[str]) -> list[str]:
    """Names of the book that the texts hold, in the order in which they first do."""
    if not book.lines:
        return []
    forms, pattern = _forms(tuple(book.lines))
    return list(dict.fromkeys(forms[m[0]] for text in texts for m in pattern.finditer(text)))


def facts(book: Book, texts: Sequence[str]) -> dict[str, Any] | None:
    """{"title", "lines": [[name, text]...], "further": [[name, text]...], "more": how many are left out}; None where
    the texts name nobody of the book."""
    first = named(book, texts)
    if not first:
        return None
    shown = first[:MOST_LINES]
    further = [name for name in named(book, [book.lines[name] for name in shown]) if name not in shown]
    return {
        "title": book.title,
        "lines": [[name, book.lines[name]] for name in shown],
        "further": [[name, book.lines[name]] for name in further[:MOST_LINES]],
        "more": len(first) - len(shown) + max(0, len(further) - MOST_LINES),
    }
