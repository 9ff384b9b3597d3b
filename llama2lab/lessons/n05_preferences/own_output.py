"""Pictures of a student's own output in notebook 05: agreement, and the interval of a difference."""

from __future__ import annotations

import numpy as np

from llama2lab.lab.own_output import WIDTH, Answer, numbers, own, own_curves
from llama2lab.lab.pictures import bars


def draw_percent(f: Answer) -> str:
    """The agreement of six people by how they part."""
    people = 6
    shares = [(f"{people - n} to {n}", numbers(f(np.array([[people - n, n]])))) for n in range(people // 2 + 1)]
    title = f"Your agreement of {people} people on one pair, by how they part"
    return own(title, bars(shares, title, 1.0, width=WIDTH), note="Share of pairs of people who agree, 0 to 1.")


def draw_ac1(f: Answer) -> str:
    """AC1 of 100 pairs where two people agree on 80, by how often they choose the first answer."""
    pairs, agreed = 100, 80
    points = []
    for first in range(0, agreed + 1, 5):
        table = np.array([[2, 0]] * first + [[0, 2]] * (agreed - first) + [[1, 1]] * (pairs - agreed))
        points.append((float(table[:, 0].mean()) / 2, numbers(f(table))))
    return own_curves(
        f"Your AC1 where two people agree on {agreed} of {pairs} pairs",
        [("AC1", points), ("agreement", [(x, agreed / pairs) for x, _ in points])],
        "share of judgements for the first answer",
        "AC1, and plain agreement",
        y_range=(0.0, 1.0),
        dots=True,
    )


def draw_interval(f: Answer) -> str:
    """The interval of the same difference, on more and more prompts."""
    rng = np.random.default_rng(2)
    worth = rng.normal(0.5, 1.2, 80)
    a, b = (worth + rng.normal(better, 0.6, 80) for better in (0.3, 0.0))
    ends = {n: numbers(f(a[:n], b[:n]), 2) for n in (10, 20, 40, 80)}
    series = [(name, [(float(n), both[i]) for n, both in ends.items()]) for i, name in ((1, "97.5 %"), (0, "2.5 %"))]
    series.append(("no difference", [(float(n), 0.0) for n in ends]))
    title = "Your interval of a difference, on more and more prompts"
    return own_curves(title, series, "prompts", "a less b, points of the score", dots=True)
