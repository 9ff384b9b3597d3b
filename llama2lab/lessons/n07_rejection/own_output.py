"""Pictures of a student's own output in notebook 07: what K buys."""

from __future__ import annotations

from llama2lab.lab.compare import randn
from llama2lab.lab.own_output import Answer, numbers, own_curves


def draw_best_curve(f: Answer) -> str:
    """Max and median of 40 prompts' scores, normal numbers, by K."""
    most = 16
    scores = randn(40, most).double().tolist()
    points = [numbers(f(scores, k), 2) for k in range(1, most + 1)]
    series = [(name, [(float(k), p[i]) for k, p in enumerate(points, 1)]) for i, name in enumerate(("max", "median"))]
    title = "Your curves for scores with mean 0 and deviation 1"
    return own_curves(title, series, "K answers a prompt", "score, standard deviations", dots=True)


def draw_expected(f: Answer) -> str:
    """The expected best of one prompt's 12 scores by K, beside the best of the first K."""
    scores = randn(12, seed=5).double().tolist()
    ks = range(1, len(scores) + 1)
    series = [
        ("yours", [(float(k), numbers(f(scores, k))) for k in ks]),
        ("the first K alone", [(float(k), max(scores[:k])) for k in ks]),
    ]
    title = f"Your expected best of K, from {len(scores)} scores of one prompt"
    return own_curves(title, series, "K answers", "best score, standard deviations", dots=True)
