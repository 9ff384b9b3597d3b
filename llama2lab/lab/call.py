"""One call of a student's function, as a message: its answer, or why there is none. What it prints, up to a limit."""

from __future__ import annotations

import dis
import inspect
import io
import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from llama2lab.engine.paths import PACKAGE
from llama2lab.lab.as_json import pack, text_of
from llama2lab.lab.restore import Library

Status = Literal["passed", "not attempted", "failed", "stopped", "error", "noted"]  # of an outcome
PRINTED = 2000  # characters that are kept of what it prints
# Where the code of libraries lies: what was raised there is not the student's line.
PATHS = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
FOREIGN = (str(PACKAGE), *PATHS, "<frozen", sys.prefix + os.sep + "lib")


class Fault(Exception):
    """Why there is no answer to judge: the status of the outcome, "not attempted", "stopped" or "error", and for an
    error the student's line."""

    def __init__(self, status: Status, message: str = "", line: int | None = None, code: str = ""):
        super().__init__(message)
        self.status, self.line, self.code = status, line, code


def too_long(seconds: float, after: str = "") -> Fault:
    return Fault("stopped", f"It ran longer than {seconds:g} seconds. Is there a loop that never ends?{after}")


@dataclass(frozen=True)
class Message:
    """What comes back: an answer, or why there is none; before it what was printed. `result` and `args` are packed,
    the arguments as the function left them; `changed` names what it changed of the library."""

    kind: Literal["ready", "printed", "warned", "returned", "raised", "arguments", "empty", "ended"]
    text: str = ""
    line: int | None = None
    code: str = ""
    result: Any = None
    args: list[Any] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    signal: int = 0


class Prints(io.TextIOBase):
    """What is printed, up to a limit: an endless loop that prints must not fill the memory. `send` gets what is kept,
    too."""

    def __init__(self, limit: int = PRINTED, send: Callable[[str], Any] | None = None) -> None:
        self.left, self.cut, self.send = limit, False, send
        self.parts: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        kept, self.cut = text[: self.left], self.cut or len(text) > self.left
        if kept:
            self.left -= len(kept)
            self.parts.append(kept)
            if self.send is not None:
                self.send(kept)
        return len(text)

    @property
    def text(self) -> str:
        return "".join(self.parts) + (" [...]" if self.cut else "")


def call(function: Callable, library: Library, args: Sequence[Any]) -> Message:
    """What the function answers. Whatever it raises is an answer too."""
    try:
        try:
            inspect.signature(function).bind(*args)
        except TypeError as e:
            return Message("arguments", text_of(str(e)))
        except ValueError:
            pass  # compiled functions have no signature
        result = function(*args)
        if result is Ellipsis:
            return Message("empty")
        return Message("returned", result=pack(result), args=[pack(a) for a in args], changed=library.restore())
    except BaseException:
        return _raised(function)


def _raised(function: Callable) -> Message:
    """The exception that is being handled. The student may have written its class, so that showing it may fail."""
    kind, error, traceback = sys.exc_info()
    name, text, line, code = "An exception", "its text cannot be shown", None, ""
    with suppress(BaseException):
        steps = list(_steps(traceback))
        if issubclass(kind or Exception, NotImplementedError) and steps and raised_by_hand(steps[-1]):
            return Message("empty")
        name = text_of(str(getattr(kind, "__name__", name)))[:100]
        line, code = place_of(steps, getattr(function, "__code__", None))
        text = text_of(str(error)[:500])
    return Message("raised", f"{name}: {text}", line, text_of(code))


def _steps(traceback: TracebackType | None) -> Iterator[TracebackType]:
    """The calls that led to an exception, the innermost last."""
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def raised_by_hand(last: TracebackType) -> bool:
    """Whether a `raise` statement did it; torch raises NotImplementedError too, for types it cannot handle."""
    code = last.tb_frame.f_code
    return not code.co_filename.startswith(FOREIGN) and any(
        i.offset == last.tb_lasti and i.opname == "RAISE_VARARGS" for i in dis.get_instructions(code)
    )


def place_of(steps: Sequence[TracebackType], code: Any) -> tuple[int | None, str]:
    """Line and its text, where the student's code was last on the way to an exception: in the file or cell of the
    function, else in any file that belongs to no library."""
    places = [(step.tb_frame.f_code.co_filename, step.tb_lineno) for step in steps]
    own = [p for p in places if p[0] == getattr(code, "co_filename", None)]
    chosen = own or [p for p in places if not p[0].startswith(FOREIGN)]
    if not chosen:
        return None, ""
    file, line = chosen[-1]
    return line, linecache.getline(file, line).strip()
