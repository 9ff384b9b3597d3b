"""What settings may be: the types of their fields, and the check of all of them when a dataclass of settings is made.

    @checked
    @dataclass(frozen=True)
    class PPOSettings:
        iterations: Few = 20

A wrong value is a LabError, whether it comes from a recipe file (recipefile.py), which adds file and line, or from
Python. Types are exact: no text for a number, no true for 1, no NaN. No torch here.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import fields
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from llama2lab.engine.errors import LabError
from llama2lab.engine.validation import shown

T = TypeVar("T")


def one_of(words: Collection[str]) -> AfterValidator:
    """For a field that takes one of these words: `head: Annotated[str, one_of(HEADS)]`."""

    def known(word: str) -> str:
        if word not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return word

    return AfterValidator(known)


def _warm(temperature: float) -> float:
    if 0 < temperature < 0.01:  # logits divided by less overflow in float32, and their softmax is noise or NaN
        raise ValueError("must be 0, which takes the likeliest token, or at least 0.01")
    return temperature


Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrNone = Annotated[int, Field(ge=0, le=10**9)]
Few = Annotated[int, Field(ge=1, le=10_000)]  # what is done so often, or held so many times in memory at once
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]  # 0: without it
Epochs = Annotated[float, Field(gt=0, le=10_000)]
Rate = Annotated[float, Field(gt=0, le=1000)]  # a learning rate
Limit = Annotated[float, Field(gt=0, le=1e12)]  # a very large one is none
Temperature = Annotated[float, Field(ge=0, le=100), AfterValidator(_warm)]
Text = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]  # one line; may be empty
Name = Annotated[Text, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(max_length=1000)]
Notes = Annotated[str, Field(max_length=10_000)]
Split = Annotated[str, one_of(("test", "dev"))]


class Clash(LabError, ValueError):
    """Settings that do not fit each other. As a ValueError it is collected by pydantic. `settings` are the paths of
    those concerned, seen from the dataclass that raises it; `says` is said of the first."""

    def __init__(self, says: str, *settings: str):
        super().__init__(f"{settings[0]} {says}")
        self.says, self.settings = says, settings


def checked(cls: type[T]) -> type[T]:
    """The frozen dataclass `cls`, whose values are checked against its fields' types when one is made, and then by its
    `__post_init__`, which may raise Clash. What does not fit is a LabError. `asdict` and `replace` work as before."""
    strict = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    made: Any = pydantic_dataclass(cls, frozen=True, config=strict)  # type: ignore[call-overload]
    init, names = made.__init__, [f.name for f in fields(made)]

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(names) or set(names[: len(args)]) & set(kwargs):
            raise TypeError(f"{cls.__name__} takes each of {', '.join(names)} once")
        try:
            init(self, **dict(zip(names, args, strict=False)), **kwargs)
        except ValidationError as e:
            path, says = complaint(e.errors(include_url=False)[0])
            raise LabError(f"{cls.__name__}: {dotted(path)} {says}") from None

    made.__init__ = __init__
    return made


def dotted(path: tuple[Any, ...]) -> str:
    """("rlhf", "temperatures", 0) -> "rlhf.temperatures[0]". Keys that no setting has may hold anything."""

    def name(part: str) -> str:
        return part if part.isprintable() and len(part) <= 60 else shown(part)

    # "[key]" is pydantic's word for: the key of the mapping itself is wrong.
    return "".join(f"[{p}]" if isinstance(p, int) else f".{name(p)}" for p in path if p != "[key]").removeprefix(".")


UNKNOWN, MISSING = "is no setting", "is missing"
KINDS = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing_size"), "a whole number"),
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    "dict_type": "a mapping",
    **dict.fromkeys(("dataclass_type", "dataclass_exact_type"), "a mapping of settings"),
    "finite_number": "a finite number",
    "string_pattern_mismatch": "text on one line",
    "string_unicode": "text",
}
BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def complaint(error: Any) -> tuple[tuple[Any, ...], str]:
    """One of pydantic's errors as the path of the setting and what is to be said of it: what may stand there, and what
    does."""
    kind, path, given, more = error["type"], tuple(error["loc"]), error["input"], error.get("ctx", {})
    if isinstance(more.get("error"), Clash):
        return (*path, *more["error"].settings[0].split(".")), more["error"].says
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return path, UNKNOWN
    if kind == "missing":
        return path, MISSING
    if kind in KINDS:
        says = f"must be {KINDS[kind]}"
    elif kind in BOUNDS:
        name, words = BOUNDS[kind]
        bound = more[name]
        below_zero = isinstance(given, int | float) and given < 0 <= bound
        says = f"must {'not be negative, but ' if below_zero else 'be '}{words} {int(bound) if bound >= 1 else bound:,}"
    elif kind == "too_short":
        says = f"must have at least {more['min_length']} values"
    elif kind == "too_long":
        says = f"must have at most {more['max_length']} values"
    elif kind == "string_too_short":
        says = "must not be empty"
    elif kind == "string_too_long":
        says = f"must have at most {more['max_length']} characters"
    else:
        message = error["msg"].removeprefix("Value error, ")
        says = message[0].lower() + message[1:]
    return path, f"{says}, not {shown(given)}"
