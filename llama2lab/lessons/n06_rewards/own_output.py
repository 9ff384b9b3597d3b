"""Pictures of a student's own output in notebook 06: the place that is read, the loss, the gate."""

from __future__ import annotations

import torch

from llama2lab.lab.chips import token_picture
from llama2lab.lab.own_output import Answer, numbers, own, own_curves, spaced


def draw_places(f: Answer) -> str:
    """The places that the head reads: each hidden state is the number of its place, so the score names it."""
    lengths, seq = [8, 5, 2, 7], 8
    hidden = torch.arange(1.0, seq + 1).repeat(len(lengths), 1)[..., None]
    read = numbers(f(hidden, torch.tensor(lengths), torch.ones(1)), len(lengths))
    rows = [
        token_picture([(str(i) if i <= n else "pad", i == round(place)) for i in range(1, seq + 1)])
        for n, place in zip(lengths, read, strict=True)
    ]
    return own(
        "The place that your head reads in each row", *rows, note="Filled: the token whose state gave the score."
    )


def draw_ranking(f: Answer) -> str:
    """The loss of one pair by the difference of its scores, for three margins."""
    gaps = spaced(-4.0, 6.0, 31)

    def loss(gap: float, margin: float) -> float:
        return numbers(f(torch.tensor([[gap]]), torch.zeros(1, 1), torch.tensor([margin])))

    series = [(f"margin {margin:g}", [(gap, loss(gap, margin)) for gap in gaps]) for margin in (0.0, 1.0, 3.0)]
    return own_curves("Your loss of one pair", series, "score of the chosen less that of the rejected", "loss, nats")


def draw_gate(f: Answer) -> str:
    """The reward by the safety model's probability, where the helpfulness model gives .8."""
    places = spaced(0.01, 0.99, 99)
    safety, helpful = torch.tensor(places).logit(), torch.full((len(places),), 0.8).logit()
    series = []
    for name, tagged in (("any prompt", False), ("safety prompt", True)):
        reward = numbers(f(helpful, safety, torch.full((len(places),), tagged), 0.15), len(places))
        series.append((name, list(zip(places, reward, strict=True))))
    x, y = "probability of the safety model", "reward, as a probability"
    title = "Your gate, where the helpfulness model says 0.8"
    return own_curves(title, series, x, y, "The threshold is 0.15.", y_range=(0.0, 1.0))
