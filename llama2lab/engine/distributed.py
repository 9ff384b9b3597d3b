"""Several processes, as torchrun starts them: on one machine, or on several.

    torchrun --nproc-per-node 2 -m llama2lab run

Every process (a rank) runs the same recipe in step with the others and holds the whole model; of a batch, of the
prompts to answer and of the answers to score each takes its share, and what it found goes to all. A batch is a function
of (seed, step), a row's random numbers are one of (seed, row), and no gradient is drawn by chance, so more processes
change nothing but the rounding of sums. The first rank alone writes the run's folder and speaks.

Each function here is the identity where there is one process. What is sent between ranks is sent within one run, by
torch.distributed; files are never unpickled.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from llama2lab.engine import parallel
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.parallel import Figure

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)  # a rank that is silent for so long is gone
BUCKET = 2**24  # numbers that are sent together
LOST = (
    "another process of this run ended or does not answer{}, so this one stops too; give the same command again: "
    "finished stages are kept, the one under way goes on from its last saved step"
)

_store: Any = None  # what all ranks read and write, kept by torchrun


# ---- who is there ------------------------------------------------------------------------------------------


def launched() -> bool:
    """Whether torchrun (or what sets the same variables) started this process beside others."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in names) and int(os.environ["WORLD_SIZE"]) > 1


def local_rank() -> int:
    """The rank among those of this machine, which is also the GPU that it computes on."""
    return int(os.environ["LOCAL_RANK"]) if launched() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this is the rank that writes and speaks."""
    return rank() == 0


def start(device: str = "auto") -> None:
    """Join the other processes, where torchrun started some: by gloo on a CPU, by NCCL on GPUs, of which each rank
    takes one. Nothing where there are none, or they have met already.

    Raises:
        LabError: they cannot meet, or there are fewer GPUs than ranks on this machine, or the device is of no kind that
            several processes can share work on.
    """
    global _store
    if not launched() or world_size() > 1:
        return
    if device not in ("auto", "cpu", "cuda"):
        raise LabError(f"several processes compute on cpu or cuda, not on {device}; give --device cpu")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    try:
        # By a store that we know, for the last words of a rank: see `first_to_speak`.
        _store, number, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=_store, rank=number, world_size=count, timeout=TIMEOUT)
    except (RuntimeError, ValueError, OSError) as e:
        raise LabError(f"the processes of this run did not meet ({first_line(e)}); see torchrun's options") from e
    if on_gpu:
        if local_rank() >= torch.cuda.device_count():
            has = f"this machine has {torch.cuda.device_count()} GPUs, and {local_rank() + 1} processes or more"
            raise LabError(f"{has}; give torchrun --nproc-per-node {torch.cuda.device_count()}, or --device cpu")
        torch.cuda.set_device(local_rank())
    signal.signal(signal.SIGTERM, _told_to_stop)


def _told_to_stop(number: int, frame: Any) -> None:
    """torchrun tells the others when one has ended."""
    raise LabError(LOST.format(""))


def leave() -> None:
    """The end of a run: no rank goes before all are done."""
    if world_size() > 1:
        barrier()
        dist.destroy_process_group()


def first_to_speak() -> bool:
    """Whether this process may say what went wrong: the first one with an error, since those of the others are the same
    or follow from it. Before they met, the first rank."""
    if _store is None:
        return not launched() or os.environ["RANK"] == "0"
    with contextlib.suppress(Exception):  # the store may be gone with the process that kept it
        return _store.add("llama2lab/said", 1) == 1
    return True


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what all ranks do together: another's end is one clear line."""
    try:
        yield
    except RuntimeError as e:  # DistError is one too; gloo's have no type of their own
        why = first_line(e)
        if not isinstance(e, dist.DistError) and "gloo" not in why and "Connection" not in why:
            raise
        raise LabError(LOST.format(f" ({why[-120:]})")) from e


# ---- what they tell each other -----------------------------------------------------------------------------


def barrier() -> None:
    """Wait until all ranks have come here."""
    gathered(None)  # by the CPU's way on a GPU too


def from_first(value: T) -> T:
    """What the first rank gives, for all."""
    if world_size() == 1:
        return value
    box = [value]
    with together():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def tensors_from_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first rank's tensors, which lie on its CPU, for all."""
    if world_size() == 1:
        return tensors
    shapes = from_first({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
    found = {}
    for name, (shape, dtype) in shapes.items():
        found[name] = tensors[name].contiguous() if is_first() else torch.empty(shape, dtype=dtype)
        with together():
            dist.broadcast(found[name], src=0)
    return found


def gathered(mine: T) -> list[T]:
    """What every rank gives, by rank, for all."""
    if world_size() == 1:
        return [mine]
    found: list[Any] = [None] * world_size()
    with together():
        dist.all_gather_object(found, mine)
    return found


def agreed(*wishes: bool) -> tuple[bool, ...]:
    """For each of these, whether any rank wishes it."""
    if world_size() == 1:
        return wishes
    votes = torch.tensor(wishes, dtype=torch.int)
    with together():
        dist.all_reduce(votes, dist.ReduceOp.MAX)
    return tuple(bool(vote) for vote in votes.tolist())


# ---- shares ------------------------------------------------------------------------------------------------


def shared(rows: Sequence[T]) -> Sequence[T]:
    """This rank's share of rows, dealt out in turn as `parallel.split` deals a rank's on; it may be empty."""
    return rows[rank() :: world_size()] if world_size() > 1 else rows


def merged(mine: dict[int, T]) -> dict[int, T]:
    """What all ranks found, by row, in the rows' order."""
    if world_size() == 1:
        return mine
    return dict(sorted((i, value) for found in gathered(mine) for i, value in found.items()))


def backward(
    loss_of: Callable[[T], tuple[Tensor, Figure, Mapping[str, Figure]]],
    parts: Sequence[T],
    parameters: Sequence[Tensor],
    device: torch.device,
    add: bool = False,
) -> tuple[Figure, dict[str, Figure]]:
    """`parallel.backward` of a batch of which every rank gives the `parts` of its share: gradients, loss and metrics
    are the whole batch's, on every rank. A rank without a share gives no part."""
    if world_size() == 1:
        return parallel.backward(loss_of, parts, parameters, device, add)
    weights: list[float] = []

    def weighed(part: T) -> tuple[Tensor, Figure, Mapping[str, Figure]]:
        loss, weight, metrics = loss_of(part)
        weights.append(float(weight))
        return loss, weight, metrics

    before = [p.grad if add else None for p in parameters]
    loss, metrics = 0.0, dict[str, float]()
    if parts:
        mine, more = parallel.backward(weighed, parts, parameters, device)
        loss, metrics = float(mine), parallel.numbers(more)
    else:
        for p in parameters:
            p.grad = None
    whole, means = mean_gradients(parameters, sum(weights), loss, metrics)
    for p, gradient in zip(parameters, before, strict=True):
        if gradient is not None:
            p.grad = gradient if p.grad is None else p.grad.add_(gradient)
    return whole, {**means}


def mean_gradients(
    parameters: Sequence[Tensor], weight: float, loss: float, metrics: dict[str, float]
) -> tuple[float, dict[str, float]]:
    """Let the gradients on `parameters` be the mean over ranks, each with its `weight`; the same of loss and metrics,
    which it returns. A gradient that no rank has stays None."""
    told = gathered((weight, loss, metrics, [p.grad is not None for p in parameters]))
    total = sum(w for w, _, _, _ in told)
    shares = [w / total if total else 1 / len(told) for w, _, _, _ in told]
    wanted = [p for p, *have in zip(parameters, *(have for *_, have in told), strict=True) if any(have)]
    for bucket in _buckets(wanted):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        flat *= shares[rank()]
        with together():
            dist.all_reduce(flat)
        for p, gradient in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            p.grad = gradient.view_as(p)
    named = next((m for _, _, m, _ in told if m), {})
    means = {k: sum(share * m[k] for share, (_, _, m, _) in zip(shares, told, strict=True) if m) for k in named}
    return sum(share * x for share, (_, x, _, _) in zip(shares, told, strict=True)), means


def _buckets(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Parameters of one type and device, about BUCKET numbers together."""
    buckets: list[list[Tensor]] = []
    size = BUCKET
    for p in parameters:
        fits = buckets and size + p.numel() <= BUCKET
        if fits and (buckets[-1][0].dtype, buckets[-1][0].device) == (p.dtype, p.device):
            buckets[-1].append(p)
            size += p.numel()
        else:
            buckets.append([p])
            size = p.numel()
    return buckets
