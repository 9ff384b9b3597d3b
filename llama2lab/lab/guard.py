"""What a check leaves as it was: random numbers, torch's settings, and the library itself.

A student's cell may seed a generator, set a default type or assign to a name of a library module by mistake; later
cells would then show something else than the notebook says, and nobody would find out why.
"""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
    return value == copy if isinstance(value, set) else all(a is b for a, b in zip(value, copy))


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


@contextmanager
def kept_state(seed: int = 0) -> Iterator[Library]:
    """Random numbers start at `seed` inside, and outside nothing has happened: the global generators of Python, numpy
    and torch, torch's default type, gradients on or off, and the library are what they were before."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    library = Library()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield library
    finally:
        library.restore()
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        torch.set_rng_state(cpu)
        np.random.set_state(numpy)
        random.setstate(python)


class Prints(io.TextIOBase):
    """What is printed, up to a limit: an endless loop that prints must not fill the memory."""

    def __init__(self, limit: int = 2000) -> None:
        self.limit, self.length, self.cut = limit, 0, False
        self.parts: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        room = self.limit - self.length
        if len(text) > room:
            self.cut = True
        if room > 0:
            self.parts.append(text[:room])
            self.length += len(self.parts[-1])
        return len(text)

    @property
    def text(self) -> str:
        return "".join(self.parts) + (" [...]" if self.cut else "")
