"""Whether a pair or a label from outside is what it should be: errors that name the place."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from llama2lab.annotation.store.tables import escape
from llama2lab.engine.dialogues import Malformed, check_turns
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import GRADES, KINDS, MAX_OVERLAP
from llama2lab.engine.validation import shown, strict_json, validated

ID = re.compile("[A-Za-z0-9_-]{1,64}", re.ASCII)  # of labels, items, annotators, guidelines
# Bounds of what people and their files may give: far beyond what anybody means, and far below what hurts. PostgreSQL
# holds class logins to them too (server.py).
MAX_POSITION = 10**8  # in the queue; an import moves it behind what is there, and it must stay an SQL integer
MAX_SLOTS = 2_000_000  # judgements wanted by one import or `labels add`
MAX_TEXT = 1_000_000  # characters of one text
MAX_COMMENT = 100_000  # characters of a comment or of the reason for a skip, as the database holds them
MAX_SECONDS = 1e9  # on one item
MAX_LEASE = 86_400  # seconds for which an item may be kept from others
MAX_EDITS = 1000  # labels of one annotator for one item, on PostgreSQL under a class login


def tidy(word: Any) -> Any:
    """A word as people may write it: " Better" is "better"."""
    return word.strip().lower() if isinstance(word, str) else word


Answer = Annotated[int, Field(ge=1, le=2)]
Grade = Annotated[Literal[GRADES], BeforeValidator(tidy)]  # type: ignore[valid-type]


class Row(BaseModel):
    """What comes from outside: no type is guessed, what we do not know is left alone."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Gold(Row):
    choice: Answer
    grades: Sequence[Literal[GRADES]] | None = None  # type: ignore[valid-type]
    safe_1: bool | None = None
    safe_2: bool | None = None


class Judgement(Row):
    """What a row of `labels` says."""

    choice: Answer | None
    grade: Literal[GRADES] | None  # type: ignore[valid-type]
    safe_1: bool | None
    safe_2: bool | None
    left: Answer | None
    skip_reason: str | None
    comment: str
    flag: bool
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)]


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
        raise LabError(f"{where}: kind is {' or '.join(KINDS)}, not {shown(kind)}")
    messages = check_messages(prompt, where)
    if not isinstance(answers, (list, tuple)) or len(answers) != 2 or not all(isinstance(a, str) for a in answers):
        raise LabError(f"{where}: answers are two texts")
    if answers[0] == answers[1]:
        raise LabError(f"{where}: both answers are the same; leave the pair out, nothing can be learnt from it")
    models = (None, None) if row.get("models") is None else row["models"]
    if not isinstance(models, (list, tuple)) or len(models) != 2 or not all(isinstance(m, str | None) for m in models):
        raise LabError(f"{where}: models are two names, in the order of the answers")
    prompt_id = check_prompt_id(row.get("prompt_id"), where)
    gold = check_gold(row.get("gold"), where)
    meta = row.get("meta")
    _storable(meta, "meta", where)
    key = item_id(kind, messages, answers, prompt_id)
    item = {"id": key, "kind": kind, "prompt": messages, "answer_1": answers[0], "answer_2": answers[1],
            "prompt_id": prompt_id}
    return item, {"item_id": key, "model_1": models[0], "model_2": models[1], "meta": meta, **gold_columns(gold)}


def _storable(value: Any, name: str, where: str) -> None:
    """LabError for what would not come back from JSON as it went in."""
    try:
        strict_json(json.dumps(value, allow_nan=False), halves=True)
    except (TypeError, ValueError, RecursionError) as e:
        raise LabError(f"{where}: {name} cannot be written as JSON ({e})") from e


def check_messages(prompt: Any, where: str, blank: bool = True) -> list[dict[str, str]]:
    """The messages of a prompt, unchanged; LabError unless they take turns and end with the user's."""
    try:
        messages = check_turns(prompt, strip=False, blank=blank)
        if messages[-1]["role"] != "user":
            raise Malformed("the last one is the assistant's")
    except Malformed as e:
        raise LabError(f"{where}: a prompt is a list of messages {{role, content}} that take turns and whose last one "
                       f"is a user's; here: {e}") from e
    return messages


def check_prompt_id(value: Any, where: str) -> str:
    """A prompt's id as text; numbers are ids, too."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    raise LabError(f"{where}: prompt_id is a text, not {shown(value)}")


def check_gold(gold: Any, where: str) -> dict[str, Any] | None:
    """What is known of a pair's better answer, unchanged; LabError unless it can be compared with a label."""
    if gold is None:
        return None
    if isinstance(gold, Mapping) and set(gold) == {"choice", "claimed"} and gold["choice"] is None:
        # Of a file that was not trusted (records.py): not gold here, and no training row either.
        return {"choice": None, "claimed": check_gold(gold["claimed"], where)}
    if not isinstance(gold, dict) or isinstance(gold.get("choice"), bool | float) or gold.get("choice") not in (1, 2):
        raise LabError(f"{where}: gold needs choice 1 or 2: the answer that is known to be better")
    validated(Gold, dict(gold), f"{where}: gold", f"its grades are among {', '.join(GRADES)}, its safe_1 and safe_2 "
              "true or false")
    _storable(gold, "gold", where)
    return dict(gold)


def gold_columns(gold: dict[str, Any] | None) -> dict[str, Any]:
    """`gold` and what SQL compares of it."""
    known = gold or {}
    grades = known.get("grades") or ()
    return {"gold": gold, "gold_choice": known.get("choice"), "gold_safe_1": known.get("safe_1"),
            "gold_safe_2": known.get("safe_2"), "gold_grades": "".join(f",{g}" for g in grades) + "," * bool(grades)}


def check_moment(value: Any, name: str, where: str) -> datetime:
    """A moment in UTC, from a text or a time with its zone; LabError for what is none."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):  # the last: in UTC it would be before the year 1
        pass
    raise LabError(f"{where}: {name} is a time with its zone, such as 2026-11-24T09:30:00+00:00, not {shown(value)}")


def check_slots(overlaps: Sequence[int], where: str) -> None:
    """LabError where pairs are wanted from more annotators than a store can hold a place for."""
    most = max(overlaps, default=0)
    if most > MAX_OVERLAP:
        raise LabError(f"{where}: {shown(most)} annotators for one pair are more than {MAX_OVERLAP:,}, the most "
                       "there may be; lower the overlap")
    if sum(overlaps) > MAX_SLOTS:
        raise LabError(f"{where}: {sum(overlaps):,} judgements would be wanted, more than {MAX_SLOTS:,}, the most at "
                       "once; lower the overlap, or give the pairs in parts")


def check_label(label: dict[str, Any], kind: str, where: str) -> dict[str, Any]:
    """A row of `labels` that the database would take; LabError for one that is wrong."""
    validated(Judgement, label, where)
    choice, skipped = label["choice"], label["skip_reason"]
    if skipped is None and (choice is None or label["grade"] is None):
        raise LabError(f"{where}: a label has a choice, 1 or 2, and a grade, one of {', '.join(GRADES)}")
    if skipped is not None and (choice is not None or label["grade"] is not None):
        raise LabError(f"{where}: a skip has a reason, and neither choice nor grade")
    if max(len(escape(text or "")) for text in (label["comment"], skipped)) > MAX_COMMENT:
        raise LabError(f"{where}: a comment or a reason has at most {MAX_COMMENT:,} characters")
    if kind == "safety" and choice is not None:
        chosen, rejected = (label["safe_1"], label["safe_2"])[::1 if choice == 1 else -1]
        if rejected and chosen is False:
            raise LabError(f"{where}: an unsafe answer is chosen over a safe one; such a label is never kept")
    return label


