"""Measured figures with their interval: {mean, low, high, n}, 95 %."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Figure = dict[str, float]


def rate(outcomes: Sequence[float], groups: Sequence[Hashable] = ()) -> Figure:
    """A share of yes among n yes-or-no outcomes (a tie of two counts as .5), with Wilson's interval (sensible near 0
    and 1; over halves it is a little too wide).

    Outcomes of one group (say, wordings of one question) are alike, so many of them say less than as many single
    ones: with `groups`, one name an outcome, the interval is that of `n_effective` outcomes (see `effective_n`).
    """
    n = len(outcomes)
    if n == 0:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    share = sum(map(float, outcomes)) / n
    effective = effective_n([float(x) for x in outcomes], groups)
    low, high = wilson(share, effective)
    return {"mean": share, "low": low, "high": high, "n": n} | ({"n_effective": effective} if groups else {})


def wilson(share: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share among n outcomes; n need not be whole."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def effective_n(values: Sequence[float], groups: Sequence[Hashable] = ()) -> float:
    """How many independent values would leave the mean as uncertain as these: n / design effect, where the design
    effect is the variance of the mean over whole groups against that over single values (Kish 1965). Never more than n
    and, where all values are equal and so nothing shows how alike groups are, the number of groups."""
    x = np.asarray(values, dtype=float)
    if not groups or len(x) < 2:
        return float(len(x))
    sums: dict[Hashable, float] = {}
    for value, group in zip(x - x.mean(), groups, strict=True):
        sums[group] = sums.get(group, 0.0) + float(value)
    if x.var() == 0 or len(sums) < 2:
        return float(len(sums))
    of_groups = sum(s * s for s in sums.values()) * len(sums) / (len(sums) - 1)
    return float(len(x) / max(1.0, of_groups / (len(x) * x.var(ddof=1))))


def mean(values: Sequence[float], groups: Sequence[Hashable] = ()) -> Figure:
    """A mean of n values, with Student's interval and the standard deviation `std`; `groups` as in `rate`."""
    x = np.asarray(values, dtype=float)
    n = len(x)
    if n < 2:
        m = float(x.mean()) if n else float("nan")
        return {"mean": m, "low": m, "high": m, "n": n, "std": 0.0}
    std = float(x.std(ddof=1))
    effective = effective_n(values, groups)
    m, half = float(x.mean()), float(stats.t.ppf(0.975, max(effective - 1, 1))) * std / effective**0.5
    figure = {"mean": m, "low": m - half, "high": m + half, "n": n, "std": std}
    return figure | ({"n_effective": effective} if groups else {})


def paired_bootstrap(a: ArrayLike, b: ArrayLike, resamples: int = 2000, seed: int = 0) -> Figure:
    """The mean of a less b, of figures on the same items in the same order, with the percentile interval of a bootstrap
    over items (Efron 1979): what makes an item easy for both is no doubt about their difference."""
    apart = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    n = len(apart)
    if n == 0:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    low, high = np.percentile(apart[drawn].mean(1), (2.5, 97.5))
    return {"mean": float(apart.mean()), "low": float(low), "high": float(high), "n": n}


def pool(figures: Sequence[Figure]) -> Figure:
    """Several runs' figures of one kind as one.

    The mean is that of all their items. The interval is the wider of two: over the pooled items, and over the
    runs' own means (Student's, when there are two or more), because runs differ by more than their items.
    """
    figures = [f for f in figures if f["n"] > 0]
    if not figures:
        return rate([])
    n = int(sum(f["n"] for f in figures))
    m = sum(f["mean"] * f["n"] for f in figures) / n
    effective = sum(f.get("n_effective", f["n"]) for f in figures)
    if all("std" in f for f in figures):
        var = sum(f["n"] * (f["std"] ** 2 + (f["mean"] - m) ** 2) for f in figures) / n
        half = 1.96 * (var / effective) ** 0.5
        low, high = m - half, m + half
    else:
        low, high = wilson(m, effective)
    if len(figures) > 1:
        over_runs = mean([f["mean"] for f in figures])
        bounded = "std" not in figures[0]
        low = min(low, max(over_runs["low"], 0.0) if bounded else over_runs["low"])
        high = max(high, min(over_runs["high"], 1.0) if bounded else over_runs["high"])
    return {"mean": m, "low": low, "high": high, "n": n, "runs": len(figures)}
