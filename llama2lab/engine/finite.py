"""Numbers that are none: a training that has come to NaN or infinity stops before anything of it is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from llama2lab.engine.errors import LabError


def check_numbers(row: Mapping[str, float], where: str, cure: str = "lower the learning rate") -> None:
    """LabError for the first value of `row` that is not finite: `where`, its name, and `cure`."""
    for name, value in row.items():
        if not math.isfinite(value):
            raise LabError(f"{where}: {'the loss' if name == 'loss' else name} is {value}; {cure}")


def check_tensors(tensors: Mapping[str, Tensor], where: str, cure: str = "lower the learning rate") -> None:
    """LabError for the first tensor with a number that is not finite: `where`, the tensor's name, and `cure`."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = tensor[~torch.isfinite(tensor)]
            many = f"{len(bad)} of {tensor.numel()} values are not finite ({bad[0].item()})"
            raise LabError(f"{where}: {name}: {many}; {cure}")
