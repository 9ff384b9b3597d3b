"""Whether a pair or a label from outside is what it should be: errors that name the place."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from llama2lab.annotation.scale import GRADES, KINDS
from llama2lab.annotation.tables import escape
from llama2lab.errors import LabError
from llama2lab.validation import shown

ID = re.compile("[A-Za-z0-9_-]{1,64}", re.ASCII)  # of labels, items, annotators, guidelines
# Bounds of what people and their files may give: far beyond what anybody means, and far below what hurts. PostgreSQL
# holds class logins to them too (server.py).
MAX_OVERLAP = 1000  # annotators of one pair
MAX_POSITION = 10**9  # in the queue
MAX_TEXT = 1_000_000  # characters of one text
MAX_COMMENT = 100_000  # characters of a comment or of the reason for a skip, as the database holds them
MAX_SECONDS = 1e9  # on one item
MAX_LEASE = 86_400  # seconds for which an item may be kept from others
MAX_EDITS = 1000  # labels of one annotator for one item, on PostgreSQL under a class login


def item_id(kind: str, prompt: Sequence[Mapping], answers: Sequence[str], prompt_id: str) -> str:
    """The same for the same content, so that files made from the same pairs can be merged."""
    content = json.dumps([kind, [[m["role"], m["content"]] for m in prompt], list(answers), prompt_id])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def check_pair(row: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of `items` and `secrets` for a pair; LabError for one that is wrong."""
    try:
        kind, prompt, answers = row["kind"], row["prompt"], row["answers"]
    except (KeyError, TypeError) as e:
        raise LabError(f"{where}: a pair needs kind, prompt and answers; {e} is missing") from e
    if kind not in KINDS:
        raise LabError(f"{where}: kind is {' or '.join(KINDS)}, not {kind!r}")
    messages = check_messages(prompt, where)
    if not isinstance(answers, (list, tuple)) or len(answers) != 2 or not all(isinstance(a, str) for a in answers):
        raise LabError(f"{where}: answers are two texts")
    if answers[0] == answers[1]:
        raise LabError(f"{where}: both answers are the same; leave the pair out, nothing can be learnt from it")
    models = row.get("models") or [None, None]
    if not isinstance(models, (list, tuple)) or len(models) != 2:
        raise LabError(f"{where}: models are two names, in the order of the answers")
    prompt_id = str(row.get("prompt_id") or "")
    gold = check_gold(row.get("gold"), where)
    meta = row.get("meta")
    try:
        json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise LabError(f"{where}: meta cannot be written as JSON ({e})") from e
    key = item_id(kind, messages, answers, prompt_id)
    item = {"id": key, "kind": kind, "prompt": messages, "answer_1": answers[0], "answer_2": answers[1],
            "prompt_id": prompt_id}
    return item, {"item_id": key, "model_1": models[0], "model_2": models[1], "meta": meta, **gold_columns(gold)}


def check_messages(prompt: Any, where: str) -> list[dict[str, str]]:
    wrong = LabError(f"{where}: a prompt is a list of messages {{role, content}} whose last one is a user's")
    if not isinstance(prompt, (list, tuple)) or not prompt:
        raise wrong
    messages = []
    for m in prompt:
        if not isinstance(m, Mapping) or m.get("role") not in ("system", "user", "assistant") \
                or not isinstance(m.get("content"), str):
            raise wrong
        messages.append({"role": m["role"], "content": m["content"]})
    if messages[-1]["role"] != "user":
        raise wrong
    return messages


def check_gold(gold: Any, where: str) -> dict[str, Any] | None:
    if gold is None:
        return None
    if isinstance(gold, Mapping) and set(gold) == {"choice", "claimed"} and gold["choice"] is None:
        # Of a file that was not trusted (records.py): not gold here, and no training row either.
        return {"choice": None, "claimed": check_gold(gold["claimed"], where)}
    if not isinstance(gold, Mapping) or gold.get("choice") not in (1, 2):
        raise LabError(f"{where}: gold needs choice 1 or 2: the answer that is known to be better")
    if not set(gold.get("grades") or ()) <= set(GRADES):
        raise LabError(f"{where}: gold's grades are among {', '.join(GRADES)}")
    for key in ("safe_1", "safe_2"):
        if gold.get(key) not in (None, True, False):
            raise LabError(f"{where}: gold's {key} is true or false")
    return dict(gold)


def gold_columns(gold: dict[str, Any] | None) -> dict[str, Any]:
    """`gold` and what SQL compares of it."""
    known = gold or {}
    grades = known.get("grades") or ()
    return {"gold": gold, "gold_choice": known.get("choice"), "gold_safe_1": known.get("safe_1"),
            "gold_safe_2": known.get("safe_2"), "gold_grades": "".join(f",{g}" for g in grades) + "," * bool(grades)}


def check_moment(value: Any, name: str, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise LabError(f"{where}: {name} is a time with its zone, such as 2026-11-24T09:30:00+00:00, not {value!r}")
    return moment


def check_label(label: dict[str, Any], kind: str, where: str) -> dict[str, Any]:
    """A row of `labels` that the database would take; LabError for one that is wrong."""
    choice, grade, skipped = label["choice"], label["grade"], label["skip_reason"]
    if skipped is None and choice not in (1, 2):
        raise LabError(f"{where}: a label's choice is 1 or 2, not {choice!r}")
    if skipped is None and grade not in GRADES:
        raise LabError(f"{where}: a label's grade is one of {', '.join(GRADES)}, not {grade!r}")
    if skipped is not None and (choice is not None or grade is not None or not isinstance(skipped, str)):
        raise LabError(f"{where}: a skip has a reason, and neither choice nor grade")
    for key in ("safe_1", "safe_2"):
        if label[key] not in (None, True, False):
            raise LabError(f"{where}: {key} is true, false or null, not {label[key]!r}")
    if label["left"] not in (None, 1, 2):
        raise LabError(f"{where}: left is 1, 2 or null, not {label['left']!r}")
    seconds = label["seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= MAX_SECONDS:
        raise LabError(f"{where}: seconds is a number from 0 to {MAX_SECONDS:.0f}, not {shown(seconds)}")
    if not isinstance(label["comment"], str) or not isinstance(label["flag"], bool):
        raise LabError(f"{where}: comment is a text and flag is true or false")
    if max(len(escape(text or "")) for text in (label["comment"], skipped)) > MAX_COMMENT:
        raise LabError(f"{where}: a comment or a reason has at most {MAX_COMMENT:,} characters")
    if kind == "safety" and choice is not None:
        chosen, rejected = (label["safe_1"], label["safe_2"])[::1 if choice == 1 else -1]
        if rejected and chosen is False:
            raise LabError(f"{where}: an unsafe answer is chosen over a safe one; such a label is never kept")
    return label
