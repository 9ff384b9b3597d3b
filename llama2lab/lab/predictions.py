"""Questions and predictions: a choice, a number, an order; and what each wrong answer says about its author's idea.

A **question** has one right answer, known beforehand; its `check` is one of `Choice`, `Number` and `Order`. A
**prediction** is made before a run and compared with what the run measured: there is no shame in a wrong one, so it
earns its points for being made before the result was seen, and a second one after the result does not count.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama2lab.lab.checking import Exercise, Mistake


def number_of(answer: Any) -> float:
    """The answer as a finite number; text like "0.5" and "50 %" is read too."""
    try:
        if isinstance(answer, str):
            text = answer.strip().replace(",", ".")
            value = float(text.rstrip("% ")) / (100 if text.endswith("%") else 1)
        elif isinstance(answer, bool):
            raise TypeError
        else:
            value = float(answer)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise Mistake(f"A number is expected, not {str(answer)[:60]!r}.") from None
    if not math.isfinite(value):
        raise Mistake("A finite number is expected.")
    return value


def key_of(answer: Any, options: Mapping[str, str]) -> str:
    key = str(answer).strip().lower()
    if key not in options:
        raise Mistake(f"{str(answer)[:60]!r} is none of the choices; give one of {', '.join(options)}.")
    return key


def order_of(answer: Any, items: Mapping[str, str]) -> list[str]:
    if isinstance(answer, str):
        answer = answer.replace(">", " ").replace("<", " ").replace(",", " ").split()
    try:
        keys = [str(a).strip().lower() for a in answer]
    except TypeError:
        raise Mistake(f"A list of {', '.join(items)} is expected, in your order.") from None
    if sorted(keys) != sorted(items):
        raise Mistake(
            f"Each of {', '.join(items)} must stand exactly once in the list; here are "
            f"{', '.join(keys)[:80] or 'none'}."
        )
    return keys


class Form(ABC):
    """What an answer looks like. Called with an answer it raises Mistake for one that is wrong (a question) or that
    is none at all (a prediction)."""

    @abstractmethod
    def __call__(self, answer: Any) -> None: ...

    @abstractmethod
    def plain(self, answer: Any) -> Any:
        """The answer as JSON can keep it."""

    @property
    def lines(self) -> tuple[str, ...]:
        """What there is to choose from, for the reader."""
        return ()


class Foreseen(Form):
    """The form of a prediction."""

    @abstractmethod
    def compare(self, answer: Any, measured: Any) -> tuple[bool, str]:
        """Whether the prediction came true, and what is to be said about it."""


class Value(Form):
    """A number."""

    def plain(self, answer: Any) -> float:
        return number_of(answer)


@dataclass(frozen=True)
class Keyed(Form):
    """Keys of a few `options`, each with its words."""

    options: Mapping[str, str]

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(f"{key}: {text}" for key, text in self.options.items())

    def __call__(self, answer: Any) -> None:
        self.plain(answer)


class OneOf(Keyed):
    """One of several."""

    def plain(self, answer: Any) -> str:
        return key_of(answer, self.options)


class InOrder(Keyed):
    """All of several, in an order."""

    def plain(self, answer: Any) -> list[str]:
        return order_of(answer, self.options)


# ---- questions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice(OneOf):
    """One of several. `wrong` has a word for every wrong option: the misunderstanding behind it."""

    right: str
    wrong: Mapping[str, str]

    def __post_init__(self) -> None:
        if set(self.wrong) != set(self.options) - {self.right} or self.right not in self.options:
            raise ValueError(f"choice {self.right!r}: every wrong option needs a word, and only those")

    def __call__(self, answer: Any) -> None:
        if (key := self.plain(answer)) != self.right:
            raise Mistake(self.wrong[key])


@dataclass(frozen=True)
class Number(Value):
    """A number that can be worked out or read off, right up to `relative` or `absolute`. `traps` are the values that
    the usual mistakes give, each with its name."""

    right: float
    traps: Sequence[tuple[float, str]] = ()
    relative: float = 0.01
    absolute: float = 0.0

    def near(self, value: float, target: float) -> bool:
        return math.isclose(value, target, rel_tol=self.relative, abs_tol=self.absolute)

    def __call__(self, answer: Any) -> None:
        value = number_of(answer)
        if self.near(value, self.right):
            return
        for trap, name in self.traps:
            if self.near(value, trap):
                raise Mistake(name)
        raise Mistake(f"{value:g} is too {'large' if value > self.right else 'small'}.")


@dataclass(frozen=True)
class Order(InOrder):
    """Items in a right order. `swapped` names the idea behind a pair in the wrong order: {("a", "b"): ...} is said
    when b is put before a."""

    right: Sequence[str]
    swapped: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def __call__(self, answer: Any) -> None:
        keys = self.plain(answer)
        if keys == list(self.right):
            return
        for (first, second), name in self.swapped.items():
            if keys.index(second) < keys.index(first):
                raise Mistake(name)
        at = next(i for i, (k, r) in enumerate(zip(keys, self.right, strict=False)) if k != r)
        raise Mistake(f"Read from the left, {keys[at]} is out of place at place {at + 1}.")


# ---- predictions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Guess(Value, Foreseen):
    """A number guessed before the run, good if within `relative` or `absolute` of the measured one. `low` and `high`
    are the possible values; `under` and `over` say what guessing too low or too high may mean."""

    low: float
    high: float
    under: str
    over: str
    relative: float = 0.0
    absolute: float = 0.0

    def __call__(self, answer: Any) -> None:
        value = number_of(answer)
        if not self.low <= value <= self.high:
            raise Mistake(f"{value:g} cannot be: it lies between {self.low:g} and {self.high:g}.")

    def compare(self, answer: Any, measured: Any) -> tuple[bool, str]:
        value, real = number_of(answer), number_of(measured)
        text = f"You predicted {value:g}; measured is {real:.4g}."
        if math.isclose(value, real, rel_tol=self.relative, abs_tol=self.absolute):
            return True, text
        return False, f"{text} {self.under if value < real else self.over}"


@dataclass(frozen=True)
class Pick(OneOf, Foreseen):
    """A choice guessed before the run. `if_wrong` has a word for each option, said when another one came true."""

    if_wrong: Mapping[str, str]

    def __post_init__(self) -> None:
        if set(self.options) != set(self.if_wrong):
            raise ValueError("pick: every option needs a word for the case that it does not come true")

    def compare(self, answer: Any, measured: Any) -> tuple[bool, str]:
        key, real = self.plain(answer), self.plain(measured)
        text = f"You predicted {key} ({self.options[key]}); measured is {real} ({self.options[real]})."
        return (True, text) if key == real else (False, f"{text} {self.if_wrong[key]}")


@dataclass(frozen=True)
class Ranking(InOrder, Foreseen):
    """An order guessed before the run, from the smallest to the largest. Measured values may come as a dictionary
    {item: value}. `swapped` as in Order."""

    swapped: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def compare(self, answer: Any, measured: Any) -> tuple[bool, str]:
        keys = self.plain(answer)
        real = (
            sorted(measured, key=lambda item: number_of(measured[item]))
            if isinstance(measured, Mapping)
            else self.plain(measured)
        )
        pairs = [(a, b) for i, a in enumerate(real) for b in real[i + 1 :]]
        turned = [(a, b) for a, b in pairs if keys.index(b) < keys.index(a)]
        text = f"You predicted {', '.join(keys)}; measured is {', '.join(real)}."
        if not turned:
            return True, text
        words = [self.swapped[pair] for pair in turned if pair in self.swapped]
        return False, " ".join([text, f"{len(turned)} of {len(pairs)} pairs are the other way round.", *words])


@dataclass(frozen=True, repr=False)
class Prediction(Exercise):
    """An exercise whose answer is only known after a run. `check` is the form of the answer; `lesson` is said when
    prediction and measurement are compared, whichever way it went."""

    lesson: str = ""

    @property
    def form(self) -> Foreseen:
        if not isinstance(self.check, Foreseen):
            raise TypeError(f"prediction {self.key}: check must be a form, not {type(self.check).__name__}")
        return self.check
