"""Pairs into the store, labels out of it, and several stores into one."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation import tables as t
from llama2lab.annotation.queue import current_labels
from llama2lab.annotation.scale import GRADES, KINDS
from llama2lab.annotation.store import Store
from llama2lab.errors import LabError

CHUNK = 500


def item_id(kind: str, prompt: Sequence[Mapping], answers: Sequence[str], prompt_id: str) -> str:
    """The same for the same content, so that files made from the same pairs can be merged."""
    content = json.dumps([kind, [[m["role"], m["content"]] for m in prompt], list(answers), prompt_id])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def add_pairs(store: Store, rows: Iterable[Mapping[str, Any]], overlap: int = 1, seed: int = 0) -> int:
    """Put pairs into the queue in an order drawn by seed; how many were new. Nothing is added if a row is wrong.

    A row: {"kind", "prompt": messages, "answers": [a, b], "prompt_id"?, "models"?: [m, m], "gold"?: {"choice": 1|2,
    "grades"?, "safe_1"?, "safe_2"?}, "meta"?}. Pairs with gold go to everybody.
    """
    if overlap < 1:
        raise LabError(f"each pair needs at least one annotator, not {overlap}")
    checked: dict[str, tuple[dict, dict]] = {}
    for number, row in enumerate(rows, 1):
        item, secret = _checked(row, f"pair {number}")
        checked[item["id"]] = (item, secret)

    def add(conn: sa.Connection) -> int:
        known = set(conn.execute(sa.select(t.items.c.id)).scalars())
        new = [pair for key, pair in sorted(checked.items()) if key not in known]
        random.Random(seed).shuffle(new)
        last = conn.execute(sa.select(sa.func.coalesce(sa.func.max(t.items.c.position), 0))).scalar_one()
        for position, (item, secret) in enumerate(new, last + 1):
            item.update(position=position, overlap=0 if secret["gold"] else overlap, created_at=t.now())
        slots = [{"item_id": item["id"], "number": n, "position": item["position"], "state": "free"}
                 for item, _ in new for n in range(1, item["overlap"] + 1)]
        for table, values in ((t.items, [i for i, _ in new]), (t.secrets, [s for _, s in new]), (t.slots, slots)):
            for start in range(0, len(values), CHUNK):
                conn.execute(table.insert(), values[start:start + CHUNK])
        return len(new)

    return store.write(add)


def _checked(row: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The item and its secrets; LabError for a row that is wrong."""
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


def labels(store: Store) -> list[dict[str, Any]]:
    """Every label in force, with its item and its annotator, in the order of the queue."""
    lab, i, g, a = t.labels.c, t.items.c, t.secrets.c, t.annotators.c
    query = (
        sa.select(t.labels, i.kind, i.prompt, i.answer_1, i.answer_2, i.prompt_id, g.model_1, g.model_2, g.gold,
                  a.name, a.kind.label("annotator_kind"), a.vendor)
        .join(t.items, i.id == lab.item_id).join(t.annotators, a.id == lab.annotator_id)
        .outerjoin(t.secrets, g.item_id == lab.item_id)
        .where(lab.id.in_(current_labels())).order_by(i.position, i.id, lab.created_at, lab.id))
    with store.begin(read=True) as conn:
        rows = conn.execute(query).all()
    return [{
        "label_id": r.id, "item_id": r.item_id, "kind": r.kind, "prompt": r.prompt,
        "answers": [r.answer_1, r.answer_2], "prompt_id": r.prompt_id,
        "models": None if r.model_1 is None and r.model_2 is None else [r.model_1, r.model_2], "gold": r.gold,
        "annotator": r.name, "annotator_kind": r.annotator_kind, "vendor": r.vendor, "choice": r.choice,
        "grade": r.grade, "safe_1": r.safe_1, "safe_2": r.safe_2, "comment": r.comment, "flag": r.flag,
        "skip_reason": r.skip_reason, "seconds": r.seconds, "left": r.left, "created_at": r.created_at,
        "guidelines": r.guidelines,
    } for r in rows]
