"""Exercises and their checks. A check runs at once, accepts every correct solution and names the usual mistakes.

An exercise's `check` is a plain function of the student's answer (a function, a class, a number, a choice): it
returns when the answer is right and raises `Mistake` with a sentence for the student when it is not. `run` calls it
with a time limit and turns whatever happens into an `Outcome`, so that no answer can stop a notebook.
"""

from __future__ import annotations

import dis
import html
import inspect
import linecache
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llama2lab.errors import LabError
from llama2lab.lab.guard import Library, Prints, kept_state
from llama2lab.lab.limits import TimeIsUp, with_limit

SECONDS = 10.0
SOLUTIONS = "LLAMA2LAB_SOLUTIONS"  # "off" hides them
Status = Literal["passed", "not attempted", "failed", "stopped", "error", "noted"]
WORDS: dict[Status, str] = {"passed": "Passed", "not attempted": "Not attempted yet", "failed": "Not yet right",
                            "stopped": "Stopped", "error": "Your code raised an error", "noted": "Noted"}
# JupyterLab's own colours, which follow its theme; the second is for pages without them and reads on white and black.
COLOURS: dict[Status, str] = {
    "passed": "var(--jp-success-color1, #2e8b57)", "not attempted": "var(--jp-border-color1, #808080)",
    "failed": "var(--jp-warn-color1, #c77700)", "stopped": "var(--jp-error-color1, #d84343)",
    "error": "var(--jp-error-color1, #d84343)", "noted": "var(--jp-info-color1, #2a7ab9)"}
# Where the code of libraries lies: what was raised there is not the student's line.
FOREIGN = (str(Path(__file__).parents[1]), *(sysconfig.get_path(n) for n in ("stdlib", "purelib", "platlib")),
           "<frozen", sys.prefix + os.sep + "lib")


class Mistake(Exception):
    """What is wrong with an answer, in a sentence that helps."""


class NotAttempted(Exception):
    """The answer is still the empty one of the notebook."""


class StudentError(Exception):
    """An exception of the student's own code, which is its `__cause__`."""


@dataclass(frozen=True)
class Exercise:
    """One thing to do in a notebook.

    `check` raises Mistake for a wrong answer. `solution` is the library's own function, or a thin adapter of it; see
    `solution` below. `difficulty` is 1 to 5. An exercise with `in_place` may change the arguments it is given.
    """

    key: str
    title: str
    task: str
    difficulty: int
    minutes: int
    points: int
    source: str
    hints: tuple[str, ...]
    check: Callable[[Any], None]
    solution: Any = None
    in_place: bool = False

    def __repr__(self) -> str:
        facts = (f"{self.title} [{self.key}]: {self.task} (difficulty {self.difficulty} of 5, about {self.minutes} "
                 f"minutes, {points_in_words(self.points)}, paper: {self.source})")
        return "\n  ".join([facts, *getattr(self.check, "lines", ())])

    def _repr_html_(self) -> str:
        hints = "".join(f"<details><summary>Hint {i} of {len(self.hints)}</summary><p>{html.escape(hint)}</p></details>"
                        for i, hint in enumerate(self.hints, 1))
        stars = "★" * self.difficulty + "☆" * (5 - self.difficulty)
        facts = (f'<span aria-hidden="true">{stars} </span>difficulty {self.difficulty} of 5 · about {self.minutes} '
                 f"min · {points_in_words(self.points)} · paper: {html.escape(self.source)}")
        choices = "".join(f"<li>{html.escape(line)}</li>" for line in getattr(self.check, "lines", ()))
        hints = (f"<ul>{choices}</ul>" if choices else "") + hints
        return box(COLOURS["noted"], f"Exercise: {html.escape(self.title)}",
                   f"<p>{html.escape(self.task)}</p><p><small>{facts}</small></p>{hints}", "group")


def points_in_words(points: int) -> str:
    return f"{points} point" + ("" if points == 1 else "s")


def box(colour: str, head: str, body: str, role: str) -> str:
    """A block with a coloured edge. `head` and `body` are HTML; text keeps the colour of the page."""
    return (f'<div role="{role}" style="border-left: 0.3em solid {colour}; padding: 0.2em 0.8em; margin: 0.4em 0; '
            f'color: var(--jp-content-font-color1, inherit)"><strong>{head}</strong>{body}</div>')


@dataclass(frozen=True)
class Outcome:
    """What a check found. `line` and `code` are where the student's own code went wrong, if it did."""

    key: str
    title: str
    status: Status
    message: str = ""
    line: int | None = None
    code: str = ""
    printed: str = ""
    seconds: float = 0.0
    points: int = 0
    of: int = 0

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def where(self) -> str:
        return f"line {self.line}: {self.code}" if self.line else ""

    @property
    def head(self) -> str:
        earned = f" ({self.points} of {points_in_words(self.of)})" if self.of and self.status != "not attempted" else ""
        return f"{WORDS[self.status]}: {self.title}{earned}"

    def __repr__(self) -> str:
        parts = [self.head, self.message, self.where, self.printed and f"It printed: {self.printed}"]
        return "\n  ".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        body = f"<p>{html.escape(self.message)}</p>" if self.message else ""
        if self.line:
            body += f"<p>line {self.line}: <code>{html.escape(self.code)}</code></p>"
        if self.printed:
            body += f"<details><summary>What it printed</summary><pre>{html.escape(self.printed)}</pre></details>"
        return box(COLOURS[self.status], html.escape(self.head), body, "status")


# ---- running a check ---------------------------------------------------------------------------------------------


def run(exercise: Exercise, answer: Any, seconds: float = SECONDS) -> Outcome:
    """Check an answer. Never raises for anything the answer does, but for the user's own interrupt."""
    begin = time.perf_counter()
    prints = Prints()

    def outcome(status: Status, message: str = "", line: int | None = None, code: str = "") -> Outcome:
        return Outcome(exercise.key, exercise.title, status, message, line, code, prints.text,
                       time.perf_counter() - begin, exercise.points if status == "passed" else 0, exercise.points)

    if is_empty(answer):
        return outcome("not attempted", "Fill it in and run the cell again; the hints help.")
    # The state is put back outside of the time limit, so that an alarm cannot interrupt that.
    with kept_state() as library, redirect_stdout(prints):
        student = Student(answer, library, exercise.in_place) if callable(answer) else answer
        try:
            with_limit(lambda: exercise.check(student), seconds)
        except TimeIsUp as e:
            after = "" if e.stopped else (" It could not be ended and still runs: restart the kernel when you can.")
            return outcome("stopped", f"It ran longer than {seconds:g} seconds. Is there a loop that never "
                                      f"ends?" + after)
        except NotAttempted:
            return outcome("not attempted", "Fill it in and run the cell again; the hints help.")
        except Mistake as e:
            return outcome("failed", str(e))
        except StudentError as e:
            cause = e.__cause__ or e
            line, code = place_of(cause.__traceback__, student)
            return outcome("error", f"{type(cause).__name__}: {str(cause)[:500]}", line, code)
        except Exception as e:
            # Checks meet every type a student may return; what none of them foresaw is still an answer, not a crash.
            return outcome("failed", f"The check cannot read what it was given ({type(e).__name__}: {str(e)[:200]}). "
                                     "Compare types and shapes with the task.")
    return outcome("passed")


class Student:
    """The student's function, or class, as a check calls it: errors are marked as the student's, arguments and the
    library must be left alone, and a forgotten `return` is named."""

    def __init__(self, function: Callable, library: Library, in_place: bool = False):
        self.function, self.guarded, self.in_place = function, library, in_place

    def __call__(self, *args: Any) -> Any:
        try:
            inspect.signature(self.function).bind(*args)
        except TypeError as e:
            raise Mistake(f"Your function is called with {len(args)} arguments and does not take them ({e}). Keep the "
                          "first line as the notebook gives it.") from None
        except ValueError:
            pass  # compiled functions have no signature
        copies = [copy_of(a) for a in args]
        try:
            result = self.function(*args)
        except KeyboardInterrupt:
            raise
        except (Exception, SystemExit) as e:
            if isinstance(e, NotImplementedError) and raised_by_hand(e.__traceback__):
                raise NotAttempted from None
            raise StudentError from e
        finally:
            changed = self.guarded.restore()
        if changed:
            raise Mistake(f"Your code changed {', '.join(changed[:3])} of the library. It has been put back; use names "
                          "of your own.")
        if not self.in_place:
            for number, (before, after) in enumerate(zip(copies, args), 1):
                if not unchanged(before, after):
                    raise Mistake(f"Your function changes its argument number {number} in place; the caller still "
                                  f"needs "
                                  "it. Work on a copy (clone), or without operators like += and methods ending in _.")
        if result is None:
            raise Mistake("Your function returns None. Is the `return` missing?")
        if result is Ellipsis:
            raise NotAttempted
        return result


def copy_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, list | tuple):
        return type(value)(copy_of(v) for v in value)
    return dict(value) if isinstance(value, dict) else value


def unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        # equal_nan: arguments may hold what a mask hides.
        return before.shape == after.shape and torch.allclose(before.double(), after.detach().double(), 0, 0, True)
    if isinstance(before, np.ndarray):
        return np.array_equal(before, after)
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(unchanged, before, after))
    return before is after or bool(before == after)


def is_empty(answer: Any) -> bool:
    """None, `...`, an empty text, or a function that holds nothing but `...`, `pass` or a docstring."""
    if answer is None or answer is Ellipsis or (isinstance(answer, str) and not answer.strip()):
        return True
    code = getattr(answer, "__code__", None)
    return isinstance(code, CodeType) and does_nothing(code)


def does_nothing(code: CodeType) -> bool:
    quiet = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "POP_TOP", "CACHE"}
    instructions = list(dis.get_instructions(code))
    constants = [i.argval for i in instructions if i.opname in ("LOAD_CONST", "RETURN_CONST")]
    return all(i.opname in quiet for i in instructions) and all(c is None or c is Ellipsis for c in constants)


def raised_by_hand(traceback: TracebackType | None) -> bool:
    """Whether a `raise` statement did it; torch raises NotImplementedError too, for types it cannot handle."""
    last = None
    while traceback is not None:
        last, traceback = traceback, traceback.tb_next
    if last is None or last.tb_frame.f_code.co_filename.startswith(FOREIGN):
        return False
    return any(i.offset == last.tb_lasti and i.opname == "RAISE_VARARGS"
               for i in dis.get_instructions(last.tb_frame.f_code))


def place_of(traceback: TracebackType | None, student: Any) -> tuple[int | None, str]:
    """Line and its text, where the student's code was last on the way to an exception: in the file or cell of the
    function, else in any file that belongs to no library."""
    places = []
    while traceback is not None:
        places.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    function = getattr(student, "function", None)
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    chosen = ([p for p in places if p[0] == own]
              or [p for p in places if not p[0].startswith(FOREIGN)])
    if not chosen:
        return None, ""
    file, line = chosen[-1]
    return line, linecache.getline(file, line).strip()


# ---- solutions ---------------------------------------------------------------------------------------------------


def solution(exercise: Exercise) -> Any:
    """The solution: the library's own function, or the right answer. `inspect.getsource` shows how it is written.

    Raises:
        LabError: a teacher has switched solutions off with the environment variable LLAMA2LAB_SOLUTIONS=off, or there
            is none, as for a prediction.
    """
    if os.environ.get(SOLUTIONS, "").strip().lower() in ("off", "0", "no", "false"):
        raise LabError(f"solutions are switched off here ({SOLUTIONS}); the hints of the exercise are not")
    if exercise.solution is None:
        raise LabError(f"{exercise.title}: this one has no solution to show, only your own answer")
    return exercise.solution
