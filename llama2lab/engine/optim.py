"""The optimiser and the schedule of every training stage, the report's (section 2.2): AdamW with beta 0.9 and 0.95,
cosine decay to 10 % of the peak, weight decay 0.1, gradient clipping at 1.0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from llama2lab.engine.settings import Limit, Rate, Share, ShareBelowOne, Weight, checked

SCALAR_LR = 50.0
# That training takes for a parameter: itself, its gradient and Adam's two moments, in float32.
TRAINED_BYTES = 16


@checked
@dataclass(frozen=True)
class Optim:
    """The optimiser's settings; the defaults are the report's, apart from the learning rate (a small model
    trained for minutes wants a larger one)."""

    lr: Rate
    warmup: Share = 0.02  # share of the steps
    final: Share = 0.1  # the last learning rate as a share of the peak
    weight_decay: Weight = 0.1
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    eps: Annotated[float, Field(ge=1e-20, le=1)] = 1e-5  # 0 would divide by 0 where a gradient is 0
    clip: Limit = 1.0
    gain_lr: Weight = 1.0  # learning rate of the last norm's gain, in units of `lr`


def cosine_lr(step: int, steps: int, optim: Optim) -> float:
    """Learning rate at `step` of `steps`: linear warmup, then a cosine down to `final` of the peak."""
    warmup = max(1, round(optim.warmup * steps))
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return optim.lr * (optim.final + (1 - optim.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: norms' gains and single scalars are not decayed.

    Adam's steps are as long as the learning rate, so what is large and has some hundred steps to change needs one of
    its own: a single scalar (the likelihood head's `a`), `SCALAR_LR` times the others'; the gain of the norm before the
    output, `optim.gain_lr` times: all logits are as large as it is, so it says how sure a model is, of everything. A
    group's `lr_scale` says so to schedules."""
    matrices: list[nn.Parameter] = []
    gains: list[nn.Parameter] = []
    last: list[nn.Parameter] = []
    scalars: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            is_last = f".{name}".endswith(".norm.weight")
            (scalars if p.dim() == 0 else matrices if p.dim() > 1 else last if is_last else gains).append(p)
    groups = [
        {"params": params, "lr": optim.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for params, scale, decay in (
            (matrices, 1.0, optim.weight_decay),
            (gains, 1.0, 0.0),
            (last, optim.gain_lr, 0.0),
            (scalars, SCALAR_LR, 0.0),
        )
    ]
    kinds = {type(p) for p in model.parameters() if p.requires_grad}  # of a divided model's heads are whole
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=len(kinds) < 2)
