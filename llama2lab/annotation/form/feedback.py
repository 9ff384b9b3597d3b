"""What is told about a person's labels: after each practice pair what was wanted and why, at the end how far they agree
with what is known and with others.

A class's login on PostgreSQL sees neither known answers nor others' labels: there practice says only whether a choice
agreed, and the end nothing of the others.
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.store import queue
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.in_force import current_labels
from llama2lab.annotation.store.store import Store
from llama2lab.engine.scale import GRADES

FEWEST = 5  # pairs on which agreement is told: fewer say nothing, and would tell what single answers are


def practice_feedback(store: Store, annotator_id: str, item_id: str, kind: str) -> dict[str, Any] | None:
    """About a person's label of a gold pair, which is the newest of those that they answered; None for any other pair.

    {"agreed", "checks": [{"what", "said", "wanted", "ok"}...], "reason"}: `what` is choice, grade, safe_left or
    safe_right; sides are those on which the answers stood.
    """
    if store.login() is not None:
        outcomes = queue.qualify(store, annotator_id, kind).outcomes
        return {"agreed": outcomes[-1], "checks": [], "reason": ""} if outcomes else None
    with store.begin(read=True) as conn:
        lab, g = t.labels.c, t.secrets.c
        query = (
            sa.select(t.labels, g.gold, g.gold_choice, g.gold_grades, g.gold_safe_1, g.gold_safe_2)
            .join(t.secrets, g.item_id == lab.item_id)
            .where(lab.annotator_id == annotator_id, lab.item_id == item_id, lab.id.in_(current_labels()))
        )
        row = conn.execute(query).first()
    if row is None or row.gold_choice is None:
        return None
    left = row.left or 1
    sides = {left: "left", 3 - left: "right"}
    grades = [grade for grade in GRADES if f",{grade}," in row.gold_grades]
    checks = [_check("choice", sides.get(row.choice), [sides[row.gold_choice]])]
    if grades and row.choice == row.gold_choice:  # how much better the worse answer is, nobody knows
        checks.append(_check("grade", row.grade, grades))
    for number, said, wanted in ((1, row.safe_1, row.gold_safe_1), (2, row.safe_2, row.gold_safe_2)):
        if wanted is not None:
            checks.append(_check(f"safe_{sides[number]}", said, [wanted]))
    checks.sort(key=lambda check: check["what"] == "safe_right")
    reason = row.gold.get("reason")
    return {
        "agreed": queue.agrees(row, row),
        "checks": checks,
        "reason": reason if isinstance(reason, str) else "",
    }


def _check(what: str, said: Any, wanted: list[Any]) -> dict[str, Any]:
    return {"what": what, "said": said, "wanted": wanted, "ok": said in wanted}


def summary(store: Store, annotator_id: str, kind: str | None, practice: int, over: bool) -> dict[str, Any]:
    """What the end page tells: {"done", "skipped", "seconds": median or None, "gold", "others", "sees_others"}.

    `gold` and `others` are {"agreed", "n", "low", "high"} with Wilson's interval, or None: agreement with known answers
    after practice, and with the majority of all others where it is not split. Both rest on what was said *first*, so
    that nobody finds the known answers by changing a label and looking again; and while pairs still wait (`over` is
    False) gold is told in whole fives.
    """
    lab, i = t.labels.c, t.items.c
    with store.begin(read=True) as conn:
        alone = store.login_of(conn) is not None
        mine = sa.select(t.labels).join(t.items, i.id == lab.item_id).where(lab.annotator_id == annotator_id)
        mine = (mine if kind is None else mine.where(i.kind == kind)).order_by(lab.created_at, lab.id)
        first: dict[str, Any] = {}
        newest: dict[str, Any] = {}
        for row in conn.execute(mine):
            first.setdefault(row.item_id, row)
            newest[row.item_id] = row
        known: dict[str, Any] = {}
        votes: dict[str, Counter[int]] = {}
        if not alone:
            gold = sa.select(t.secrets).where(t.secrets.c.gold_choice.is_not(None))
            known = {row.item_id: row for row in conn.execute(gold)}
            theirs = sa.select(lab.item_id, lab.choice).where(
                lab.annotator_id != annotator_id, lab.choice.is_not(None), lab.id.in_(current_labels())
            )
            for row in conn.execute(theirs):
                if row.item_id in first and row.item_id not in known:
                    votes.setdefault(row.item_id, Counter())[row.choice] += 1
    outcomes = (
        list(queue.qualify(store, annotator_id, kind).outcomes)
        if alone
        else [queue.agrees(row, known[item]) for item, row in first.items() if item in known]
    )[practice:]
    if not over:
        outcomes = outcomes[: len(outcomes) // FEWEST * FEWEST]
    alike = [
        (count[1] > count[2]) == (first[item].choice == 1)
        for item, count in votes.items()
        if count[1] != count[2] and first[item].choice is not None
    ]
    seconds = [row.seconds for row in newest.values() if row.seconds > 0]
    skipped = sum(row.choice is None for row in newest.values())
    return {
        "done": len(newest) - skipped,
        "skipped": skipped,
        "seconds": median(seconds) if seconds else None,
        "gold": _share(outcomes) if outcomes else None,
        "others": _share(alike) if len(alike) >= FEWEST else None,
        "sees_others": not alone,
    }


def _share(outcomes: list[bool]) -> dict[str, float]:
    from llama2lab.engine.stats import wilson  # scipy takes a second to import, and the first pair should not wait

    low, high = wilson(sum(outcomes) / len(outcomes), len(outcomes))
    return {"agreed": sum(outcomes), "n": len(outcomes), "low": low, "high": high}
