"""Figures of trainings that differ in their seed alone. Their interval is about further items, such as prompts; what
the seeds themselves do is in `each`, one mean a training: an interval over two of them would mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from llama2lab.engine import stats

Values = Sequence[Sequence[float]]  # by seed, one value an item


def over_seeds(figure: Callable[..., stats.Figure], each: Values, groups: Sequence[Hashable]) -> dict[str, Any]:
    """`stats.rate` or `stats.mean` of all trainings' values together, and each training's mean. `groups` has one name a
    value, seed by seed."""
    return {**figure([x for one in each for x in one], groups), "each": [sum(one) / len(one) for one in each if one]}


def less(a: Values, b: Values) -> list[list[float]]:
    """a - b, item by item."""
    return [[float(x) - float(y) for x, y in zip(one, other, strict=True)] for one, other in zip(a, b, strict=True)]
