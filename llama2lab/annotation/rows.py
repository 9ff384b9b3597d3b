"""From people's labels to what the reward models train on: one preference row an item, in the annotators' schema.

How several labels of one item become one row, by rule:

- "majority": the answer that more labels chose; an even split is a **tie** and gives no row. The grade is the median
  of those who chose it, rounded towards the weaker, so that one enthusiast makes no large margin.
- "unanimous": the same, but an item with any label for the other answer counts as a tie.
- "every": each label is a row of its own, as in the report, where an item had one annotator.

A teacher's verdict on an item stands in the place of its labels, whatever the rule, also where these are flagged or
skips; "neither" is a tie. Its row says so: the annotator is the teacher, the vendor "verdict".

A safety bin is "" where the marks of an answer are evenly split or missing: the row trains the ranking alone. Chosen
unsafe and rejected safe is never kept (section 3.2.1). Left out and counted: gold, skips, flags, ties, and pairs that
no model can read, as older stores may hold. Rows are in the order of their content, so that a store that was exported
and imported again trains the same model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llama2lab.annotation.agreement.coefficients import Label, agreement_table, grouped, judged, undefined
from llama2lab.engine.dialogues import SAFETY, Malformed, prompt_of
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import GRADES
from llama2lab.engine.stats import Figure, rate

Rule = Literal["majority", "unanimous", "every"]
RULES: tuple[Rule, ...] = ("majority", "unanimous", "every")
VERDICT = "verdict"  # the vendor of rows that a teacher decided
Row = dict[str, Any]  # as town.annotators.preference_row makes it


@dataclass
class Resolved:
    """The rows, and what became of all labels and items: nothing is left out in silence."""

    rows: list[Row] = field(default_factory=list)
    labels: int = 0  # of this kind
    used: int = 0  # labels that some row rests on
    gold: int = 0  # labels of gold items
    skipped: int = 0
    flagged: int = 0
    malformed: int = 0  # labels of pairs that no model can read
    ties: int = 0  # items
    unsafe_chosen: int = 0  # items, or labels under the rule "every"
    verdicts: int = 0  # items that a teacher decided, those without a row among them

    @property
    def counts(self) -> dict[str, int]:
        return {"rows": len(self.rows), **{k: v for k, v in vars(self).items() if k != "rows"}}


def resolve(labels: Iterable[Label], kind: str, rule: Rule = "majority") -> Resolved:
    """Preference rows of one kind by the rule, with counts. LabError for an unknown rule."""
    if rule not in RULES:
        raise LabError(f"unknown rule {rule!r} for several labels of one item; choose one of {', '.join(RULES)}")
    result = Resolved()
    items: dict[Any, list[Label]] = {}
    decided: dict[Any, list[Label]] = {}
    for label in labels:
        if label["kind"] != kind:
            continue
        result.labels += 1
        if label["gold"]:
            result.gold += 1
        elif label.get("verdict") and _readable(label):
            decided.setdefault(label["item_id"], []).append(label)
        elif label["choice"] not in (1, 2):
            result.skipped += 1
        elif label["flag"]:
            result.flagged += 1
        elif not _readable(label):
            result.malformed += 1
        else:
            key = (label["item_id"], label["annotator"]) if rule == "every" else label["item_id"]
            items.setdefault(key, []).append(label)
    for several in decided.values():
        said = several[0]["verdict"]
        result.verdicts += 1
        if said["choice"] is None:
            result.ties += 1
            continue
        row = _row(several, said, _safe(said) if kind == "safety" else (None, None))
        result.rows.append(row | {"annotator": said["teacher"], "vendor": VERDICT})
        result.used += len(several)
    for several in items.values():
        said = majority(several)
        if said is None or (rule == "unanimous" and len({label["choice"] for label in several}) > 1):
            result.ties += 1
            continue
        safe = _safe(said)
        if kind == "safety" and safe == (False, True):
            result.unsafe_chosen += 1
            continue
        result.rows.append(_row(several, said, safe if kind == "safety" else (None, None)))
        result.used += len(several)
    result.rows.sort(key=_content)
    return result


def _safe(said: dict[str, Any]) -> tuple[bool | None, bool | None]:
    """What is known of the chosen and the rejected answer."""
    return said[f"safe_{said['choice']}"], said[f"safe_{3 - said['choice']}"]


def _readable(label: Label) -> bool:
    """Whether the chat format can take this pair, and UTF-8 its texts."""
    try:
        messages = prompt_of(label["prompt"], strip=False, blank=True)
        "".join([*(m["content"] for m in messages), *label["answers"]]).encode("utf-8")
        return True
    except (Malformed, UnicodeEncodeError):
        return False


def _content(row: Row) -> tuple[str, ...]:
    texts = (row["prompt_id"], json.dumps(row["prompt"]), row["chosen"][0]["content"], row["rejected"][0]["content"])
    return (*texts, row["grade"], row["safety"], row["annotator"])


def majority(several: Sequence[Label]) -> dict[str, Any] | None:
    """What the labels of one item say together: choice, median grade, safe_1 and safe_2; None where they are evenly
    split."""
    choice = _most(label["choice"] == 1 for label in several)
    if choice is None:
        return None
    chosen = 1 if choice else 2
    return {
        "choice": chosen,
        "grade": median_grade([label["grade"] for label in several if label["choice"] == chosen]),
        **{name: _most(label[name] for label in several) for name in ("safe_1", "safe_2")},
    }


def _row(several: Sequence[Label], said: dict[str, Any], safe: tuple[bool | None, bool | None]) -> Row:
    """The row of one item's labels; `safe` is what is known of the chosen and the rejected answer."""
    item, choice = several[0], said["choice"]
    return {
        "prompt": [{"role": m["role"], "content": m["content"]} for m in item["prompt"]],
        "chosen": [{"role": "assistant", "content": item["answers"][choice - 1]}],
        "rejected": [{"role": "assistant", "content": item["answers"][2 - choice]}],
        "grade": said["grade"],
        "safety": next((name for name, marks in SAFETY.items() if marks == safe), ""),
        "kind": item["kind"],
        "prompt_id": item["prompt_id"] or "",
        "annotator": ", ".join(sorted({label["annotator"] for label in several})),
        "vendor": ", ".join(sorted({label["vendor"] for label in several})),
    }


def median_grade(grades: Sequence[str]) -> str:
    """The median grade; between two, the weaker."""
    places = sorted(GRADES.index(g) for g in grades)  # the strongest first
    return GRADES[places[len(places) // 2]]


def _most(marks: Iterable[bool | None]) -> bool | None:
    """What most of those who said something say; None where nobody did or as many say the other thing."""
    balance = sum(0 if mark is None else 1 if mark else -1 for mark in marks)
    return balance > 0 if balance else None


# ---- people against simulated annotators ---------------------------------------------------------------------------


def people_against_simulated(people: Sequence[Label], simulated: Sequence[Label], seed: int = 0) -> dict[str, Any]:
    """How far two groups agree on the pairs that both have judged: {"choice": {"percent", "alpha", "ac"}, "grade":
    {...}, "safety": {...}}, and `as_often`: how often a single person and a single simulated annotator choose alike.

    Each group speaks with one voice for each item: its majority, with the median grade; where a group is evenly split,
    it has no voice. So `n` is the number of items on which both have one.
    """
    ours, theirs = _voices(people, "people"), _voices(simulated, "simulated")
    both = [label for item in ours if item in theirs for label in (ours[item], theirs[item])]
    return {**agreement_table(both, seed), "as_often": _as_often(people, simulated)}


def _voices(labels: Iterable[Label], name: str) -> dict[Any, Label]:
    """One label an item: what the group says."""
    said = {item: (several[0], majority(several)) for item, several in grouped(judged(labels), "item_id").items()}
    return {item: {**label, "annotator": name, **verdict} for item, (label, verdict) in said.items() if verdict}


def _as_often(people: Iterable[Label], simulated: Iterable[Label]) -> Figure:
    """The share of (person's label, simulated label) pairs of one item that choose alike; pairs of one item are one
    group, or many labels of few items would look like many items."""
    there = grouped(judged(simulated), "item_id")
    pairs = [(label, other) for label in judged(people) for other in there.get(label["item_id"], ())]
    alike = [label["choice"] == other["choice"] for label, other in pairs]
    return rate(alike, [label["item_id"] for label, _ in pairs]) if alike else undefined()


def fingerprint(labels: Iterable[Label]) -> list[list[Any]]:
    """What of the labels can change a row or a figure, in an order of its own: times, comments and ids are not in it.
    The stages of a run that rest on labels are recorded by its digest."""
    return sorted(
        (
            [
                *(label["kind"], json.dumps(label["prompt"]), *label["answers"]),
                *(label["choice"] or 0, label["grade"] or "", str(label["safe_1"]), str(label["safe_2"])),
                *(bool(label["flag"]), bool(label["gold"])),
                *(label["annotator"], label["annotator_kind"], label["vendor"], label["prompt_id"] or ""),
                *_decided(label.get("verdict")),
            ]
            for label in labels
        ),
        key=str,
    )


def _decided(verdict: dict[str, Any] | None) -> list[Any]:
    if verdict is None:
        return []
    return [str(verdict[name]) for name in ("choice", "grade", "safe_1", "safe_2", "teacher")]
