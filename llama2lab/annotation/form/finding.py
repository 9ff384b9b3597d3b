"""Search of one's own earlier pairs: which of them fit, and each in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama2lab.annotation.form.messages import Find
from llama2lab.annotation.store import queue

FOUND = 50  # earlier pairs that one search lists
AROUND = 60  # characters of a text shown before and after what was looked for


def fits(past: queue.Past, wish: Find) -> bool:
    """Whether a pair of one's own is among those looked for; case does not matter."""
    label, task = past.label, past.task
    marks = {"skipped": label.side is None, "flagged": label.flag, "commented": bool(label.comment)}
    if wish.mark and not marks.get(wish.mark, label.grade == wish.mark):
        return False
    texts = (*(m["content"] for m in task.prompt), task.left_text, task.right_text, label.comment, label.skip_reason)
    return wish.text.strip().casefold() in "\n".join(text or "" for text in texts).casefold()


def line(index: int, past: queue.Past, text: str, names: Mapping[str, str]) -> dict[str, Any]:
    """A pair of one's own in a line: its number, what was said, and the question or where the text stands. `names`:
    what the sides are called."""
    label, task = past.label, past.task
    wanted = text.strip()
    question = task.prompt[-1]["content"]
    texts = (question, task.left_text, task.right_text, label.comment, label.skip_reason or "")
    where = next((x for x in (*texts, *(m["content"] for m in task.prompt)) if wanted.casefold() in x.casefold()), "")
    said = f"{names[label.side]} {label.grade}" if label.side else "skipped"
    marks = [word for word, there in (("flagged", label.flag), ("commented", label.comment)) if there]
    return {
        "index": index,
        "said": ", ".join([said, *marks]),
        "question": question[: 2 * AROUND],
        "piece": "" if where == question or not wanted else around(where, wanted),
    }


def around(text: str, wanted: str) -> str:
    """The place of a text where what was looked for stands. Lengths can change when case is folded: then its start."""
    at = max(0, text.casefold().find(wanted.casefold())) if len(text) == len(text.casefold()) else 0
    start, end = max(0, at - AROUND), at + len(wanted) + AROUND
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
