"""Gradients by hand: RMSNorm, SwiGLU and the loss, each as one step of autograd (attention.py has a fourth).

A small model's time on a CPU goes less into its matrix products than into all that is read and written around them.
Each function here computes what the plain form that its docstring names computes, keeps what its gradient needs and
writes that gradient once. The gradients' formulas are those of calculus; tests/test_fused.py holds them against finite
differences and the functions against their plain forms. `F.apply(...)` calls the function F.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

STRETCH = 256  # rows of logits at once: so many fit in a core's cache
LOGITS = 2**25  # numbers at once elsewhere


class RMSNormed(Function):
    """F.rms_norm(x, weight.shape, weight, eps), in the type of x. x (..., dim), weight (dim,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise).square_()  # (..., 1)
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        normal, gain = x * scale, weight.to(x.dtype)  # (..., dim), (dim,)
        ctx.save_for_backward(normal, scale, gain)
        ctx.weight_type = weight.dtype
        return normal * gain

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normal, scale, gain = ctx.saved_tensors
        product = (gradient * normal).view(-1, len(gain))  # (tokens, dim)
        of_gain = product.sum(0, dtype=ctx.weight_type) if ctx.needs_input_grad[1] else None
        # Along x itself there is no gradient: a longer x is no other direction.
        along = (product @ gain).view(scale.shape).div_(len(gain))  # (..., 1)
        return (gradient * gain).addcmul_(normal, along, value=-1).mul_(scale), of_gain, None


class SwiGLU(Function):
    """F.silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        opened = F.silu(gate)
        ctx.save_for_backward(gate, up, opened)
        return opened * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up, opened = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), opened * gradient


def token_nll(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """-log p of each target, in nats: F.cross_entropy(hidden @ weight.T / temperature, targets, reduction="none").

    hidden (n, dim), weight (vocab, dim), targets (n,) -> (n,) of float32 or what is more precise.
    """
    return TokenNLL.apply(hidden, weight, targets, temperature, torch.is_grad_enabled())


class TokenNLL(Function):
    """`token_nll`; `kept` says whether a gradient will be asked for."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, kept: bool) -> Tensor:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        low, n = weight.to(hidden.dtype), len(hidden)
        nll = hidden.new_empty(n, dtype=precise)
        error = hidden.new_empty(n if kept else 0, len(weight))  # of the gradient: probabilities less 1 at the targets
        rows = STRETCH if hidden.device.type == "cpu" else max(1, LOGITS // len(weight))
        for start in range(0, n, rows):
            here = slice(start, start + rows)
            target = targets[here, None]
            logprobs = ((hidden[here] @ low.T).to(precise) / temperature).log_softmax(-1)  # (rows, vocab)
            nll[here] = -logprobs.gather(1, target)[:, 0]
            if kept:
                error[here] = logprobs.exp_().scatter_add_(1, target, -torch.ones_like(target, dtype=precise))
        ctx.save_for_backward(hidden, low, error)
        ctx.temperature, ctx.weight_type = temperature, weight.dtype
        return nll

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, error = ctx.saved_tensors
        share = (gradient / ctx.temperature)[:, None]  # (n, 1)
        of_hidden = (error @ weight) * share
        of_weight = error.T @ (hidden * share).to(error.dtype)
        return of_hidden.to(hidden.dtype), of_weight.to(ctx.weight_type), None, None, None
