"""What checks compare with: values read as tensors whatever a student returns, and named mistakes.

`judge` holds an answer against the right value and against values that the usual mistakes give; whoever made one of
them reads its name instead of "wrong".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama2lab.lab.as_json import array_of
from llama2lab.lab.checking import Mistake

Wrong = tuple[Any, str]  # what a mistake gives, and its name


def read(value: Any, shape: Sequence[int] | None = None, what: str = "the result") -> Tensor:
    """The answer as a detached tensor of that shape. Any dtype and layout, lists, numbers and numpy arrays will do.

    Raises Mistake for something else, for another shape, and for NaN.
    """
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise Mistake(f"{capital(what)} is {type(value).__name__}, where numbers are expected.") from None
    if tensor.is_complex():
        raise Mistake(f"{capital(what)} is complex; take the real numbers out of it at the end.")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise Mistake(f"{capital(what)} has shape {tuple(tensor.shape)}; {tuple(shape)} is expected.")
    if tensor.is_floating_point() and tensor.isnan().any():
        raise Mistake(
            f"{capital(what)} holds NaN (not a number). Look for 0/0, for the logarithm of a negative "
            "number, or for a softmax over a row in which everything is hidden."
        )
    return tensor


def close(got: Tensor, right: Any, tolerance: float = 1e-4) -> bool:
    """Equal up to rounding, of the coarser of the two types: within `tolerance` and that share of the right value."""
    right = torch.as_tensor(right)
    if got.dtype in (torch.float16, torch.bfloat16):
        tolerance = max(tolerance, 2e-2)
    # By the operators of numpy's own arrays, which nobody can replace.
    a, b = array_of(got), array_of(right)
    if a.shape != b.shape:
        return False
    with np.errstate(invalid="ignore"):  # inf - inf
        off = abs(a - b)
    return bool(((a == b) | ((off <= tolerance * (1 + abs(b))) & (off < np.inf))).all())


def judge(got: Tensor, right: Any, *wrongs: Wrong, what: str = "the result", tolerance: float = 1e-4) -> None:
    """Raise Mistake unless `got` is right; with the name of the mistake that gives the same, if there is one."""
    if close(got, right, tolerance):
        return
    for value, name in wrongs:
        if close(got, value, tolerance):
            raise Mistake(name)
    right = torch.as_tensor(right)
    if got.ndim == 0:
        raise Mistake(f"{capital(what)} is {got.item():.4g}; {right.item():.4g} is right.")
    off = (got.double() - right.double()).abs()
    off = torch.where(got.double() == right.double(), torch.zeros_like(off), off)  # inf - inf
    place = torch.unravel_index(off.argmax(), off.shape)
    at = ", ".join(str(int(i)) for i in place)
    raise Mistake(
        f"{capital(what)} differs from the right one most at [{at}]: {float(got[place]):.4g} instead of "
        f"{float(right[place]):.4g}."
    )


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of their own generator, the same in every check."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
