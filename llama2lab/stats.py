"""Measured figures with their interval: {mean, low, high, n}, 95 %."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

Figure = dict[str, float]


def rate(outcomes: Sequence[bool | int]) -> Figure:
    """A share of yes among n yes-or-no outcomes, with Wilson's interval (sensible near 0 and 1)."""
    n = len(outcomes)
    if n == 0:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    yes = int(sum(bool(x) for x in outcomes))
    interval = stats.binomtest(yes, n).proportion_ci(0.95, method="wilson")
    return {"mean": yes / n, "low": float(interval.low), "high": float(interval.high), "n": n}


def mean(values: Sequence[float]) -> Figure:
    """A mean of n values, with Student's interval and the standard deviation `std`."""
    x = np.asarray(values, dtype=float)
    n = len(x)
    if n < 2:
        m = float(x.mean()) if n else float("nan")
        return {"mean": m, "low": m, "high": m, "n": n, "std": 0.0}
    std = float(x.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * std / n**0.5
    return {"mean": float(x.mean()), "low": float(x.mean()) - half, "high": float(x.mean()) + half, "n": n,
            "std": std}


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
    if all("std" in f for f in figures):
        var = sum(f["n"] * (f["std"] ** 2 + (f["mean"] - m) ** 2) for f in figures) / n
        half = 1.96 * (var / n) ** 0.5
        low, high = m - half, m + half
    else:
        interval = stats.binomtest(round(m * n), n).proportion_ci(0.95, method="wilson")
        low, high = float(interval.low), float(interval.high)
    if len(figures) > 1:
        over_runs = mean([f["mean"] for f in figures])
        bounded = "std" not in figures[0]
        low = min(low, max(over_runs["low"], 0.0) if bounded else over_runs["low"])
        high = max(high, min(over_runs["high"], 1.0) if bounded else over_runs["high"])
    return {"mean": m, "low": low, "high": high, "n": n, "runs": len(figures)}
