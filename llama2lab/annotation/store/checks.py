"""What rows from outside must be, before anything is written: pairs, items, labels, annotators, guidelines.

The bounds are far beyond what anybody means, and far below what hurts; PostgreSQL holds class logins to them too
(server.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)

from llama2lab.annotation.store.tables import escape
from llama2lab.engine.dialogues import Malformed, check_turns
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import GRADES, KINDS, MAX_OVERLAP
from llama2lab.engine.validation import fault, shown, strict_json, validated

ID = re.compile("[A-Za-z0-9_-]{1,64}", re.ASCII)  # of labels, items, annotators, guidelines
MAX_POSITION = 10**8  # in the queue; an import moves it behind what is there, and it must stay an SQL integer
MAX_SLOTS = 2_000_000  # judgements wanted by one import or `labels add`
MAX_TEXT = 1_000_000  # characters of one text
MAX_COMMENT = 100_000  # characters of a comment or of the reason for a skip, as the database holds them
MAX_SECONDS = 1e9  # on one item
MAX_LEASE = 86_400  # seconds for which an item may be kept from others
MAX_EDITS = 1000  # labels of one annotator for one item, on PostgreSQL under a class login
NAME_CHARS = 200
# Marks that make the text after them run the other way: a name could disguise itself, or its neighbours, with them.
BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
R = TypeVar("R", bound=BaseModel)


def checked(kind: type[R], row: Any, where: str) -> R:
    """The row as this model; LabError with the place for the first thing that does not fit."""
    try:
        return kind.model_validate(row)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        missing = f"{first['loc'][-1]} is missing" if first["type"] == "missing" and first["loc"] else ""
        raise LabError(f"{where}: {missing or fault(e)}") from None
    except LabError as e:  # of the checks below, in words of their own
        raise LabError(f"{where}: {e}") from None


# ---- values --------------------------------------------------------------------------------------------------------


def tidy(word: Any) -> Any:
    """A word as people may write it: " Better" is "better"."""
    return word.strip().lower() if isinstance(word, str) else word


def clean_name(name: str) -> str:
    """A person's name as it is kept: one line without control characters; LabError for what is none."""
    cleaned = " ".join(unicodedata.normalize("NFC", name).split())
    if not cleaned:
        raise LabError("an annotator needs a name; give one")
    if len(cleaned) > NAME_CHARS:
        raise LabError(f"the name {cleaned[:20]!r}... is longer than {NAME_CHARS} characters; shorten it")
    bad = next((c for c in cleaned if unicodedata.category(c) in ("Cc", "Cs", "Cn") or c in BIDI), None)
    if bad is not None:
        raise LabError(f"the name {cleaned!r} holds the character U+{ord(bad):04X}, which no name needs; leave it out")
    return cleaned


def _kind(value: Any) -> Any:
    if value not in KINDS:
        raise LabError(f"kind is {' or '.join(KINDS)}, not {shown(value)}")
    return value


def _id_of(most: int) -> BeforeValidator:
    def check(value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str) or not ID.fullmatch(value) or len(value) > most:
            raise LabError(f"{info.field_name} has 1 to {most} letters, digits, - and _, not {shown(value)}")
        return value

    return BeforeValidator(check)


def _up_to(most: int) -> WrapValidator:
    def check(value: Any, whole: Any, info: ValidationInfo) -> int:
        try:
            number = whole(value)
        except ValidationError:
            number = -1
        if not 0 <= number <= most:
            raise LabError(f"{info.field_name} is a whole number from 0 to {most:,}, not {shown(value)}")
        return number

    return WrapValidator(check)


def _moment(value: Any, info: ValidationInfo) -> datetime:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):  # the last: in UTC it would be before the year 1
        pass
    raise LabError(f"{info.field_name} is a time with its zone, such as 2026-11-24T09:30:00+00:00, not {shown(value)}")


def _messages(prompt: Any, *, blank: bool = True) -> list[dict[str, str]]:
    """The messages of a prompt, unchanged; LabError unless they take turns and end with the user's."""
    try:
        messages = check_turns(prompt, strip=False, blank=blank)
        if messages[-1]["role"] != "user":
            raise Malformed("the last one is the assistant's")
    except Malformed as e:
        raise LabError(
            "a prompt is a list of messages {role, content} that take turns and whose last one is a user's; "
            f"here: {e}"
        ) from e
    return messages


def _two_texts(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(a, str) for a in value):
        raise LabError("answers are two texts")
    if value[0] == value[1]:
        raise LabError("both answers are the same; leave the pair out, nothing can be learnt from it")
    return list(value)


def _two_names(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(m, str | None) for m in value):
        raise LabError("models are two names, in the order of the answers")
    return list(value)


def _storable(value: Any, info: ValidationInfo) -> Any:
    """LabError for what would not come back from JSON as it went in."""
    try:
        strict_json(json.dumps(value, allow_nan=False), halves=True)
    except (TypeError, ValueError, RecursionError) as e:
        raise LabError(f"{info.field_name} cannot be written as JSON ({e})") from e
    return value


def _gold(gold: Any) -> dict[str, Any] | None:
    """What is known of a pair's better answer, unchanged; LabError unless it can be compared with a label."""
    if gold is None:
        return None
    if isinstance(gold, Mapping) and set(gold) == {"choice", "claimed"} and gold["choice"] is None:
        # Of a file that was not trusted (taking_in.py): not gold here, and no training row either.
        return {"choice": None, "claimed": _gold(gold["claimed"])}
    if not isinstance(gold, dict) or isinstance(gold.get("choice"), bool | float) or gold.get("choice") not in (1, 2):
        raise LabError("gold needs choice 1 or 2: the answer that is known to be better")
    validated(
        Gold,
        dict(gold),
        "gold",
        f"its grades are among {', '.join(GRADES)}, its safe_1 and safe_2 true or false, its reason a text",
    )
    return dict(gold)


Answer = Annotated[int, Field(ge=1, le=2)]
Grade = Annotated[Literal[GRADES], BeforeValidator(tidy)]  # type: ignore[valid-type]
Id = Annotated[str, _id_of(64)]
PersonId = Annotated[str, _id_of(32)]
Moment = Annotated[datetime, BeforeValidator(_moment)]
PromptId = Annotated[str, BeforeValidator(lambda it: "" if it is None else str(it) if type(it) is int else it)]
Overlap = Annotated[int, _up_to(MAX_OVERLAP)]
Position = Annotated[int, _up_to(MAX_POSITION)]
# ---- rows ----------------------------------------------------------------------------------------------------------


class Row(BaseModel):
    """What comes from outside: no type is guessed, what we do not know is left alone."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Gold(Row):
    choice: Answer
    grades: Sequence[Literal[GRADES]] | None = None  # type: ignore[valid-type]
    safe_1: bool | None = None
    safe_2: bool | None = None
    reason: str | None = None  # why, in words; told after practice


class Pair(Row):
    """A prompt and two answers, as people bring them."""

    kind: Annotated[str, BeforeValidator(_kind)]
    prompt: Annotated[list[dict[str, str]], BeforeValidator(_messages)]
    answers: Annotated[list[str], BeforeValidator(_two_texts)]
    models: Annotated[list[str | None], BeforeValidator(_two_names)] | None = None
    prompt_id: PromptId = ""
    gold: Annotated[Any, BeforeValidator(_gold), AfterValidator(_storable)] = None
    meta: Annotated[Any, AfterValidator(_storable)] = None

    def rows(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rows of `items` and `secrets`."""
        key = item_id(self.kind, self.prompt, self.answers, self.prompt_id)
        one, two = self.models or (None, None)
        return (
            {
                "id": key,
                "kind": self.kind,
                "prompt": self.prompt,
                "answer_1": self.answers[0],
                "answer_2": self.answers[1],
                "prompt_id": self.prompt_id,
            },
            {"item_id": key, "model_1": one, "model_2": two, "meta": self.meta, **gold_columns(self.gold)},
        )


class NewPair(Pair):
    """One for people to judge: each turn says something."""

    prompt: Annotated[list[dict[str, str]], BeforeValidator(partial(_messages, blank=False))]


class ItemRow(Pair):
    """A pair that was in a store."""

    item_id: Any = None
    overlap: Overlap
    position: Position
    item_created_at: Moment


class AnnotatorRow(Row):
    id: PersonId
    vendor: Annotated[str, AfterValidator(lambda vendor: clean_name(vendor) if vendor else "")]
    kind: Literal["person", "simulated"]
    name: Annotated[str, AfterValidator(clean_name)]
    created_at: Moment


class GuidelinesRow(Row):
    version: str
    kind: str
    text: str
    created_at: Moment

    @model_validator(mode="before")
    @classmethod
    def _fit(cls, row: dict[str, Any]) -> dict[str, Any]:
        version, kind, text = (row.get(name) for name in ("version", "kind", "text"))
        if not isinstance(version, str) or not ID.fullmatch(version) or not isinstance(text, str):
            raise LabError("guidelines have version, kind and text")
        if kind not in KINDS or len(text) > MAX_TEXT:
            raise LabError(f"guidelines are for {' or '.join(KINDS)}, in at most {MAX_TEXT:,} characters")
        return row


class LabelRow(Row):
    """A row of `labels` that the database would take."""

    id: Id
    item_id: Id
    annotator_id: Id
    choice: Answer | None = None
    grade: Literal[GRADES] | None = None  # type: ignore[valid-type]
    safe_1: bool | None = None
    safe_2: bool | None = None
    comment: str
    flag: bool
    skip_reason: str | None = None
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)]
    left: Answer | None = None
    guidelines: Id | None = None
    supersedes: Id | None = None
    created_at: Moment


class VerdictRow(Row):
    """A row of `verdicts` that the database would take."""

    id: Id
    item_id: Id
    teacher: Annotated[str, AfterValidator(clean_name)]
    login: Annotated[str, Field(max_length=200)] = ""
    choice: Answer | None = None
    grade: Literal[GRADES] | None = None  # type: ignore[valid-type]
    safe_1: bool | None = None
    safe_2: bool | None = None
    reason: str = ""
    labels: Annotated[list[Id], Field(max_length=100_000)]
    guidelines: Id | None = None
    supersedes: Id | None = None
    created_at: Moment


def check_verdict(row: Any, kind: str, where: str) -> dict[str, Any]:
    """The row of `verdicts` of an item of this kind; LabError for one that is wrong."""
    verdict = checked(VerdictRow, row, where).model_dump()
    choice = verdict["choice"]
    if (choice is None) != (verdict["grade"] is None):
        raise LabError(f"{where}: a verdict has a choice and a grade, or neither where no answer is better")
    if len(escape(verdict["reason"])) > MAX_COMMENT:
        raise LabError(f"{where}: a reason has at most {MAX_COMMENT:,} characters; shorten it")
    if kind == "safety" and choice is not None:
        chosen, rejected = (verdict["safe_1"], verdict["safe_2"])[:: 1 if choice == 1 else -1]
        if chosen is None or rejected is None:
            raise LabError(f"{where}: in a safety pair each answer is safe or unsafe; mark both")
        if rejected and not chosen:
            raise LabError(f"{where}: an unsafe answer is chosen over a safe one; that is never kept")
    return verdict


def check_label(row: Any, kind: str, where: str) -> dict[str, Any]:
    """The row of `labels` of an item of this kind ("": not known); LabError for one that is wrong."""
    label = checked(LabelRow, row, where).model_dump()
    choice, grade, skipped = label["choice"], label["grade"], label["skip_reason"]
    if skipped is None and (choice is None or grade is None):
        raise LabError(f"{where}: a label has a choice, 1 or 2, and a grade, one of {', '.join(GRADES)}")
    if skipped is not None and (choice is not None or grade is not None):
        raise LabError(f"{where}: a skip has a reason, and neither choice nor grade")
    if max(len(escape(text or "")) for text in (label["comment"], skipped)) > MAX_COMMENT:
        raise LabError(f"{where}: a comment or a reason has at most {MAX_COMMENT:,} characters")
    if kind == "safety" and choice is not None:
        chosen, rejected = (label["safe_1"], label["safe_2"])[:: 1 if choice == 1 else -1]
        if rejected and chosen is False:
            raise LabError(f"{where}: an unsafe answer is chosen over a safe one; such a label is never kept")
    return label


def check_pair(row: Any, where: str, kind: type[Pair] = Pair) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of `items` and `secrets` for a pair; LabError for one that is wrong."""
    missing = [name for name in ("kind", "prompt", "answers") if not isinstance(row, Mapping) or name not in row]
    if missing:
        raise LabError(f"{where}: a pair needs kind, prompt and answers; {missing[0]!r} is missing")
    return checked(kind, row, where).rows()


def check_slots(overlaps: Sequence[int], where: str) -> None:
    """LabError where pairs are wanted from more annotators than a store can hold a place for."""
    most = max(overlaps, default=0)
    if most > MAX_OVERLAP:
        raise LabError(
            f"{where}: {shown(most)} annotators for one pair are more than {MAX_OVERLAP:,}, the most "
            "there may be; lower the overlap"
        )
    if sum(overlaps) > MAX_SLOTS:
        raise LabError(
            f"{where}: {sum(overlaps):,} judgements would be wanted, more than {MAX_SLOTS:,}, the most at "
            "once; lower the overlap, or give the pairs in parts"
        )


# ---- what follows from a row -----------------------------------------------------------------------------------------


def item_id(kind: str, prompt: Sequence[Mapping], answers: Sequence[str], prompt_id: str) -> str:
    """The same for the same content, so that files made from the same pairs can be merged."""
    content = json.dumps([kind, [[m["role"], m["content"]] for m in prompt], list(answers), prompt_id])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def guidelines_version(kind: str, text: str) -> str:
    """The same for the same text, so that nobody can put another text in its place."""
    return hashlib.sha256(f"{kind}\n{text}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def gold_columns(gold: dict[str, Any] | None) -> dict[str, Any]:
    """`gold` and what SQL compares of it."""
    known = gold or {}
    grades = known.get("grades") or ()
    return {
        "gold": gold,
        "gold_choice": known.get("choice"),
        "gold_safe_1": known.get("safe_1"),
        "gold_safe_2": known.get("safe_2"),
        "gold_grades": "".join(f",{g}" for g in grades) + "," * bool(grades),
    }
