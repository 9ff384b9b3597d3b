"""What a check puts back: random numbers, torch's settings, and the library itself.

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
from torch import Tensor
from torch._tensor_str import PRINT_OPTS

PACKAGE = "llama2lab"
SMALL = 1000  # entries of a container whose contents are watched too


def _copy(value: Any) -> Any:
    """The contents of a changeable value, or None for one that is not watched."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.numel() <= SMALL else None
    if isinstance(value, dict | list | set) and len(value) <= SMALL:
        return value.copy()
    return None


def _same(value: Any, copy: Any) -> bool:
    if isinstance(value, Tensor):
        return value.shape == copy.shape and torch.equal(value.detach(), copy)
    if len(value) != len(copy):
        return False
    if isinstance(value, dict):
        return all(k in copy and v is copy[k] for k, v in value.items())
    return value == copy if isinstance(value, set) else all(a is b for a, b in zip(value, copy, strict=False))


def _fill(value: Any, copy: Any) -> None:
    if isinstance(value, Tensor):
        value.detach().resize_(copy.shape).copy_(copy)
        return
    value.clear()
    value.extend(copy) if isinstance(value, list) else value.update(copy)


class Library:
    """The names of the library's modules and classes as they are now, to be put back later. New names are let be:
    importing a module adds one."""

    def __init__(self) -> None:
        self.names: list[tuple[str, Any, dict[str, Any]]] = []
        self.contents: list[tuple[str, Any, Any]] = []
        for module_name, module in list(sys.modules.items()):
            if module_name != PACKAGE and not module_name.startswith(PACKAGE + "."):
                continue
            held = self._names_of(module)
            self.names.append((module_name, module, held))
            for name, value in held.items():
                if isinstance(value, type) and value.__module__ == module_name:
                    self.names.append((f"{module_name}.{name}", value, self._names_of(value)))
                elif (copy := _copy(value)) is not None:
                    self.contents.append((f"{module_name}.{name}", value, copy))

    @staticmethod
    def _names_of(owner: Any) -> dict[str, Any]:
        return {k: v for k, v in vars(owner).items() if not k.startswith(("__", "_abc_"))
                or k in ("__init__", "__call__")}

    def restore(self) -> list[str]:
        """Put back what is no longer as it was; what had been changed, by name."""
        changed = []
        for path, owner, held in self.names:
            now = vars(owner)
            for name, value in held.items():
                if now.get(name) is not value:
                    setattr(owner, name, value)
                    changed.append(f"{path}.{name}")
        for path, value, copy in self.contents:
            if not _same(value, copy):
                _fill(value, copy)
                changed.append(path)
        return changed


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
    (lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
     lambda held: torch.autograd.set_detect_anomaly(*held)),
    (lambda: dict(vars(PRINT_OPTS)), lambda held: vars(PRINT_OPTS).update(held)),
    (lambda: (sys.stdin, sys.stdout, sys.stderr),
     lambda held: vars(sys).update(zip(("stdin", "stdout", "stderr"), held, strict=True))),
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
