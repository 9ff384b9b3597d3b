"""The settings of all recipes, one by one, and values that are wrong for each, by its type."""

import json
import math
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from llama2lab.run.presets import PRESETS, RealRecipe, load_real_recipe, load_recipe

REAL = {
    "data": {role: {"files": ["a.jsonl"]} for role in ("pretrain", "sft", "helpful", "harmless")},
    "pretrain": {"model": {"vocab_size": 512, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}},
}
# What a file must hold, the settings before the file's are laid over them, and the reader.
ALL = {
    **{name: ({"preset": name}, PRESETS[name], load_recipe) for name in PRESETS},
    "real": (REAL, RealRecipe(), load_real_recipe),
}

# Where 0 (or an empty text, or an empty list) means something. A setting that is not here must refuse it.
NOTHING_IS_FINE = {
    "replay",
    "earlier",
    "format_examples",
    "borderline_share",
    "safety_loss",
    "other_share",
    "unsafe_prompts",
    "temperature",
    "temperatures",
    "chat_rows",
    "gatt_rows",
    "unsafe_share",
    "beta",
    "gamma",
    "lam",
    "no_eos_penalty",
    "critic_warmup",
    "warmup",
    "final",
    "weight_decay",
    "betas",
    "gain_lr",
    "max_malformed",
    "rows",
    "test_pairs",
    "cuts",
    "max_answer_tokens",
    "trained_layers",
    "stories",
    "sample_stories",
    "files",
    "hub",
    "hub_folders",
    "start_from",
    "notes",
    "columns",
    # of rope_scaling
    "mscale",
    "mscale_all_dim",
}
FREE_TEXT = {"notes", "hub", "hub_split", "start_from", "files", "hub_folders", "columns"}
NOT_NUMBERS = ["3", "many", True, None, [1], [], {"a": 1}, math.nan, math.inf, -math.inf]
WRONG: dict[Any, list[Any]] = {
    int: [*NOT_NUMBERS, 1.5, -1, 10**30, 10**4000],
    float: [*NOT_NUMBERS, -0.5, 1e30, 10**400],
    bool: ["true", "yes", 0, 1, None, [], {}, 0.5],
    str: [3, 0.5, True, None, ["a"], {"a": "b"}, "x" * 10_001],
}


def hints_of(kind: Any) -> dict[str, Any]:
    """The settings of a dataclass or typed dictionary."""
    return get_type_hints(kind) if is_dataclass(kind) or hasattr(kind, "__total__") else {}


def alternatives(kind: Any) -> list[Any]:
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


def leaves(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path and the type of every setting that holds no others; sections too, as (path, dict)."""
    for name, hint in hints_of(kind).items():
        inner = next((k for k in alternatives(hint) if hints_of(k)), None)
        if inner:
            yield (*path, name), dict
            yield from leaves(inner, (*path, name))
        else:
            yield (*path, name), hint


def wrong_values(name: str, kind: Any) -> Iterator[Any]:
    """Values of each kind of mistake for a setting of this type."""
    if type(None) in alternatives(kind):
        kind = next(k for k in alternatives(kind) if k is not type(None))
        yield from (v for v in wrong_values(name, kind) if v is not None)
        return
    origin = get_origin(kind) or kind
    if name == "columns":
        yield from (
            3,
            None,
            "text",
            [],
            {"text": 3},
            {"text": []},
            {"text": ""},
            {"txt": "a"},
            {"text": {"a": "b"}},
            {"text": ["a", 3]},
            {"prompt": None},
            {"chosen": True},
        )
    elif origin is dict:  # a section; rope_scaling may be null
        yield from (3, *([] if name == "rope_scaling" else [None]), "text", [], [{}], True, {"xyzzy": 1})
    elif origin is tuple:
        inner, *rest = get_args(kind)
        yield from (None, 3, 0.5, "abc", True, {}, {"a": 1}, [[]], [{}], [None] * 5)
        fine = {int: 50, float: 0.5, str: "careful" if name == "vendors" else "a"}[inner]
        yield [fine] * 1001
        if rest != [...]:
            yield from ([fine] * (1 + len(rest) + 1), [fine] * len(rest), [])
        n = {"helpfulness": 5, "safety": 5, "betas": 2}.get(name, 1)
        if n == 5:
            yield from ([fine] * 4, [fine] * 6)
        yield from ([*[fine] * (n - 1), value] for value in wrong_values(name, inner))
        if name not in NOTHING_IS_FINE:
            yield []
    elif origin.__class__.__name__ == "_LiteralGenericAlias" or get_args(kind):
        yield from (3, None, "xyzzy", [], {}, True)
    elif kind is Any:
        yield from NOT_NUMBERS
    else:
        yield from WRONG[kind]
        if kind is str and name not in FREE_TEXT:
            yield from ("xyzzy", "")
        if kind is str and name != "notes":
            yield from ("nul\0nul", "two\nlines")
        if name not in NOTHING_IS_FINE:
            yield from {int: [0], float: [0, 0.0], str: [""], bool: []}[kind]


def written(tree: dict[str, Any], path: tuple[str, ...]) -> tuple[str, int]:
    """The tree as YAML, every setting on a line of its own, and the line of the setting at `path`."""
    rows, at = [], 0

    def plain(value: Any) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(map(plain, value)) + "]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k}: {plain(v)}" for k, v in value.items()) + "}"
        if isinstance(value, float) and not math.isfinite(value):
            return {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
        return str(value) if type(value) is int else json.dumps(value)

    def write(section: dict[str, Any], here: tuple[str, ...]) -> None:
        nonlocal at
        for key, value in section.items():
            there = (*here, key)
            open_ = isinstance(value, dict) and value and path[: len(there)] == there != path
            rows.append("  " * len(here) + f"{key}: " + ("" if open_ else plain(value)))
            at = len(rows) if there == path else at
            if open_:
                write(value, there)

    write(tree, ())
    return "\n".join(rows) + "\n", at


def with_value(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    name, *rest = path
    inner = tree.get(name) if isinstance(tree.get(name), dict) else {}
    return {**tree, name: with_value(inner, tuple(rest), value) if rest else value}


def hints_at(kind: Any, path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        kind = next(k for k in alternatives(hints_of(kind)[name]) if hints_of(k))
    return hints_of(kind)
