"""Pictures of a student's own output in notebook 08: PPO's parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llama2lab.lab.compare import read
from llama2lab.lab.own_output import Answer, numbers, own_curves, spaced
from llama2lab.lab.pictures import Points
from llama2lab.lessons.n08_ppo.three_tokens import WORTH, play

ONE = torch.ones(1, 1, dtype=torch.bool)  # the mask of a single token


def one(value: float) -> Tensor:
    """A single number as (batch, steps)."""
    return torch.tensor([[value]])


def draw_kl(f: Answer) -> str:
    """The three estimates of one token by its log ratio."""
    ratios = spaced(-2.0, 2.0, 41)
    got = f(torch.tensor([ratios]) - 3, torch.full((1, len(ratios)), -3.0))
    got = got if isinstance(got, Mapping) else dict(zip(("k1", "k2", "k3"), got, strict=True))
    series = [
        (name, list(zip(ratios, numbers(got[name], 1, len(ratios))[0], strict=True))) for name in ("k1", "k2", "k3")
    ]
    return own_curves("Your estimates of the KL, of one token", series, "log pi - log pi_0, nats", "estimate, nats")


def draw_gae(f: Answer) -> str:
    """Advantages of eight tokens by lambda: a critic that expects .5 throughout, and a reward of 1 at the end."""
    tokens = 8
    rewards, values = torch.zeros(1, tokens), torch.full((1, tokens), 0.5)
    rewards[0, -1] = 1.0
    mask = torch.ones(1, tokens, dtype=torch.bool)
    series: list[tuple[str, Points]] = []
    for lam in (1.0, 0.9, 0.5, 0.0):
        advantages, _ = f(rewards, values, mask, 1.0, lam)
        series.append((f"lambda {lam:g}", list(enumerate(numbers(advantages, 1, tokens)[0], 1))))
    return own_curves(
        f"Your advantages of {tokens} tokens",
        series,
        "token",
        "advantage, points of the reward",
        "The reward is 1 on the last token, and the critic expected 0.5 everywhere.",
        dots=True,
    )


def draw_clip(f: Answer) -> str:
    """The objective, minus the loss, of one token by its ratio, for a clip of .2."""
    ratios = spaced(0.4, 1.6, 25)

    def objective(ratio: float, advantage: float) -> float:
        return -numbers(f(one(ratio).log() - 2, one(-2.0), one(advantage), ONE, 0.2))

    series = [(f"advantage {sign:+g}", [(ratio, objective(ratio, sign)) for ratio in ratios]) for sign in (1.0, -1.0)]
    return own_curves("Your objective of one token, clip 0.2", series, "ratio of new to old", "objective")


def draw_value_loss(f: Answer) -> str:
    """The critic's loss of one token by what it says now: it said 0, and the return is 1."""
    values = spaced(-1.0, 3.0, 41)

    def loss(value: float, clip: float) -> float:
        return numbers(f(one(value), one(0.0), one(1.0), ONE, clip))

    series = [(f"clip {clip:g}", [(value, loss(value, clip)) for value in values]) for clip in (0.2, 0.6, 100.0)]
    title = "Your critic's loss of one token; it said 0, the return is 1"
    return own_curves(title, series, "value now", "loss", "A clip of 100 clips nothing.")


def draw_policy(f: Answer) -> str:
    """The policy over four batches of eight of the student's steps."""

    def step(*args: Any) -> tuple[Tensor, float]:
        return read(f(*args), (3,)).float(), 0.0

    rows = play(0.2, step=step)
    series = [
        (f"worth {worth:g}", [(float(row["step"]), numbers(row["probabilities"], 3)[i]) for row in rows])
        for i, worth in enumerate(WORTH)
    ]
    title = "Your steps: the probability of each token"
    return own_curves(title, series, "step", "probability", y_range=(0.0, 1.0))
