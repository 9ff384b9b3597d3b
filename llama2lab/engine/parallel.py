"""One thread a core, each with a part of the batch.

The products of a model of a million parameters are so small that two threads which share each of them mostly wait for
each other. Two threads that take half of the batch each, and add their gradients at the end, do not: training is almost
three times as fast (docs/trials.md). A sum of gradients is the gradient of the sum, so nothing but rounding changes.
There are as many workers as torch has threads (which is as many as there are cores, or what OMP_NUM_THREADS says). The
same number gives the same numbers; another number rounds differently.

On a GPU there is one part: it is parallel enough by itself.

Of a model of LARGE parameters or more, what a part keeps for its gradient is larger than the model: there a batch is
divided into many small parts, one a worker at a time, whose gradients are added up as they come. Of a few rows each: in
every part all weights are rounded to bf16 and their gradients added, whatever it holds. Where such a model
writes token by token, its weights are fetched from memory for every token: there all threads share each product.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
Figure = float | Tensor  # a number, or one on a GPU that was not waited for
MOST = 8  # workers: a batch of the preset has no more parts
LARGE = 2**24  # parameters
LARGE_ROWS = 2  # the most rows of a part of a large model's batch


_local = threading.local()  # `worker` is set in the pool's threads


@functools.cache
def _threads() -> int:
    """torch's threads when the lab first asked."""
    return torch.get_num_threads()


def _workers() -> int:
    return min(MOST, _threads())


def _share() -> int:
    return _threads() // _workers()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads in which torch shares no product with another thread (or with its part of them): results would otherwise
    depend on which of them takes which part."""

    def begin() -> None:
        _local.worker = True
        torch.set_num_threads(_share())
        torch.get_num_threads()  # a thread takes the number over at first use, when main may have changed it again

    before = torch.get_num_threads()
    n = _workers()
    pool = ThreadPoolExecutor(n, "part", begin)
    together = threading.Barrier(n)  # so that none is started later
    list(pool.map(lambda _: together.wait(), range(n)))
    torch.set_num_threads(before)
    return pool


def workers(device: torch.device) -> int:
    """How many parts a batch is worked on in: one for each of torch's threads, 1 on a GPU and within a part."""
    nested = getattr(_local, "worker", False)
    return _workers() if device.type == "cpu" and not nested else 1


@contextlib.contextmanager
def limited_to(n: int) -> Iterator[None]:
    """As on a machine of `n` cores, while this lasts: for a benchmark by number of workers."""

    def have(threads: int) -> None:
        torch.set_num_threads(threads)
        _threads.cache_clear()
        _pool.cache_clear()

    before = _threads()
    try:
        have(n)
        yield
    finally:
        have(before)


def is_large(parameters: Iterable[Tensor]) -> bool:
    """Whether these are so many that a batch is divided into small parts."""
    return sum(p.numel() for p in parameters) >= LARGE


@contextlib.contextmanager
def shared_cores(device: torch.device) -> Iterator[None]:
    """Around a training loop: what main does between the parts (the optimiser's step) is small, and helping threads
    that spin while they wait for more would take the cores from the workers."""
    if workers(device) == 1:
        yield
        return
    before = torch.get_num_threads()
    _pool()
    torch.set_num_threads(_share())
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def sharing_products(device: torch.device) -> Iterator[None]:
    """While this lasts, torch's threads share each product, as they do outside of the lab; not within a part."""
    before = torch.get_num_threads()
    if workers(device) > 1:
        torch.set_num_threads(_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_parallel(work: Callable[[T], R], parts: Iterable[T], device: torch.device) -> list[R]:
    """[work(part) for part in parts], as many at once as there are workers.

    torch's modes belong to a thread: `work` must enter inference_mode or autocast itself. The first error of a part is
    raised once all parts under way have ended.
    """
    if workers(device) == 1:
        return [work(part) for part in parts]
    futures = [_pool().submit(work, part) for part in parts]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.exception()


def split(rows: Sequence[T], device: torch.device, large: bool = False) -> list[Sequence[T]]:
    """The rows dealt out in turn, a hand for each worker, or for a `large` model so many that none has more than
    LARGE_ROWS; no hand is empty."""
    n = min(workers(device), len(rows))
    if large and device.type == "cpu":
        n = max(n, math.ceil(len(rows) / LARGE_ROWS))
    return [rows[i::n] for i in range(n)]


def batches_of(order: Sequence[T], batch: int, device: torch.device) -> list[Sequence[T]]:
    """`order` in stretches of at most `batch`, and at least one a worker if there are so many rows."""
    size = max(1, min(batch, math.ceil(len(order) / (_workers() if device.type == "cpu" else 1))))
    return [order[start : start + size] for start in range(0, len(order), size)]


def figure(x: Tensor) -> Figure:
    """A tensor of one number as that number; on a GPU as it is, to be read later: reading it now would wait for all
    that the GPU was given before, and leave it idle until it is given more."""
    return x.item() if x.device.type == "cpu" else x.detach()


def numbers(figures: Mapping[str, Figure]) -> dict[str, float]:
    """Figures as numbers; those that lie on a GPU come over together, in one wait."""
    there = {name: x for name, x in figures.items() if isinstance(x, Tensor) and x.device.type != "cpu"}
    read = dict(zip(there, torch.stack([x.float() for x in there.values()]).tolist(), strict=True)) if there else {}
    return {name: read[name] if name in there else float(x) for name, x in figures.items()}


def backward(
    loss_of: Callable[[T], tuple[Tensor, Figure, Mapping[str, Figure]]],
    parts: Sequence[T],
    parameters: Sequence[Tensor],
    device: torch.device,
    add: bool = False,
) -> tuple[Figure, dict[str, Figure]]:
    """Set the gradients of the whole batch's loss on `parameters` (or, with `add`, add to those there are); returns
    that loss and the metrics, which on a GPU are not waited for (`numbers` reads them).

    `loss_of(part)` is (mean loss of the part, its weight, metrics). The batch's loss is the weighted mean of its
    parts' losses, and so are its metrics. Parts must not share a graph.
    """

    def work(part: T) -> tuple[Figure, Figure, Mapping[str, Figure], list[Tensor | None]]:
        loss, weight, metrics = loss_of(part)
        return figure(loss), weight, metrics, list(torch.autograd.grad(loss, parameters, allow_unused=True))

    if len(parts) > _workers() or (len(parts) > 1 and is_large(parameters)):
        return _backward_in_turn(work, parts, parameters, device, add)
    done = in_parallel(work, parts, device)
    shares = _shares([weight for _, weight, _, _ in done])
    for i, parameter in enumerate(parameters):
        given = [(gradients[i], share) for (_, _, _, gradients), share in zip(done, shares, strict=True)]
        scaled = [g * share for g, share in given if g is not None]
        if add and parameter.grad is not None:
            scaled.append(parameter.grad)
        parameter.grad = functools.reduce(torch.add, scaled) if scaled else None
        for _, _, _, gradients in done:
            gradients[i] = None  # no longer needed
    return _means([(loss, metrics) for loss, _, metrics, _ in done], shares)


def _backward_in_turn(
    work: Callable[[T], tuple[Figure, Figure, Mapping[str, Figure], list[Tensor | None]]],
    parts: Sequence[T],
    parameters: Sequence[Tensor],
    device: torch.device,
    add: bool,
) -> tuple[Figure, dict[str, Figure]]:
    """`backward` of many parts, as many at once as there are workers; at most one more set of gradients is held."""
    sums: list[Tensor | None] = [None] * len(parameters)
    done: list[tuple[Figure, Mapping[str, Figure]]] = []
    weights: list[float] = []
    for start in range(0, len(parts), _workers()):
        some_done = in_parallel(work, parts[start : start + _workers()], device)
        with sharing_products(device):  # no worker works now, and the gradients are large
            for loss, some, metrics, gradients in some_done:
                weight = float(some)
                if weight and not any(weights):  # parts of no weight count, and then alike, only where none has any
                    sums = [None] * len(parameters)
                share = weight if weight or any(weights) else 1.0
                done.append((loss, metrics))
                weights.append(weight)
                for i, gradient in enumerate(gradients):
                    if gradient is not None:
                        total = sums[i]
                        sums[i] = gradient * share if total is None else total.add_(gradient, alpha=share)
                    gradients[i] = None  # no longer needed
    for parameter, total in zip(parameters, sums, strict=True):
        mean = None if total is None else total.div_(sum(weights) or len(weights))
        parameter.grad = (
            mean
            if not add or parameter.grad is None
            else (parameter.grad if mean is None else mean.add_(parameter.grad))
        )
    return _means(done, _shares(weights))


def _shares(weights: Sequence[Figure]) -> list[float]:
    if len(weights) == 1:  # whatever it is: on a GPU it need not be known
        return [1.0]
    known = [float(weight) for weight in weights]
    total = sum(known)
    return [weight / total if total else 1 / len(known) for weight in known]


def _means(
    done: Sequence[tuple[Figure, Mapping[str, Figure]]], shares: Sequence[float]
) -> tuple[Figure, dict[str, Figure]]:
    """The batch's loss and metrics from those of its parts."""
    metrics = {key: sum(m[key] * share for (_, m), share in zip(done, shares, strict=True)) for key in done[0][1]}
    return sum(loss * share for (loss, _), share in zip(done, shares, strict=True)), metrics
