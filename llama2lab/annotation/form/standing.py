"""How far a person is with the gold pairs that come before the real ones: practice, and the qualification.

Gold pairs are those whose better answer is known. The first ones are **practice**: after each the page says what was
wanted and why, and it cannot be changed any more. Then comes the **qualification**, about which nothing is said until
an attempt is over: `number` gold pairs of which enough must agree; whoever fails reads again and gets as many *other*
ones, up to `attempts` times, so that nobody passes by trying the same pairs until they fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama2lab.annotation.store import queue
from llama2lab.engine.errors import LabError

GOAL = 20  # pairs, then a rest


@dataclass(frozen=True)
class Settings:
    """What whoever runs the form decides."""

    kind: str | None = None
    seed: int = 0
    number: int = 5  # gold pairs in an attempt; 0: no qualification
    mark: float = 0.8  # the share of them that must agree
    attempts: int = 2
    name: str | None = None  # whose form this is, where that is known; None: visitors say it, and give their code
    practice: int = 3  # gold pairs before that, each explained
    goal: int = GOAL  # pairs of a session; 0: none is set

    def __post_init__(self) -> None:
        if self.number < 0 or self.attempts < 1:
            raise LabError("a qualification has 0 or more pairs and at least one attempt")
        if not 0 <= self.mark <= 1:
            raise LabError(f"the passing mark is a share from 0 to 1, not {self.mark}")
        if self.practice < 0 or self.goal < 0:
            raise LabError("practice and goal are numbers of pairs: 0 or more")


@dataclass(frozen=True)
class Standing:
    """One person's, in one task. `outcomes`: whether each gold pair agreed, in the order in which they were first
    answered."""

    number: int
    needed: int
    attempts: int
    outcomes: tuple[bool, ...]
    items: tuple[str, ...] = ()  # the gold pairs of the outcomes, where the store tells
    practice: int = 0

    @classmethod
    def of(cls, found: queue.Qualification, settings: Settings) -> Standing:
        """Practice takes what the first attempt leaves. Fewer gold pairs than asked for make a shorter qualification;
        none, none."""
        practice = min(settings.practice, max(0, found.wanted - settings.number))
        left = found.wanted - practice
        number = min(settings.number, left)
        attempts = min(settings.attempts, left // number) if number else 0
        needed = math.ceil(settings.mark * number - 1e-9)
        return cls(number, needed, attempts, found.outcomes, found.items, practice)

    @property
    def practised(self) -> int:
        return min(self.practice, len(self.outcomes))

    @property
    def practising(self) -> bool:
        return self.practised < self.practice

    @property
    def tried(self) -> tuple[bool, ...]:
        """The outcomes after practice."""
        return self.outcomes[self.practice :]

    @property
    def complete(self) -> int:
        """Attempts that are over."""
        return min(self.attempts, len(self.tried) // self.number) if self.number else 0

    def agreed(self, attempt: int) -> int:
        return sum(self.tried[(attempt - 1) * self.number : attempt * self.number])

    @property
    def passed_in(self) -> int:
        """The attempt that was good enough; 0: none so far. Gold pairs after it come among the real ones."""
        return next((k for k in range(1, self.complete + 1) if self.agreed(k) >= self.needed), 0)

    @property
    def passed(self) -> bool:
        return not self.number or self.passed_in > 0

    @property
    def over(self) -> bool:
        return not self.passed and self.complete == self.attempts

    @property
    def closed(self) -> int:
        """Practice, and attempts that are over, cannot be changed any more: they are a person's first pairs."""
        return self.practised + (self.passed_in or self.complete) * self.number

    def words(self, attempt: int) -> dict[str, int]:
        """What the page may know of an attempt: never how many agree while it goes on."""
        done = min(len(self.tried) - (attempt - 1) * self.number, self.number)
        known = {"number": self.number, "needed": self.needed, "attempts": self.attempts}
        agreed = {"agreed": self.agreed(attempt)} if done == self.number else {}
        return {**known, "attempt": attempt, "done": done, **agreed}
