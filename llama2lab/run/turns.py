"""Speed by turns: what the benchmark and its parts stand on.

Ours and a peer's do the same work one after the other, again and again, in one process: what else the machine does
strikes both alike.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import constants
from transformers.utils import logging as transformers_logging

from llama2lab.engine.device import Machine, matmul_ceiling, wait
from llama2lab.engine.loop import watching

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OURS = "ours"


@dataclass(frozen=True)
class Turns:
    """Seconds of each side, turn by turn."""

    seconds: Mapping[str, list[float]]

    def of(self, name: str) -> float:
        """The median turn's."""
        return statistics.median(self.seconds[name])

    def ratio(self, peer: str) -> float:
        """How many times as fast as `peer` ours is: the median over turns of peer's seconds by ours in the same turn.
        Rates are medians of each side, so that theirs may differ from it a little."""
        return statistics.median(
            theirs / ours for theirs, ours in zip(self.seconds[peer], self.seconds[OURS], strict=True)
        )


def take_turns(work: Mapping[str, Callable[[], float]], repeats: int) -> Turns:
    """Each function does its work and says how many seconds of it count; a first turn of all does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, function in work.items():
            took = function()
            if turn:
                seconds[name].append(took)
    return Turns(seconds)


def compared(amount: float, turns: Turns, peer: str, precision: str) -> dict[str, Any]:
    """A row of the benchmark: `amount` of work by the seconds of each side, and their ratio. Where the peer took no
    turn its figure and the ratio are None."""
    there = peer in turns.seconds
    return {
        OURS: amount / turns.of(OURS),
        peer: amount / turns.of(peer) if there else None,
        "ratio": turns.ratio(peer) if there else None,
        "precision": precision,
    }


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Of the whole call."""
    wait(device)
    begin = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - begin


def seconds_of_loop(train: Callable[[], object], device: torch.device) -> float:
    """Of all steps of the training loop (engine/loop.py) in `train`; what stands before and after it is not counted."""
    marks: list[float] = []

    def watch(what: str, log: object, steps: int) -> bool:
        wait(device)
        marks.append(time.perf_counter())
        return False

    with watching(watch):
        train()
    return marks[-1] - marks[0]


def share_of_ceiling(operations: float, seconds: float, machine: Machine) -> float:
    """What part of the machine's ceiling for matrix products, in this precision, so many operations take up."""
    return operations / seconds / matmul_ceiling(machine.device, DTYPES[machine.precision])


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """While this lasts, transformers and TRL (which would report its use) ask nothing of the network, and say nothing
    but errors."""
    before = constants.HF_HUB_OFFLINE, transformers_logging.get_verbosity()
    constants.HF_HUB_OFFLINE = True
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_OFFLINE = before[0]
        transformers_logging.set_verbosity(before[1])
        transformers_logging.enable_progress_bar()
