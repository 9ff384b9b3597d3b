"""Calls that change the file system, made to fail or to kill: for tests of what survives them."""

import builtins
import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama2lab.engine import folders


class File:
    """An open file whose writes are counted."""

    def __init__(self, file: Any, step: Callable[[str], None]):
        self._file, self._step = file, step

    def write(self, text: Any) -> Any:
        self._step("write")
        return self._file.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "File":
        self._file.__enter__()
        return self

    def __exit__(self, *args: Any) -> Any:
        return self._file.__exit__(*args)


@contextlib.contextmanager
def at_call(
    folder: Path,
    number: int,
    act: Callable[[str], None],
    exchange: bool = True,
    on: bool = False,
) -> Iterator[list[str]]:
    """Call `act(name)` before the call of this number (from 1) that changes the file system, with `on` before all later
    ones, too; gives the names of the calls so far. Opens and renames count within `folder` only; `exchange` False: two
    paths cannot change their names in one step, as on other systems."""
    seen: list[str] = []

    def step(name: str) -> None:
        seen.append(name)
        if len(seen) == number or (on and len(seen) > number > 0):
            act(name)

    def counted(name: str, real: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if "dir_fd" in kwargs or str(args[0]).startswith(str(folder)):
                step(name)
            return real(*args, **kwargs)

        return call

    def fsync(fd: int, real: Callable = os.fsync) -> None:
        step("fsync")
        real(fd)

    def opened(file: Any, mode: str = "r", *args: Any, real: Callable = builtins.open, **kwargs: Any) -> Any:
        if not str(file).startswith(str(folder)) or mode in ("r", "rb"):
            return real(file, mode, *args, **kwargs)
        step("open")
        return File(real(file, mode, *args, **kwargs), step)

    def exchanged(a: Path, b: Path, real: Callable = folders.exchange) -> bool:
        step("exchange")
        return exchange and real(a, b)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        patch.setattr(os, "fsync", fsync)
        patch.setattr(builtins, "open", opened)
        patch.setattr(folders, "exchange", exchanged)
        yield seen


def disk_full(name: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
