"""Exercises and their checks. A check runs at once, accepts every correct solution and names the usual mistakes.

An exercise's `check` is a plain function of the student's answer (a function, a class, a number, a choice): it
returns when the answer is right and raises `Mistake` with a sentence for the student when it is not. `run` calls it,
with a function that has the student's answers brought from elsewhere, and turns whatever happens into an `Outcome`, so
that no answer can stop a notebook.
"""

from __future__ import annotations

import dis
import html
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np
from numpy import array_equal  # by its own name, as `array_of`: a notebook may put another into numpy's
from torch import Tensor

from llama2lab.engine.errors import LabError
from llama2lab.lab.as_json import DIGITS, array_of, pack, unpack
from llama2lab.lab.call import Fault, Prints, Status
from llama2lab.lab.child import Here, Process, start
from llama2lab.lab.restore import kept_state

SECONDS = 10.0
LARGEST = 100_000  # characters of a picture
SOLUTIONS = "LLAMA2LAB_SOLUTIONS"  # "off" hides them
WORDS: dict[Status, str] = {
    "passed": "Passed",
    "not attempted": "Not attempted yet",
    "failed": "Not yet right",
    "stopped": "Stopped",
    "error": "Your code raised an error",
    "noted": "Noted",
}
# JupyterLab's own colours, which follow its theme; the second is for pages without them and reads on white and black.
COLOURS: dict[Status, str] = {
    "passed": "var(--jp-success-color1, #2e8b57)",
    "not attempted": "var(--jp-border-color1, #808080)",
    "failed": "var(--jp-warn-color1, #c77700)",
    "stopped": "var(--jp-error-color1, #d84343)",
    "error": "var(--jp-error-color1, #d84343)",
    "noted": "var(--jp-info-color1, #2a7ab9)",
}


class Mistake(Exception):
    """What is wrong with an answer, in a sentence that helps."""


class Level(NamedTuple):
    """How hard an exercise is, from 1 to 5, how long it takes, and what it earns."""

    difficulty: int
    minutes: int
    points: int


@dataclass(frozen=True)
class Exercise:
    """One thing to do in a notebook.

    `check` raises Mistake for a wrong answer. `solution` is the library's own function, or a thin adapter of it; of a
    question what its check holds for right. An exercise with `in_place` may change the arguments it is given. `lesson`
    is said when it has passed, of a prediction when it is compared: why it is so, in two lines.

    `inside` is for answers that take what is no data, a model: in the process of the answer `inside(answer, *args)` is
    called in its place, with the arguments of the check. `extra` ones are for whoever has time: a notebook's hour is
    full without them.

    `picture` draws what a right answer gives, as HTML in which every text is escaped (`own_output`). It is given the
    answer as `check` is.
    """

    key: str
    title: str
    task: str
    level: Level
    source: str
    hints: tuple[str, ...]
    check: Callable[[Any], None]
    solution: Any = None
    in_place: bool = False
    lesson: str = ""
    inside: Callable[..., Any] | None = None
    extra: bool = False
    picture: Callable[[Callable[..., Any]], str] | None = None

    def __post_init__(self) -> None:
        if self.solution is None:
            object.__setattr__(self, "solution", getattr(self.check, "right", None))

    @property
    def facts(self) -> str:
        difficulty, minutes, points = self.level
        facts = f"difficulty {difficulty} of 5 · about {minutes} min · {in_words(points)} · paper: {self.source}"
        return f"beyond the hour · {facts}" if self.extra else facts

    def __repr__(self) -> str:
        facts = f"{self.title} [{self.key}]: {self.task} ({self.facts})"
        return "\n  ".join([facts, *getattr(self.check, "lines", ())])

    def _repr_html_(self) -> str:
        facts = html.escape(self.facts)
        choices = "".join(f"<li>{html.escape(line)}</li>" for line in getattr(self.check, "lines", ()))
        hints = (f"<ul>{choices}</ul>" if choices else "") + hints_html(self.hints)
        body = f'<p>{with_code(self.task)}</p><p style="opacity: .8">{facts}</p>{hints}'
        return box(COLOURS["noted"], f"Exercise: {html.escape(self.title)}", body, "group")


def hints_html(hints: Sequence[str]) -> str:
    return "".join(
        f"<details><summary>Hint {i} of {len(hints)}</summary><p>{with_code(hint)}</p></details>"
        for i, hint in enumerate(hints, 1)
    )


def with_code(text: str) -> str:
    """A text as HTML, what stands between backticks as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html.escape(text))


def in_words(points: int) -> str:
    return f"{points} point" + ("" if points == 1 else "s")


def box(colour: str, head: str, body: str, role: str) -> str:
    """A block with a coloured edge. `head` and `body` are HTML; text keeps the colour of the page."""
    return (
        f'<div role="{role}" style="border-left: 0.3em solid {colour}; padding: 0.2em 0.8em; margin: 0.4em 0; '
        f'color: var(--jp-content-font-color1, inherit)"><strong>{head}</strong>{body}</div>'
    )


@dataclass(frozen=True)
class Outcome:
    """What a check found. `line` and `code` are where the student's own code went wrong, if it did; `hints` are offered
    as long as it has not passed; `picture` is the HTML of `Exercise.picture`, for the page alone."""

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
    hints: tuple[str, ...] = ()
    picture: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def where(self) -> str:
        return f"line {self.line}: {self.code}" if self.line else ""

    @property
    def head(self) -> str:
        earned = f" ({self.points} of {in_words(self.of)})" if self.of and self.status != "not attempted" else ""
        return f"{WORDS[self.status]}: {self.title}{earned}"

    def __repr__(self) -> str:
        parts = [self.head, self.message, self.where, self.printed and f"It printed: {self.printed}"]
        return "\n  ".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        body = (f"<p>{with_code(self.message)}</p>" if self.message else "") + self.picture
        if self.line:
            body += f"<p>line {self.line}: <code>{html.escape(self.code)}</code></p>"
        if self.printed:
            body += f"<details><summary>What it printed</summary><pre>{html.escape(self.printed)}</pre></details>"
        return box(COLOURS[self.status], html.escape(self.head), body + hints_html(self.hints), "status")


# ---- running a check ---------------------------------------------------------------------------------------------


def run(exercise: Exercise, answer: Any, seconds: float = SECONDS, draw: bool = False) -> Outcome:
    """Check an answer. Never raises for anything the answer does; the user's own interrupt goes through.

    A function runs in a process of its own where there can be one, with `seconds` for all its answers together; `child`
    says what that holds, and what not. With `draw` one that has passed is asked for the exercise's picture too.
    """
    begin = time.perf_counter()
    prints, warned = Prints(), Prints()

    def outcome(status: Status, message: str = "", line: int | None = None, code: str = "") -> Outcome:
        seconds, of = time.perf_counter() - begin, exercise.level.points
        points, hints = (of, ()) if status == "passed" else (0, exercise.hints)
        return Outcome(
            exercise.key, exercise.title, status, message, line, code, prints.text, seconds, points, of, hints
        )

    try:
        if is_empty(answer):
            raise Fault("not attempted")
        with kept_state() as library:
            if callable(answer):
                asked = answer if exercise.inside is None else partial(exercise.inside, answer)
                if exercise.inside is not None:
                    # The first step of an optimiser imports it, for seconds: here, not in the time of each answer.
                    import_module("torch._dynamo")
                with closing(start(asked, library, seconds, prints, warned)) as place:
                    answered = partial(ask, place, exercise.in_place)
                    exercise.check(answered)
                    found = outcome("passed", exercise.lesson)
                    return replace(found, picture=picture_of(exercise, answered)) if draw else found
            else:
                exercise.check(plain(answer, seconds))
    except Fault as e:
        return outcome(e.status, str(e) or "Fill it in and run the cell again; the hints help.", e.line, e.code)
    except Mistake as e:
        return outcome("failed", str(e))
    except Exception as e:
        # Checks meet every type a student may return; what none of them foresaw is still an answer, not a crash.
        why = f"{type(e).__name__}: {str(e)[:200]}"
        words = f"The check cannot read what it was given ({why}). Compare types and shapes with the task."
        return outcome("failed", words)
    finally:
        with suppress(AttributeError, OSError, ValueError):  # a notebook may have closed it, or taken it away
            sys.stderr.write(warned.text)
    return outcome("passed", exercise.lesson)


def picture_of(exercise: Exercise, answered: Callable[..., Any]) -> str:
    """The exercise's picture of a right answer; nothing where it cannot be drawn: what has passed has passed."""
    with suppress(Exception):  # the values are right where they were checked, and may be anything elsewhere
        picture = exercise.picture(answered) if exercise.picture else ""
        return picture if len(picture) <= LARGEST else ""
    return ""


def ask(place: Process | Here, in_place: bool, *args: Any) -> Any:
    """The answer of a student's function, which runs elsewhere, as plain data. Arguments are data and must be left
    alone; with `in_place` the function may change them, and they are changed.

    Raises:
        Fault: there is no answer to judge.
        Mistake: the function did what it must not, or returned nothing.
    """
    reply = place.ask([pack(a) for a in args])
    if reply.kind == "empty":
        raise Fault("not attempted")
    if reply.kind == "raised":
        raise Fault("error", reply.text, reply.line, reply.code)
    if reply.kind == "arguments":
        raise Mistake(
            f"Your function is called with {len(args)} arguments and does not take them ({reply.text}). "
            "Keep the first line as the notebook gives it."
        )
    if reply.changed:
        raise Mistake(
            f"Your code changed {', '.join(reply.changed[:3])} of the library. It has been put back; use "
            "names of your own."
        )
    for number, (before, after) in enumerate(zip(args, unpack(reply.args), strict=True), 1):
        if unchanged(before, after):
            continue
        if not in_place:
            raise Mistake(
                f"Your function changes its argument number {number} in place; the caller still needs "
                "it. Work on a copy (clone), or without operators like += and methods ending in _."
            )
        before.copy_(after)
    if reply.result is None:
        raise Mistake("Your function returns None. Is the `return` missing?")
    return unpack(reply.result)


def unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        # NaN equals NaN: arguments may hold what a mask hides.
        return type(after) is Tensor and array_equal(array_of(before), array_of(after), equal_nan=True)
    if isinstance(before, np.ndarray):
        return array_equal(before, after)
    if isinstance(before, list | tuple):
        return type(before) is type(after) and len(before) == len(after) and all(map(unchanged, before, after))
    return bool(before == after)


def whose(exercise: Exercise, answer: Any) -> tuple[Any, str]:
    """The student's answer if it is right, else the library's; and whose it is, in words."""
    return (answer, "yours") if run(exercise, answer).passed else (exercise.solution, "the library's")


def pieces_of(exercises: Iterable[Exercise], answers: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What is put together of several exercises: {name: function}, by the name behind the point of each one's key, and
    `whose` each is."""
    found = {e.key.partition(".")[2]: e for e in exercises}
    both = {name: whose(exercise, answers.get(name)) for name, exercise in found.items()}
    return {name: function for name, (function, _) in both.items()}, {name: owner for name, (_, owner) in both.items()}


def plain(answer: Any, seconds: float = SECONDS) -> Any:
    """An answer that is no function, as plain data. What is not plain already may have methods of the student's own
    and is read where a function would run.

    Raises:
        Fault: it cannot be read.
    """
    if is_plain(answer):
        return answer
    with kept_state() as library, closing(start(lambda: answer, library, seconds, Prints(), Prints())) as place:
        return ask(place, False)


def is_plain(answer: Any, depth: int = 3) -> bool:
    """Whether the answer is made of Python's and numpy's own types alone, nested no deeper than `depth`."""
    if type(answer) in (list, tuple, dict):
        parts = [*answer.keys(), *answer.values()] if type(answer) is dict else answer
        return depth > 0 and all(is_plain(part, depth - 1) for part in parts)
    return (
        answer is None
        or type(answer) in (str, bytes, bool, float, complex, np.float64, np.float32, np.int64)
        or (type(answer) is int and answer.bit_length() <= DIGITS)
    )


def is_empty(answer: Any) -> bool:
    """None, `...`, an empty text, or a function that holds nothing but `...`, `pass` or a docstring."""
    if answer is None or answer is Ellipsis or (type(answer) is str and not answer.strip()):
        return True
    return type(answer) is FunctionType and does_nothing(answer.__code__)


def does_nothing(code: CodeType) -> bool:
    quiet = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "POP_TOP", "CACHE"}
    instructions = list(dis.get_instructions(code))
    constants = [i.argval for i in instructions if i.opname in ("LOAD_CONST", "RETURN_CONST")]
    return all(i.opname in quiet for i in instructions) and all(c is None or c is Ellipsis for c in constants)


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
