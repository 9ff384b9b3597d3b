"""Pictures of a student's own output in notebook 10: how often and by how much a version is better."""

from __future__ import annotations

from llama2lab.lab.compare import randn
from llama2lab.lab.own_output import Answer, numbers, own_curves, spaced


def draw_against(f: Answer) -> str:
    """Win rate by gain of a version whose every score lies higher by so much; two spreads over 60 prompts."""
    old, noise = (randn(60, seed=seed).double() for seed in (1, 2))
    series = []
    for spread in (0.2, 1.0):
        points = []
        for more in spaced(-1.5, 1.5, 25):
            rate, gain = numbers(f((old + spread * noise + more).tolist(), old.tolist()), 2)
            points.append((gain, rate))
        series.append((f"spread {spread:g}", points))
    return own_curves(
        "Your win rate by your gain",
        series,
        "gain, points of the score",
        "win rate",
        "The spread is how much the gain differs from prompt to prompt, a standard deviation.",
        y_range=(0.0, 1.0),
    )
