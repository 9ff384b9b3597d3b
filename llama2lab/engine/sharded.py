"""A training whose model is divided over the ranks, by PyTorch's FSDP2 (torch.distributed.fsdp.fully_shard).

Of each layer, of its gradient and of Adam's two moments a rank keeps its share; the weights come together layer by
layer while they are used. That is wanted where a training would not fit in a device: with 16 bytes a parameter a 7B
model takes 112 GB, of which eight ranks hold 14 each. Between trainings every rank holds the whole weights (4 bytes a
parameter), to sample and to score with them; a model whose weights alone do not fit in a device is beyond this.

What is kept of it meanwhile goes through torch.distributed.checkpoint, each rank its share as a safetensors file, and
is read by any number of ranks; nothing is unpickled. Each function is the identity where nothing is divided.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llama2lab.engine import distributed, folders
from llama2lab.engine.device import Machine, memory_bytes
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.optim import TRAINED_BYTES
from llama2lab.engine.parallel import Figure, figure, numbers

T = TypeVar("T")
SHARE = 0.5  # of a device's memory: more than that, and activations may not fit beside


# ---- the model ---------------------------------------------------------------------------------------------


def is_divided(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor, without importing what is seldom needed


def is_wanted(model: nn.Module, machine: Machine) -> bool:
    """Whether the model is to be divided: `machine.shard` asks for it, or a device should not hold it in training."""
    if distributed.world_size() == 1 or machine.shard == "never":
        return False
    needed = TRAINED_BYTES * sum(p.numel() for p in model.parameters() if p.requires_grad)
    return machine.shard == "always" or needed > SHARE * device_bytes(machine.device)


def device_bytes(device: torch.device) -> float:
    """The memory of a rank's device; of a CPU's each of this machine's ranks has its part. Infinite if unknown."""
    ranks = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return memory_bytes(device) / ranks or math.inf


@contextlib.contextmanager
def divided(model: nn.Module, machine: Machine) -> Iterator[None]:
    """Within, the decoders in `model` (network.Llama) of which layers learn are divided, where that `is_wanted`; then
    they are whole again. An optimiser is made within, for the parameters are others there."""
    decoders = _decoders(model) if is_wanted(model, machine) else []
    before = [_divide(decoder, machine.device) for decoder in decoders]
    yield
    # Not after an error: other ranks may be gone, without whom nothing can be put together.
    for decoder, inside in zip(decoders, before, strict=True):
        _put_together(decoder, inside)


def _decoders(model: nn.Module) -> list[Any]:
    return [
        m
        for m in model.modules()
        if isinstance(layers := getattr(m, "layers", None), nn.ModuleList)
        and any(p.requires_grad for p in layers.parameters())
    ]


def _divide(decoder: Any, device: torch.device) -> dict[str, Any]:
    """Let `decoder` be divided in place; gives what it consisted of before, without its weights.

    fully_shard changes a module for good. So a copy of the modules is divided, and lends the decoder its inside:
    whoever holds the decoder goes on with the same object, before and after."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for p in decoder.parameters():
        p.grad = None
    inside = copy.deepcopy(decoder, {id(p): p for p in decoder.parameters()})
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    with distributed.together():
        for layer in inside.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(inside, mesh=mesh, reshard_after_forward=False)  # the head is used after it
    register_fsdp_forward_method(inside, "hidden")
    before = decoder.__dict__
    for p in decoder.parameters():
        p.data = p.data.new_empty(0)
    decoder.__dict__ = inside.__dict__
    return before


def _put_together(decoder: Any, before: dict[str, Any]) -> None:
    shares = list(decoder.parameters())
    training, decoder.__dict__ = decoder.training, before
    for p, share in zip(decoder.parameters(), shares, strict=True):
        p.data, p.grad = whole(share.detach()), None
    decoder.train(training)


def whole(tensor: Any) -> Tensor:
    """A tensor with all of its shares, on every rank: all come here together."""
    if not is_divided(tensor):
        return tensor
    with distributed.together():
        return tensor.full_tensor()


def local(tensor: Any) -> Tensor:
    """This rank's share."""
    return tensor.to_local() if is_divided(tensor) else tensor


def divided_like(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, the same on all ranks, divided as `like` is."""
    if is_divided(tensor) or not is_divided(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


# ---- a step ------------------------------------------------------------------------------------------------


def backward(
    loss_of: Callable[[T], tuple[Tensor, Figure, Mapping[str, Figure]]],
    parts: Sequence[T],
    parameters: Sequence[Tensor],
    device: torch.device,
    add: bool = False,
) -> tuple[Figure, dict[str, Figure]]:
    """`distributed.backward`, also of a divided model: there every rank computes as many parts as the others, one after
    the other, since all bring the weights together for each; what is too little is made up with parts of no weight."""
    if not any(map(is_divided, parameters)):
        return distributed.backward(loss_of, parts, parameters, device, add)
    counts = distributed.gathered(len(parts))
    spare = parts[0] if parts else None
    if not all(counts):  # a smaller batch than there are ranks
        some = distributed.gathered(_moved(spare, torch.device("cpu")))
        spare = _moved(next(part for part in some if part is not None), device)
    before = [p.grad if add else None for p in parameters]
    for p in parameters:
        p.grad = None
    size, sums = distributed.world_size(), dict[str, Figure]()
    total: Figure = 0.0
    loss: Figure = 0.0
    for i in range(max(counts)):
        with distributed.together():
            mean, weight, metrics = loss_of(parts[i] if i < len(parts) else cast(T, spare))
            weight *= i < len(parts)
            (mean * (weight * size)).backward()  # gradients of shares are means over ranks
        total, loss = total + weight, loss + weight * figure(mean)
        sums = {key: sums.get(key, 0.0) + weight * value for key, value in metrics.items()}
    told = distributed.gathered((float(total), float(loss), numbers(sums)))
    weights = sum(weight for weight, _, _ in told) or 1.0
    for p, gradient in zip(parameters, before, strict=True):
        if p.grad is not None:
            if not is_divided(p):
                with distributed.together():
                    dist.all_reduce(p.grad)
                p.grad.div_(size)
            p.grad.div_(weights)
        if gradient is not None:
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)
    return sum(x for _, x, _ in told) / weights, {k: sum(m[k] for _, _, m in told) / weights for k in sums}


def _moved(part: Any, device: torch.device) -> Any:
    """A part of a batch, which is a list of rows or a named tuple of tensors, on another device."""
    return type(part)(*(x.to(device) for x in part)) if hasattr(part, "_fields") else part


def clip_gradients(parameters: Iterable[Tensor], most: float) -> Tensor:
    """`nn.utils.clip_grad_norm_`, also of a divided model; the norm before."""
    parameters = [p for p in parameters if p.grad is not None]
    if not any(map(is_divided, parameters)):
        return nn.utils.clip_grad_norm_(parameters, most)
    squares = [0.0, 0.0]  # of shares, and of what every rank has
    for p in parameters:
        assert p.grad is not None
        squares[not is_divided(p)] += local(p.grad).double().square().sum().item()
    norm = math.sqrt(squares[1] + sum(distributed.gathered(squares[0])))
    for p in parameters:
        assert p.grad is not None
        p.grad.mul_(min(1.0, most / (norm + 1e-6)))
    return torch.tensor(norm)


# ---- what is kept ------------------------------------------------------------------------------------------


def save_shares(folder: Path | None, name: str, state: dict[str, Tensor]) -> dict[str, str]:
    """Keep the divided tensors of `state` in `folder`/NAME, each rank its shares; `folder` is the first rank's, and
    lies on a disk that all share. The sums of the files, where this rank is the first; {} where nothing is divided."""
    shares = {key: tensor for key, tensor in state.items() if is_divided(tensor)}
    if not shares:
        return {}
    import torch.distributed.checkpoint as dcp

    place = distributed.from_first(folder and folder / name)
    assert place is not None
    if folder:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    distributed.barrier()
    try:
        with distributed.together():
            dcp.save(shares, storage_writer=dcp.HuggingFaceStorageWriter(str(place), save_distributed=True))
    except dcp.CheckpointException as e:
        raise LabError(f"cannot write {place} ({first_line(e)}); free some space on the disk that all share") from e
    distributed.barrier()
    return {path.name: folders.sum_of(path) for path in sorted(place.iterdir())} if folder else {}


def load_shares(place: Path, live: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `save_shares` kept, divided as the `live` tensors of a training are, or whole where they are; Adam's moments
    as the parameters that they belong to."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(place))
    names = reader.read_metadata().state_dict_metadata
    found = {name: torch.empty_like(live[re.sub(r"\.adam\.\w+?\.", ".", name, count=1)]) for name in names}
    try:
        with distributed.together(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process: as is meant
            dcp.load(found, storage_reader=reader, no_dist=distributed.world_size() == 1)
    except dcp.CheckpointException as e:
        raise ValueError(first_line(e)) from e
    return found
