"""PPO's policy step where all of it can be seen (Llama 2, section 3.2.3): the policy is one softmax over three tokens.

figures.three_tokens_figure({"clip 0.2": play(0.2), "no clip": play(math.inf)})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llama2lab.stages import ppo
from llama2lab.stages.gate import mean_and_std, whiten

WORTH = (1.0, 0.5, 0.0)  # what each of the three tokens is rewarded with


def step(
    logits: Tensor, tokens: Tensor, old: Tensor, advantages: Tensor, clip: float, lr: float
) -> tuple[Tensor, float]:
    """The logits (3,) after one step of gradient descent on `ppo.policy_loss`, and the share of tokens whose ratio lay
    outside of the clip before it.

    Args:
        tokens, old, advantages: (n,), the tokens drawn, their log-probabilities at that time, and what they brought.
    """
    free = logits.clone().requires_grad_()
    new, mask = free.log_softmax(-1)[tokens], torch.ones(1, len(tokens), dtype=torch.bool)
    loss, seen = ppo.policy_loss(new[None], old[None], advantages[None], mask, clip)
    (gradient,) = torch.autograd.grad(loss, free)
    return logits - lr * gradient, float(seen["clipfrac"])


def play(
    clip: float,
    worth: Sequence[float] = WORTH,
    batches: int = 4,
    steps: int = 8,
    n: int = 32,
    lr: float = 0.3,
    seed: int = 0,
    step: Callable[..., tuple[Tensor, float]] = step,
) -> list[dict[str, Any]]:
    """From three equal tokens: `batches` times draw n tokens from the policy and take `steps` steps on them. A row for
    the start and after each step: `step`, `batch`, `probabilities` (3) and `clipped`, the share of the batch's tokens
    outside of the clip."""
    generator, logits, worths = torch.Generator().manual_seed(seed), torch.zeros(3), torch.tensor(worth)
    rows: list[dict[str, Any]] = [{"step": 0, "batch": 0, "probabilities": logits.softmax(-1).tolist(), "clipped": 0.0}]
    for batch in range(1, batches + 1):
        tokens = torch.multinomial(logits.softmax(-1), n, replacement=True, generator=generator)
        old, rewards = logits.log_softmax(-1)[tokens], worths[tokens]
        advantages = whiten(rewards, *mean_and_std(rewards))
        for _ in range(steps):
            logits, clipped = step(logits, tokens, old, advantages, clip, lr)
            probabilities = logits.softmax(-1).tolist()
            rows.append({"step": len(rows), "batch": batch, "probabilities": probabilities, "clipped": clipped})
    return rows
