"""What a teacher watches while people label: who is there, how fast, how well so far, and whose work wants a look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from llama2lab.annotation.agreement.charts import moment
from llama2lab.annotation.agreement.coefficients import Label, agreement, grouped
from llama2lab.annotation.agreement.quality import Quality, alarms, careless, quality
from llama2lab.annotation.desk.disputes import disputes
from llama2lab.annotation.form.widget import LEASE_SECONDS
from llama2lab.annotation.store import tables as t
from llama2lab.annotation.store.store import Store
from llama2lab.engine.stats import Figure

HERE_SECONDS = 300.0  # a page that is looked at claims its pair anew every 240 seconds
LATELY_SECONDS = 600.0  # over which the pace is counted


def stamp(store: Store) -> tuple[Any, ...]:
    """What changes when a label or a verdict comes in: figures need no computing before."""
    lab, v = t.labels.c, t.verdicts.c
    with store.begin(read=True) as conn:
        return (
            *conn.execute(sa.select(sa.func.count(), sa.func.max(lab.created_at)).select_from(t.labels)).one(),
            *conn.execute(sa.select(sa.func.count(), sa.func.max(v.created_at)).select_from(t.verdicts)).one(),
        )


def figures(labels: Sequence[Label]) -> dict[str, Any]:
    """Of each person, and of all together, what only a new label changes."""
    people = [x for x in labels if x["annotator_kind"] == "person"]
    rows = quality(people)
    look: dict[str, list[str]] = {}
    for alarm in (*careless(rows), *alarms(rows)):
        if alarm.raised:
            look.setdefault(alarm.name, []).append(alarm.words)
    both = agreement(people, "choice")
    found = disputes(people)
    return {
        "people": {row.name: _of(row, look.get(row.name, [])) for row in rows},
        "agreement": {name: _plain(both[name]) for name in ("percent", "alpha")},
        "open": sum(one.open for one in found),
        "decided": sum(one.verdict is not None for one in found),
    }


def _of(row: Quality, look: list[str]) -> dict[str, Any]:
    return {
        "gold": _plain(row.gold),
        "others": _plain(row.others),
        "seconds": None if math.isnan(row.seconds) else round(row.seconds, 1),
        "skimming": None if math.isnan(row.skimming) else round(row.skimming, 1),
        "flags": row.flags,
        "look": look,
    }


def _plain(figure: Figure) -> dict[str, float] | None:
    """Without what JSON cannot hold; None where the figure is not defined."""
    if not math.isfinite(figure["mean"]):
        return None
    return {"mean": figure["mean"], "low": figure["low"], "high": figure["high"], "n": round(figure["n"])}


def now_there(store: Store, labels: Sequence[Label], at: datetime) -> dict[str, Any]:
    """Who is there at this moment, each one's counts, and how much of the work is done."""
    s, a, i = t.slots.c, t.annotators.c, t.items.c
    with store.begin(read=True) as conn:
        leases = sa.select(a.name, sa.func.max(s.leased_until)).join(t.slots, s.annotator_id == a.id)
        leases = leases.where(s.state == "leased", a.kind == "person").group_by(a.name)
        claimed: dict[str, datetime] = dict(conn.execute(leases).tuples().all())
        counts = sa.select(s.state, sa.func.count()).join(t.items, i.id == s.item_id).where(i.overlap > 0)
        states: dict[str, int] = dict(conn.execute(counts.group_by(s.state)).tuples().all())
    mine = grouped((x for x in labels if x["annotator_kind"] == "person"), "annotator")
    people = []
    for name in sorted({*mine, *claimed}):
        given = mine.get(name, [])
        times = [when for when in (moment(x["created_at"]) for x in given) if when is not None]
        seen = [*times, *([claimed[name] - timedelta(seconds=LEASE_SECONDS)] if name in claimed else [])]
        ago = min(((at - when).total_seconds() for when in seen), default=math.inf)
        lately = sum((at - when).total_seconds() <= LATELY_SECONDS for when in times)
        people.append(
            {
                "name": name,
                "here": ago <= HERE_SECONDS,
                "ago": None if math.isinf(ago) else max(0, round(ago)),
                "judged": sum(x["choice"] is not None for x in given),
                "skipped": sum(x["choice"] is None for x in given),
                "lately": lately,
            }
        )
    given_out = states.get("done", 0) + states.get("skipped", 0)
    return {"people": people, "done": given_out, "wanted": sum(states.values())}


def overview(store: Store, at: datetime | None = None) -> dict[str, Any]:
    """Everything that the live view shows, as JSON can hold it."""
    labels = store.labels()
    return put_together(now_there(store, labels, at or t.now()), figures(labels))


def put_together(now: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The view: those whose work wants a look first, then those who are there."""
    nothing: dict[str, Any] = {"gold": None, "others": None, "seconds": None, "skimming": None, "flags": 0, "look": []}
    people = [{**one, **known["people"].get(one["name"], nothing)} for one in now["people"]]
    people.sort(key=lambda one: (not one["look"], not one["here"], one["name"]))
    return {**known, **now, "people": people}
