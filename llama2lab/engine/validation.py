"""What comes from outside, checked before it is used: JSON that holds what JSON may hold, and values that fit a type.

Recipes, rows that people bring, checkpoints and the files of a run are all checked here, by pydantic. No torch: the
annotation form imports this too.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from llama2lab.engine.errors import LabError

MAX_DEPTH = 100  # lists and objects inside each other; what walks through deeper ones would run out of stack


class NotStrict(ValueError):
    """Why something that reads like JSON is none, in words without the place."""


def parse_json(text: str | bytes, where: str, cure: str = "mend or remove it") -> Any:
    """The JSON of `text`, strictly: see `strict_json`.

    Raises:
        LabError: names `where`, the line inside the text where it has several, and `cure`.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return strict_json(text)
    except json.JSONDecodeError as e:
        what = f"broken JSON ({e.msg}, line {e.lineno})" if "\n" in str(text).strip() else f"broken JSON ({e.msg})"
    except UnicodeDecodeError:
        what = "not UTF-8"
    except NotStrict as e:
        what = str(e)
    raise LabError(f"{where}: {what}; {cure}")


def strict_json(text: str, halves: bool = False) -> Any:
    """The JSON of `text`: no NaN or infinity, no name twice in one object, no number of thousands of digits, at most
    MAX_DEPTH lists and objects inside each other, nothing that UTF-8 cannot hold (unless `halves` of characters may
    stand in it).

    Raises:
        json.JSONDecodeError: it is no JSON.
        NotStrict: it is JSON that another program would read otherwise, or not at all.
    """

    def refuse(what: str) -> NoReturn:
        raise NotStrict(what)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            refuse(f"the name {shown(next(n for n in names if names.count(n) > 1))} stands twice in one object")
        return found

    def finite(digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else refuse(f"the number {shown(digits)[1:-1]} is too large")

    try:
        found = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=once,
            parse_float=finite,
            parse_constant=lambda name: refuse(f"{name} is no JSON"),
        )
        if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(found, MAX_DEPTH):
            refuse("nested too deeply")
        if not halves:
            text.encode("utf-8")
            if "\\ud" in text or "\\uD" in text:
                json.dumps(found, ensure_ascii=False).encode("utf-8")
        return found
    except (json.JSONDecodeError, NotStrict):
        raise
    except UnicodeEncodeError:
        refuse("half a character (a lone surrogate such as \\ud83d), which no text may hold")
    except RecursionError:
        refuse("nested too deeply")
    except ValueError:  # Python's limit for the digits of a whole number
        refuse("a number with thousands of digits")


def _deeper(value: Any, depth: int) -> bool:
    """Whether more than `depth` lists and objects stand inside each other; without recursion."""
    level = [value]
    for _ in range(depth + 1):
        level = [one for one in level if isinstance(one, (dict, list))]
        if not level:
            return False
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
    return True


@lru_cache(maxsize=256)
def _kept(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """pydantic's validator of a type. Building one takes a millisecond, and a run's files ask for thousands."""
    try:
        return _kept(kind)
    except TypeError:  # a type that cannot be a key, such as one with a Field in it
        return TypeAdapter(kind)


def validated(kind: Any, value: Any, where: str, cure: str = "correct it") -> Any:
    """`value` as the type `kind` (whatever pydantic takes: a model, a dataclass, list[int], ...).

    Raises:
        LabError: the first thing that does not fit, by its path in the value, and `cure`.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as e:
        raise LabError(f"{where}: {fault(e)}; {cure}") from None


def fault(e: ValidationError) -> str:
    """The first of pydantic's complaints in words: where in the value, what may stand there, and what does."""
    first = e.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    message = first["msg"][0].lower() + first["msg"][1:]
    given = "" if first["type"] in ("missing", "extra_forbidden") else f", not {shown(first['input'])}"
    return (f"{path}: " if path else "") + message.removeprefix("value error, ") + given


def shown(value: Any) -> str:
    """A value for a message: short, on one line, whatever it holds."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a value nested too deeply
        text = f"a {type(value).__name__}"
    text = "".join(c if c.isprintable() else "?" for c in text[:200])
    return text if len(text) <= 60 else text[:57] + "..."
