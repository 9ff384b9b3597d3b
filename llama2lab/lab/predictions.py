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


class Form(ABC):
    """What an answer looks like. Called with an answer it raises Mistake for one that is wrong (a question) or that
    is none at all (a prediction)."""

    @abstractmethod
    def plain(self, answer: Any) -> Any:
        """The answer as JSON can keep it."""

    def __call__(self, answer: Any) -> None:
        self.plain(answer)

    @property
    def lines(self) -> tuple[str, ...]:
        """What there is to choose from, for the reader."""
        return ()


class Foreseen(Form):
    """The form of a prediction."""

    @abstractmethod
    def truth(self, measured: Any) -> Any:
        """What was measured, in the form of an answer."""

    @abstractmethod
    def compare(self, answer: Any, measured: Any) -> tuple[bool, str]:
        """Whether the prediction came true, and what is to be said about it."""


class Value(Form):
    """A finite number; text like "0.5" and "50 %" is read too."""

    def plain(self, answer: Any) -> float:
        return number_of(answer)


def number_of(answer: Any) -> float:
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


@dataclass
class Keyed(Form):
    """Keys of a few `options`, each with its words."""

    options: Mapping[str, str]

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(f"{key}: {text}" for key, text in self.options.items())


class OneOf(Keyed):
    """One of several."""

    def plain(self, answer: Any) -> str:
        key = str(answer).strip().lower()
        if key not in self.options:
            raise Mistake(f"{str(answer)[:60]!r} is none of the choices; give one of {', '.join(self.options)}.")
        return key


class InOrder(Keyed):
    """All of several, in an order."""

    def plain(self, answer: Any) -> list[str]:
        names = ", ".join(self.options)
        if isinstance(answer, str):
            answer = answer.replace(">", " ").replace("<", " ").replace(",", " ").split()
        try:
            keys = [str(a).strip().lower() for a in answer]
        except TypeError:
            raise Mistake(f"A list of {names} is expected, in your order.") from None
        if sorted(keys) != sorted(self.options):
            given = ", ".join(keys)[:80] or "none"
            raise Mistake(f"Each of {names} must stand exactly once in the list; here are {given}.")
        return keys


# ---- questions ---------------------------------------------------------------------------------------------------


class Choice(OneOf):
    """One of several. The right one is given by its words; a wrong one by its words, and the misunderstanding behind
    it: Choice(a="the right one", b=("a wrong one", "Why one may think so, and why it is not so."))."""

    def __init__(self, **options: str | tuple[str, str]):
        super().__init__({key: option if isinstance(option, str) else option[0] for key, option in options.items()})
        self.wrong = {key: option[1] for key, option in options.items() if not isinstance(option, str)}
        (self.right,) = options.keys() - self.wrong.keys()

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


@dataclass
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

    def truth(self, measured: Any) -> float:
        return number_of(measured)

    def compare(self, answer: Any, measured: Any) -> tuple[bool, str]:
        value, real = number_of(answer), self.truth(measured)
        text = f"You predicted {value:g}; measured is {real:.4g}."
        if math.isclose(value, real, rel_tol=self.relative, abs_tol=self.absolute):
            return True, text
        return False, f"{text} {self.under if value < real else self.over}"


class Pick(OneOf, Foreseen):
    """A choice guessed before the run. Each option is given by its words, and what is said to whoever picked it when
    another one came true."""

    def __init__(self, **options: tuple[str, str]):
        super().__init__({key: words for key, (words, _) in options.items()})
        self.if_wrong = {key: said for key, (_, said) in options.items()}

    def truth(self, measured: Any) -> str:
        return self.plain(measured)

    def compare(self, answer: Any, measured: Any) -> tuple[bool, str]:
        key, real = self.plain(answer), self.truth(measured)
        text = f"You predicted {key} ({self.options[key]}); measured is {real} ({self.options[real]})."
        return (True, text) if key == real else (False, f"{text} {self.if_wrong[key]}")


@dataclass
class Ranking(InOrder, Foreseen):
    """An order guessed before the run, from the smallest to the largest. Measured values may come as a dictionary
    {item: value}. `swapped` as in Order."""

    swapped: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def truth(self, measured: Any) -> list[str]:
        if isinstance(measured, Mapping):
            return sorted(measured, key=lambda item: number_of(measured[item]))
        return self.plain(measured)

    def compare(self, answer: Any, measured: Any) -> tuple[bool, str]:
        keys, real = self.plain(answer), self.truth(measured)
        pairs = [(a, b) for i, a in enumerate(real) for b in real[i + 1 :]]
        turned = [(a, b) for a, b in pairs if keys.index(b) < keys.index(a)]
        text = f"You predicted {', '.join(keys)}; measured is {', '.join(real)}."
        if not turned:
            return True, text
        words = [self.swapped[pair] for pair in turned if pair in self.swapped]
        return False, " ".join([text, f"{len(turned)} of {len(pairs)} pairs are the other way round.", *words])


@dataclass(frozen=True, repr=False)
class Prediction(Exercise):
    """An exercise whose answer is only known after a run. `check` is the form of the answer; the `lesson` is said when
    prediction and measurement are compared, whichever way it went."""

    check: Foreseen
