"""PPO's clip: what one token's objective and its gradient are at each ratio, and where a step no longer moves it.

The curves are those of `ppo.policy_loss` and of its autograd gradient with respect to the token's log-probability,
turned around: what is climbed, and the push on the token.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import torch

from llama2lab.lab.finished import Finished
from llama2lab.lab.picture import Picture
from llama2lab.lab.pictures import lines
from llama2lab.stages import ppo

STEP = 0.05  # what a step adds to the log-probability for a push of 1: large, so that a few steps reach the clip
RATIOS = [i / 50 for i in range(10, 91)]  # of the picture at rest
STAGE = "rlhf-v5"  # the finished run's PPO


def objective_and_push(ratios: Sequence[float], advantage: float, clip: float) -> tuple[list[float], list[float]]:
    """What PPO climbs for one token at each ratio, min(r A, clip(r) A), and the push on its log-probability: minus
    `ppo.policy_loss`, and minus its gradient."""
    old, on = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1).bool()
    worth, push = [], []
    for ratio in ratios:
        new = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
        loss, _ = ppo.policy_loss(new, old, torch.full_like(old, advantage), on, clip)
        (gradient,) = torch.autograd.grad(loss, new)
        worth.append(-loss.item())
        push.append(-gradient.item() or 0.0)  # no -0
    return worth, push


def clip_data(lab: Finished) -> dict[str, Any]:
    """The lab's own clip, and what share of the ratios lay beyond it in each iteration of the finished run's PPO in
    which the policy learnt; none where the run has no PPO."""
    settings = ppo.PPOSettings()
    log = lab.metrics(STAGE).get("log", [])[settings.critic_warmup or 0 :]
    return {"clip": settings.clip, "step": STEP, "clipfrac": [row["clipfrac"] for row in log if "clipfrac" in row]}


class ClipCurve(Picture):
    """`data`: what `clip_data` gives."""

    def __init__(self, data: dict[str, Any]):
        super().__init__(data=dict(data))

    def static(self) -> str:
        clip, pictures = self.data["clip"], []
        for what, part in (("objective", 0), ("push on the log-probability", 1)):
            series = [
                (name, list(zip(RATIOS, objective_and_push(RATIOS, sign, clip)[part], strict=True)))
                for name, sign in (("advantage +1", 1.0), ("advantage -1", -1.0))
            ]
            pictures.append(lines(series, f"The {what} of one token by its ratio", "ratio", what, height=200))
        return (
            "<p><strong>The clip: far enough is far enough</strong></p>"
            + "".join(pictures)
            + html.escape(
                f"A good token is pushed up only until its ratio is {1 + clip:g}, a bad one down only until it is "
                f"{1 - clip:g}. On the other side the push stays: a step in the wrong direction is always undone."
            )
        )
