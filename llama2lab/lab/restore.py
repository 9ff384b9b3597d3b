"""What a check puts back: random numbers, torch's settings, and what the library's names stand for.

The library's own code, called by a check, may draw random numbers. A student's code may also set a default type or
assign to a name of a library module by mistake; where it runs in the notebook's process (see `child`), later cells
would then show something else than the notebook says, and nobody would find out why.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch._tensor_str import PRINT_OPTS

SMALL = 1000  # entries of a dictionary that is watched


def _names(owner: Any) -> dict[Any, Any]:
    """What a module, a class or a dictionary holds; of the names that Python gives, only methods."""
    if isinstance(owner, dict):
        return owner if len(owner) <= SMALL else {}
    return {k: v for k, v in vars(owner).items() if not k.startswith(("__", "_abc_")) or k in ("__init__", "__call__")}


class Library:
    """What the library's modules, their classes and their dictionaries hold now, to be put back later. New names are
    let be: importing a module adds one."""

    def __init__(self) -> None:
        self.held: list[tuple[str, Any, dict[Any, Any]]] = []
        for path, module in list(sys.modules.items()):
            if path.split(".")[0] == "llama2lab":
                self.held.append((path, module, _names(module)))
                self.held += [
                    (f"{path}.{name}", value, dict(_names(value)))
                    for name, value in _names(module).items()
                    if isinstance(value, dict) or (isinstance(value, type) and value.__module__ == path)
                ]

    def restore(self) -> list[str]:
        """Put back what is no longer as it was; what had been changed, by name."""
        changed = []
        for path, owner, held in self.held:
            now = owner if isinstance(owner, dict) else vars(owner)
            for name, value in held.items():
                if name not in now or now[name] is not value:
                    owner.update({name: value}) if isinstance(owner, dict) else setattr(owner, name, value)
                    changed.append(f"{path}.{name}")
        return changed


def _anomalies() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


# What holds for the whole process: how it is read, and how it is put back. Gradients, autocast, the default device and
# the like belong to a thread, and a student's code never runs in the notebook's own.
STATE: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (torch.get_rng_state, torch.set_rng_state),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (_anomalies, lambda held: torch.autograd.set_detect_anomaly(*held)),
    (lambda: dict(vars(PRINT_OPTS)), lambda held: vars(PRINT_OPTS).update(held)),
    (lambda: {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}, lambda held: vars(sys).update(held)),
)


@contextmanager
def kept_state() -> Iterator[Library]:
    """Random numbers start anew inside, and outside nothing has happened: what STATE lists, and the library, are as
    they were."""
    held = [read() for read, _ in STATE]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    library = Library()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    try:
        yield library
    finally:
        library.restore()
        for (_, put), value in zip(STATE, held, strict=True):
            put(value)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
