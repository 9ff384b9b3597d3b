"""What comes from outside, checked before it is used: JSON that holds what JSON may hold, and values that fit a type.

Recipes, rows that people bring, checkpoints and the files of a run are all checked here, by pydantic. No torch: the
annotation form imports this too.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from llama2lab.errors import LabError


def parse_json(text: str | bytes, where: str, cure: str = "mend or remove it") -> Any:
    """The JSON of `text`, strictly: no NaN or infinity, no name twice in one object, nothing that UTF-8 cannot hold.

    Raises:
        LabError: names `where`, the line inside the text where it has several, and `cure`.
    """
    def refuse(what: str) -> NoReturn:
        raise LabError(f"{where}: {what}; {cure}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            refuse(f"the name {next(n for n in names if names.count(n) > 1)[:40]!r} stands twice in one object")
        return found

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        found = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=once,
                           parse_constant=lambda name: refuse(f"{name} is no JSON"))
        if "\\ud" in text or "\\uD" in text:
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        return found
    except json.JSONDecodeError as e:
        refuse(f"broken JSON ({e.msg}, line {e.lineno})" if "\n" in text.strip() else f"broken JSON ({e.msg})")
    except UnicodeDecodeError:
        refuse("not UTF-8")
    except UnicodeEncodeError:
        refuse("half a character (a lone surrogate such as \\ud83d), which no text may hold")
    except RecursionError:
        refuse("nested too deeply")
    except ValueError:  # Python's limit for the digits of a whole number
        refuse("a number with thousands of digits")


def validated(kind: Any, value: Any, where: str, cure: str = "correct it") -> Any:
    """`value` as the type `kind` (whatever pydantic takes: a model, a dataclass, list[int], ...).

    Raises:
        LabError: the first thing that does not fit, by its path in the value, and `cure`.
    """
    try:
        return TypeAdapter(kind).validate_python(value)
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
