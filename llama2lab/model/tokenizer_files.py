"""A tokenizer's files from elsewhere, checked before transformers reads them: no code of their own, fields of the right
types, and no pattern that could take for ever."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from llama2lab.engine.errors import LabError
from llama2lab.engine.validation import parse_json, shown, validated

CURE = "save the tokenizer again with transformers (save_pretrained), or get the folder anew"
# In one alternative of a pattern. Those of GPT-2, Llama 3, Qwen and GPT-4o have two long repeats and four in all.
MOST_LONG, MOST_REPEATS = 3, 6
LONG = 16  # times; a repeat of at most so many is not long
REPEATS = (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT)


class TokenJson(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    content: str


Token = str | TokenJson | None


class TokenizerJson(BaseModel):
    """What of tokenizer_config.json is used here or by transformers; more may stand there."""

    model_config = ConfigDict(strict=True, extra="allow")
    tokenizer_class: str | None = None
    bos_token: Token = None
    eos_token: Token = None
    unk_token: Token = None
    pad_token: Token = None
    extra_special_tokens: list[Any] | dict[str, Any] | None = None
    additional_special_tokens: list[Any] | None = None
    added_tokens_decoder: dict[str, TokenJson] | None = None
    chat_template: str | list[Any] | dict[str, Any] | None = None
    model_max_length: float | None = None
    padding_side: Literal["left", "right"] | None = None
    auto_map: Any = None


def check_tokenizer_files(folder: Path) -> None:
    """Refuse what a tokenizer's folder may not hold.

    Raises:
        LabError: a tokenizer of code of its own, a field of the wrong type, a pattern that may not end.
    """
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        found = validated(TokenizerJson, _read(settings), str(settings), CURE)
        if found.auto_map:
            raise LabError(
                f"{settings}: auto_map names code of the folder's own ({shown(found.auto_map)}), which is "
                "never run here; open the tokenizer with transformers where you trust it, save it as "
                "tokenizer.json and remove auto_map"
            )
    tokenizer = folder / "tokenizer.json"
    parts = _read(tokenizer)
    if not isinstance(parts, dict):
        raise LabError(f"{tokenizer}: no JSON object; {CURE}")
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for pattern in _patterns(parts.get(part)):
            why = endless(pattern)
            if why:
                raise LabError(
                    f"{tokenizer}: the pattern {shown(pattern)} of its {part} {why}, so that a short text "
                    "could hold the machine for ever; choose another tokenizer"
                )


def endless(pattern: str) -> str:
    """Why a search for `pattern` may take for ever on some text, or "".

    Refused are a repeat of what itself varies in length or has alternatives (`(a+)+`, `(a|aa)*`: ways to match grow
    exponentially), many repeats in a row, back references, and what cannot be read. It is stricter than need be, and no
    proof: three long repeats of one character still take the cube of a text's length.
    """
    # Python knows no \p{..}; one class of characters is as good as another to see what is repeated.
    plain = re.sub(r"\\[pP](\{[^}]*\}|[A-Z])", r"\\w", pattern)
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = _parser.parse(plain)
    except (re.error, OverflowError, RecursionError, ValueError) as e:
        return f"cannot be checked ({e})"
    if any(kind == kinds.GROUPREF for kind, _ in _nodes(tree)):
        return "refers back to itself"
    for kind, value in _nodes(tree):
        if kind in REPEATS and value[1] > 1 and any(_varies(*node) for node in _nodes(value[2])):
            return "repeats what itself varies"
    if _in_a_row(tree, LONG) > MOST_LONG or _in_a_row(tree, 0) > MOST_REPEATS:
        return "has many repeats in a row"
    return ""


def _varies(kind: Any, value: Any) -> bool:
    return kind == kinds.BRANCH or (kind in REPEATS and value[0] != value[1])


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, _parser.SubPattern):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _children(part)


def _nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    for kind, value in tree:
        yield kind, value
        for child in _children(value):
            yield from _nodes(child)


def _in_a_row(tree: Any, longer_than: int) -> int:
    """The most repeats of varying length, up to more than `longer_than` times, that one match can go through."""
    total = 0
    for kind, value in tree:
        inner = [_in_a_row(child, longer_than) for child in _children(value)]
        total += max(inner, default=0) if kind == kinds.BRANCH else sum(inner)
        total += kind in REPEATS and value[0] != value[1] and int(value[1]) > longer_than
    return total


def _patterns(part: Any) -> Iterator[str]:
    """The regular expressions anywhere in a part of tokenizer.json."""
    if isinstance(part, dict):
        if isinstance(part.get("Regex"), str):
            yield part["Regex"]
        for value in part.values():
            yield from _patterns(value)
    elif isinstance(part, list):
        for value in part:
            yield from _patterns(value)


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes(), str(path), CURE)
    except OSError as e:
        raise LabError(f"{path}: cannot be read ({e.strerror}); {CURE}") from e
