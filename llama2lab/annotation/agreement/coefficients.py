"""How far annotators agree on the same pairs: Krippendorff's alpha, Gwet's AC1 and AC2, plain percent agreement.

Compared are the **choice** of the item's answer (nominal), the **grade** as a place on the scale of eight (ordinal)
and **safety**, each answer alone (nominal): always about the item's answers, never about the side. Which answer is the
first is an accident of the import, so answers are told apart by a hash of their text. Categories are those of the
scale, used or not (AC depends on how many there are). Skips and gold items, chosen to be clear, are left out; flagged
labels count.

Written out here because neither library can be a dependency: `krippendorff` is under the GPL, and irrCAC 0.4.4 demands
one old scipy. The tests hold these figures to the published ones of both, and to `krippendorff` on random tables.

Intervals are 95 % percentile intervals of a seeded bootstrap over items, with all that belongs to an item. Where all
agree, a bootstrap would be certain for ever; there the lower end is what Wilson's interval leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llama2lab.engine.scale import GRADES
from llama2lab.engine.stats import Figure, wilson

Label = dict[str, Any]  # what Store.labels gives
What = Literal["choice", "grade", "safety"]
Level = Literal["nominal", "ordinal"]
Array = NDArray[np.float64]
WHATS: tuple[What, ...] = ("choice", "grade", "safety")
CATEGORIES: dict[What, int] = {"choice": 2, "grade": 2 * len(GRADES), "safety": 2}
LEVELS: dict[What, Level] = {"choice": "nominal", "grade": "ordinal", "safety": "nominal"}
RESAMPLES = 1000


def undefined(n: int = 0) -> Figure:
    """The figure of something that these n items do not define."""
    return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": n}


# ---- from labels to counts ---------------------------------------------------------------------------------------


def judged(labels: Iterable[Label], gold: bool = False) -> list[Label]:
    """The labels that hold a choice; those on gold items too, if asked for."""
    return [x for x in labels if x["choice"] in (1, 2) and (gold or not x["gold"])]


def grouped(labels: Iterable[Label], by: str) -> dict[Any, list[Label]]:
    """The labels by their item, annotator or vendor: the name of what they share."""
    groups: dict[Any, list[Label]] = {}
    for label in labels:
        groups.setdefault(label[by], []).append(label)
    return groups


def first_answer(label: Label) -> int:
    """1 or 2: which of the item's answers counts as its first here, however the pair was numbered."""
    one, two = (hashlib.blake2b(a.encode("utf-8", "replace"), digest_size=8).digest() for a in label["answers"])
    return 1 if one <= two else 2


def signed(label: Label) -> int:
    """Strength of the preference, towards the item's first answer negative, towards its second positive: 1 negligibly
    ... 4 significantly."""
    return (len(GRADES) - GRADES.index(label["grade"])) * (-1 if label["choice"] == 1 else 1)


def values_of(label: Label, what: What) -> list[tuple[int, int]]:
    """(part of the item, category) for each judgement that the label holds: one, or for safety one an answer."""
    first = first_answer(label)
    if what == "choice":
        return [(0, int(label["choice"] != first))]
    if what == "grade":
        strength = signed(label) * (1 if first == 1 else -1)
        return [(0, len(GRADES) + strength - (strength > 0))]
    return [(part, int(safe)) for part, safe in ((0, label["safe_1"]), (1, label["safe_2"])) if safe is not None]


@dataclass(frozen=True)
class Counts:
    """How many annotators put each unit into each category. A unit is an item, or for safety one of its answers."""

    table: Array  # (units, categories)
    item: NDArray[np.int64]  # (units,), the number of each unit's item
    items: int

    @property
    def pairable(self) -> int:
        """Items with a unit that two or more annotators judged: what agreement rests on."""
        return len(np.unique(self.item[self.table.sum(axis=1) >= 2]))


def counts_of(labels: Iterable[Label], what: What) -> Counts:
    """The counts of one thing that the labels judge."""
    units: dict[tuple[Any, int], list[int]] = {}
    for label in judged(labels):
        for part, value in values_of(label, what):
            units.setdefault((label["item_id"], part), [0] * CATEGORIES[what])[value] += 1
    return counts_from(list(units.values()), [item for item, _ in units], CATEGORIES[what])


def counts_from(rows: Sequence[Sequence[int]], items: Sequence[Any], categories: int) -> Counts:
    numbers = {item: i for i, item in enumerate(dict.fromkeys(items))}
    return Counts(
        np.array(rows, dtype=float).reshape(len(rows), categories),
        np.array([numbers[item] for item in items], dtype=np.int64),
        len(numbers),
    )


# ---- coefficients ------------------------------------------------------------------------------------------------


def alpha_of(table: Array, level: Level) -> float:
    """Krippendorff's alpha; NaN where it is not defined: no unit judged twice, or no variation."""
    pairable = table[table.sum(axis=1) >= 2]
    if (pairable.sum(axis=0) > 0).sum() < 2:
        return float("nan")
    return float(_alpha(_parts(_units(table), weights_of(level, table.shape[1])), np.ones((1, len(table))), level)[0])


def ordinal_weights(categories: int) -> Array:
    """Gwet's ordinal weights: 1 for the same category, 0 for the two ends of the scale, and between them by how many
    pairs of categories lie within the distance."""
    apart = np.abs(np.subtract.outer(np.arange(categories), np.arange(categories)))
    pairs = apart * (apart + 1) / 2
    return 1 - pairs / pairs.max()


def weights_of(level: Level, categories: int) -> Array:
    return np.eye(categories) if level == "nominal" else ordinal_weights(categories)


def gwet_of(table: Array, weights: Array) -> float:
    """Gwet's AC1 (identity weights) or AC2; NaN where no unit was judged twice."""
    return float(_gwet(_parts(_units(table), weights), np.ones((1, len(table))), weights)[1][0])


def _units(table: Array) -> Counts:
    """Counts in which each row is an item."""
    return Counts(table, np.arange(len(table)), len(table))


@dataclass(frozen=True)
class _Parts:
    """What each item adds to the coefficients; resampling items is then a product of matrices."""

    agree: Array  # (items,) weighted share of agreeing pairs, summed over the item's units judged twice
    twice: Array  # (items,) number of those units
    shares: Array  # (items, categories) share of judgements in each category, summed over units
    units: Array  # (items,)
    pairs: Array  # (items, categories^2) Krippendorff's coincidences


def _parts(counts: Counts, weights: Array) -> _Parts:
    table, q = counts.table, len(weights)
    raters = table.sum(axis=1)
    several = raters >= 2
    agree = np.where(several, (table * (table @ weights - 1)).sum(axis=1) / np.maximum(raters * (raters - 1), 1), 0.0)
    coincidences = table[:, :, None] * table[:, None, :] - table[:, :, None] * np.eye(q)
    coincidences /= np.maximum(raters - 1, 1)[:, None, None]

    def by_item(values: Array) -> Array:
        total = np.zeros((counts.items, *values.shape[1:]))
        np.add.at(total, counts.item, values)
        return total

    return _Parts(
        by_item(agree),
        by_item(several.astype(float)),
        by_item(table / np.maximum(raters, 1)[:, None]),
        by_item(np.ones(len(table))),
        by_item(coincidences.reshape(len(table), q * q)),
    )


def _gwet(parts: _Parts, times: Array, weights: Array) -> tuple[Array, Array]:
    """(percent agreement, AC) for each row of `times`, which says how often each item counts."""
    q = len(weights)
    with np.errstate(invalid="ignore", divide="ignore"):  # no item judged twice: NaN, which is what is meant
        agreement = (times @ parts.agree) / (times @ parts.twice)
        shares = (times @ parts.shares) / (times @ parts.units)[:, None]
    chance = weights.sum() / (q * (q - 1)) * (shares * (1 - shares)).sum(axis=1)
    return agreement, (agreement - chance) / (1 - chance)


def _alpha(parts: _Parts, times: Array, level: Level) -> Array:
    """Alpha for each row of `times`: for many resamples at once."""
    q = parts.shares.shape[1]
    pairs = (times @ parts.pairs).reshape(len(times), q, q)
    values = pairs.sum(axis=2)
    total = values.sum(axis=1)
    if level == "nominal":
        distance = np.broadcast_to(1 - np.eye(q), pairs.shape)
    else:
        middle = values.cumsum(axis=1) - values / 2  # the mean rank of each category
        distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without variation: NaN
        expected = (values[:, :, None] * values[:, None, :] * distance).sum(axis=(1, 2)) / (total - 1)
        return 1 - (pairs * distance).sum(axis=(1, 2)) / np.where(expected > 0, expected, np.nan)


# ---- figures -----------------------------------------------------------------------------------------------------


def figures_of(counts: Counts, level: Level, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Figure]:
    """`percent` (weighted for ordinal things), `alpha` and `ac` with intervals; n is the number of items that two or
    more annotators judged."""
    n, q = counts.pairable, counts.table.shape[1]
    if n == 0:
        return {name: undefined(0) for name in ("percent", "alpha", "ac")}
    weights = weights_of(level, q)
    parts = _parts(counts, weights)
    rng, evenly = np.random.default_rng(seed), np.full(counts.items, 1 / counts.items)
    drawn = []
    block = max(1, int(4e6 // counts.items))  # as many resamples at once as some 32 MB hold
    for start in range(0, resamples, block):
        times = rng.multinomial(counts.items, evenly, size=min(block, resamples - start)).astype(float)
        drawn.append((*_gwet(parts, times, weights), _alpha(parts, times, level)))
    percents, acs, alphas = (np.concatenate(several) for several in zip(*drawn, strict=True))
    (percent,), (ac,) = _gwet(parts, np.ones((1, counts.items)), weights)
    return {
        "percent": _figure(float(percent), percents, n, 0.0),
        "alpha": _figure(alpha_of(counts.table, level), alphas, n, 0.5),
        "ac": _figure(float(ac), acs, n, 0.5),
    }


def _figure(mean: float, resampled: Array, n: int, chance: float) -> Figure:
    there = resampled[np.isfinite(resampled)]
    if not np.isfinite(mean) or not len(there):
        return undefined(n)
    low, high = (float(x) for x in np.percentile(there, (2.5, 97.5)))
    if mean >= 1 - 1e-12:
        # Nobody disagreed, and no resample can: see above. Chance at one half is its worst for two categories.
        low, high = min(low, 1 - (1 - wilson(1.0, n)[0]) / (1 - chance)), 1.0
    return {"mean": mean, "low": min(low, mean), "high": max(high, mean), "n": n}


def agreement(labels: Iterable[Label], what: What, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Figure]:
    """Agreement of all annotators on the choice, the grade or safety: `percent`, `alpha`, `ac` (AC1, for the grade
    AC2 with ordinal weights). NaN with n where the labels do not define it."""
    return figures_of(counts_of(labels, what), LEVELS[what], seed, resamples)


def agreement_table(labels: Sequence[Label], seed: int = 0) -> dict[str, dict[str, Figure]]:
    """Agreement on all three things."""
    return {what: agreement(labels, what, seed) for what in WHATS}
