"""Numbers that are none: a training that has come to NaN or infinity stops before anything of it is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

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
    if all_finite(tensors.values()):
        return
    for name, tensor in tensors.items():
        if not all_finite([tensor]):
            bad = tensor[~torch.isfinite(tensor)]
            many = f"{len(bad)} of {tensor.numel()} values are not finite ({bad[0].item()})"
            raise LabError(f"{where}: {name}: {many}; {cure}")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number of them is NaN or infinite. A GPU is asked once for all of its tensors."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            by_device.setdefault(tensor.device, []).append(torch.isfinite(tensor).all())
    return all(bool(torch.stack(good).all()) for good in by_device.values())
