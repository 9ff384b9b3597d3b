"""What the page may send to Python; anything else is refused with the reason, since what comes from a page is not
trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llama2lab.annotation.store.checks import ID
from llama2lab.engine.errors import LabError
from llama2lab.engine.scale import GRADES


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    request: str = Field(min_length=1, max_length=64)
    type: str


class Start(Message):
    name: str | None = Field(default=None, max_length=1000)
    code: str | None = Field(default=None, max_length=1000)


class Plain(Message):
    """A message without content: next, begin, again, summary."""


class ChooseTask(Message):
    kind: Literal["helpfulness", "safety"] | None = None  # None: ask which


class PastOne(Message):
    index: int = Field(ge=0)


class Find(Message):
    """Which of one's earlier pairs: all that hold the text, in question, answers or comment, and have the mark."""

    text: str = Field(default="", max_length=1000)
    mark: Literal["", *GRADES, "skipped", "flagged", "commented"] = ""  # type: ignore[valid-type]


class Guidelines(Message):
    kind: Literal["helpfulness", "safety"] | None = None


class Answered(Message):
    item_id: str = Field(pattern=rf"\A{ID.pattern}\z")
    label_id: str = Field(pattern=r"\A[0-9a-f]{32}\z")
    replaces: str | None = Field(default=None, pattern=rf"\A{ID.pattern}\z")  # the label that was shown; None: new
    comment: str = Field(default="", max_length=10_000)
    flag: bool = False
    seconds: float = Field(default=0.0, ge=0, le=10_000_000, allow_inf_nan=False)


class Submit(Answered):
    side: Literal["left", "right"]
    grade: Literal[GRADES]  # type: ignore[valid-type]
    safe_left: bool | None = None
    safe_right: bool | None = None


class Skip(Answered):
    reason: str = Field(min_length=1, max_length=1000)


MESSAGES: dict[str, type[Message]] = {
    "start": Start,
    "next": Plain,
    "begin": Plain,
    "again": Plain,
    "summary": Plain,
    "task": ChooseTask,
    "past": PastOne,
    "find": Find,
    "guidelines": Guidelines,
    "submit": Submit,
    "skip": Skip,
}


def parse(content: Any, kinds: Mapping[str, type[Message]]) -> Message:
    """The page's message, of one of these types; LabError says what is wrong with it."""
    kind = content.get("type") if isinstance(content, Mapping) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise LabError(
            f"the page sent a message of an unknown type ({str(kind)[:40]!r}); reload the page, so that "
            "page and Python are of the same version"
        )
    try:
        return kinds[kind].model_validate({name: _whole(value) for name, value in content.items()})
    except ValidationError as e:
        wrong = e.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or "message"
        raise LabError(
            f"the page sent a {kind!r} message whose {where[:60]!r} is wrong ({wrong['msg']}); nothing was "
            "saved or changed; reload the page and try again"
        ) from e


def _whole(value: Any) -> Any:
    """Half a character (an emoji cut in two) is no text that could be kept: U+FFFD. A message holds texts and lists of
    them; what lies deeper is refused anyway."""
    if isinstance(value, list):
        return [printable(one) if isinstance(one, str) else one for one in value]
    return printable(value) if isinstance(value, str) else value


def printable(value: Any) -> Any:
    """The answer with lone surrogates, which no JSON message can carry, made U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {key: printable(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(v) for v in value]
    return value
