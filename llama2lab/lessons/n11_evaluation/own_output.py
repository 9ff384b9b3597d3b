"""Pictures of a student's own output in notebook 11: what a number of prompts can tell."""

from __future__ import annotations

from llama2lab.lab.compare import randn
from llama2lab.lab.own_output import Answer, numbers, own_curves, spaced


def draw_win_rate(f: Answer) -> str:
    """The interval of a rate of .6 by the number of prompts."""
    points = []
    for n in (5, 10, 20, 40, 60, 80, 100, 150, 200):
        wins = round(0.6 * n)
        points.append((float(n), numbers(f(["win"] * wins + ["loss"] * (n - wins)), 3)))
    series = [
        (name, [(n, p[i]) for n, p in points]) for name, i in (("upper end", 2), ("win rate", 0), ("lower end", 1))
    ]
    series.append(("one half", [(n, 0.5) for n, _ in points]))
    title = "Your interval of a win rate of 0.6"
    return own_curves(title, series, "prompts", "win rate, 95 % interval", y_range=(0.0, 1.0), dots=True)


def draw_effective(f: Answer) -> str:
    """The effective number of 300 values in 60 groups by how alike a group's values are."""
    groups, each = 60, 5
    names = [f"g{g}" for g in range(groups) for _ in range(each)]
    shared, alone = randn(groups, seed=1).repeat_interleave(each).double(), randn(groups * each, seed=2).double()
    points = []
    for alike in spaced(0.0, 1.0, 11):
        values = alike**0.5 * shared + (1 - alike) ** 0.5 * alone
        points.append((alike, numbers(f(values.tolist(), names))))
    x, y = "share of the variance that a group has in common", "effective number"
    title = f"Your effective number of {groups * each} values in {groups} groups of {each}"
    return own_curves(title, [("yours", points)], x, y, y_range=(0.0, float(groups * each)), dots=True)
