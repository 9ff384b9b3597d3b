"""What notebook 05 shows of rows that labels became."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama2lab.annotation.rows import Resolved
from llama2lab.lab.pictures import table


def in_words(value: Any) -> str:
    """A field of a row as one reads it: dialogues as who says what, the rest as it is."""
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "content" in one for one in value):
        return " / ".join(f"{one.get('role', '')}: {one['content']}" for one in value)
    return "-" if value is None else str(value)


def resolved_tables(resolved: Resolved) -> str:
    """What became of all labels, and the first row that they make, field by field, as HTML."""
    counts = table(("labels and items", "n"), [(name.replace("_", " "), n) for name, n in resolved.counts.items()])
    if not resolved.rows:
        return f"{counts}<p>No row yet: label some pairs above.</p>"
    row = [(name, in_words(value)) for name, value in resolved.rows[0].items()]
    return f"{counts}<p>The first row:</p>{table(('field', 'what it holds'), row)}"
