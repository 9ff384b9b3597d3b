"""The annotation form for people who know no notebooks, as `llama2lab annotate` serves it.

A visitor gives a name, reads the guidelines, tries out some gold pairs, and goes on to the real ones if enough of the
choices agree. An attempt is `number` gold pairs; whoever fails reads again and gets as many *other* gold pairs, up to
`attempts` times, so that nobody passes by trying the same pairs until they fit. A name goes with a personal code
(codes.py), unless a JupyterHub or a class's login on PostgreSQL says who it is.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any

from llama2lab.annotation.form.widget import AnnotationForm, Skip, Submit
from llama2lab.annotation.store import codes, queue
from llama2lab.annotation.store.checks import clean_name
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine.errors import LabError

URL_VARIABLE = "LLAMA2LAB_ANNOTATE_URL"
SETTINGS_VARIABLE = "LLAMA2LAB_ANNOTATE"
WHERE = "the place where labels are kept"  # what visitors read instead of a path or a URL
OVER = "the pairs of an attempt that is over cannot be changed any more"


@dataclass(frozen=True)
class Settings:
    """What whoever runs the application decides."""

    kind: str | None = None
    seed: int = 0
    number: int = 5  # gold pairs in an attempt; 0: no qualification
    mark: float = 0.8  # the share of them that must agree
    attempts: int = 2
    name: str | None = None  # whose form this is, where that is known; None: visitors say it, and give their code

    def __post_init__(self) -> None:
        if self.number < 0 or self.attempts < 1:
            raise LabError("a qualification has 0 or more pairs and at least one attempt")
        if not 0 <= self.mark <= 1:
            raise LabError(f"the passing mark is a share from 0 to 1, not {self.mark}")


@dataclass(frozen=True)
class Standing:
    """How far a visitor is with the qualification."""

    number: int
    needed: int
    attempts: int
    outcomes: tuple[bool, ...]
    items: tuple[str, ...] = ()  # the gold pairs of the outcomes, where the store tells

    @classmethod
    def of(cls, found: queue.Qualification, settings: Settings) -> Standing:
        """Fewer gold pairs than asked for make a shorter qualification; none, none."""
        number = min(settings.number, found.wanted)
        attempts = min(settings.attempts, found.wanted // number) if number else 0
        return cls(number, math.ceil(settings.mark * number - 1e-9), attempts, found.outcomes, found.items)

    @property
    def complete(self) -> int:
        """Attempts that are over."""
        return min(self.attempts, len(self.outcomes) // self.number) if self.number else 0

    def agreed(self, attempt: int) -> int:
        return sum(self.outcomes[(attempt - 1) * self.number : attempt * self.number])

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

    def words(self, attempt: int) -> dict[str, int]:
        """What the page may know: never how many agree while an attempt goes on."""
        done = min(len(self.outcomes) - (attempt - 1) * self.number, self.number)
        known = {"number": self.number, "needed": self.needed, "attempts": self.attempts}
        agreed = {"agreed": self.agreed(attempt)} if done == self.number else {}
        return {**known, "attempt": attempt, "done": done, **agreed}


class Application(AnnotationForm):
    """The annotator's form with a name, a code, guidelines and a qualification before it.

    What it says is read by strangers: nothing about where the store is, and of an unforeseen error only its kind.
    """

    _is_app = True

    def __init__(self, store: Any, settings: Settings = Settings(), **kwargs: Any):
        self._settings = settings
        self._read = False  # whether the visitor has been through the guidelines
        self._trying_again = 0  # the failed attempt after which the visitor chose to go on
        self._was_passed = True
        super().__init__(store, "", settings.kind, settings.seed, **kwargs)
        self._config = {**self._config, "named": settings.name is not None}

    def __repr__(self) -> str:
        return "Application()"

    def _plain_text(self) -> str:
        return "The annotation form. It needs a browser in which scripts may run."

    def _fault_words(self, e: Exception) -> str:
        return f"a fault in the lab itself ({type(e).__name__}); please tell whoever runs this"

    def _open(self) -> Store:
        if self._store is None:
            self._store = open_store(self._url, create=False, where=WHERE)
        return self._store

    def _start(self, name: str | None, code: str | None = None) -> dict[str, Any]:
        self._annotator = ""  # whoever was here before
        self._read, self._trying_again = False, 0
        if self._settings.name is not None:
            self._name, first = clean_name(self._settings.name), False
            self._annotator = self._open().annotator(self._name)
        elif name is None:
            return {"stage": "name"}
        else:
            self._name = clean_name(name)
            self._annotator, first = codes.enter(self._open(), self._name, code)
        counts = self._progress()
        self._read = counts.done + counts.skipped > 0
        self._was_passed = self._standing().passed
        return {"stage": "ready", "annotator": self._name, "first": first}

    def _standing(self) -> Standing:
        return Standing.of(queue.qualify(self._open(), self._annotator, kind=self._settings.kind), self._settings)

    def _next(self, wish: str) -> dict[str, Any]:
        standing = self._standing()
        if wish == "begin":
            self._read = True
        elif wish == "again":
            self._trying_again, self._read = standing.complete, False
        if standing.passed:
            if not self._read:
                return {"stage": "guidelines", "qualification": None}
            answer = super()._next(wish)
            if not self._was_passed:
                self._was_passed = True
                answer["banner"] = "You have passed. From here on these are the real pairs. Thank you for helping!"
            return {**answer, "first_index": self._first(standing)}
        if standing.over or standing.complete > self._trying_again:
            return {"stage": "failed", "qualification": standing.words(standing.complete)}
        attempt = standing.words(standing.complete + 1)
        if not self._read:
            return {"stage": "guidelines", "qualification": attempt}
        task = self._claim(gold_first=True)
        return {**self._item(task), "qualification": attempt, "first_index": self._first(standing)}

    def _first(self, standing: Standing) -> int:
        """Attempts that are over cannot be changed any more: they are the visitor's first pairs."""
        return (standing.passed_in or standing.complete) * standing.number

    def _refuse_over(self, item_id: str, label_id: str | None) -> None:
        """LabError for a pair of an attempt that is over, unless it is about the very label that it has."""
        standing = self._standing()
        first, history = self._first(standing), self._history()
        # Gold pairs are the first ones, unless there was no qualification when some pairs were answered.
        over = set(standing.items[:first]) or {past.task.item_id for past in history[:first]}
        if any(past.task.item_id == item_id in over and past.label.label_id != label_id for past in history):
            raise LabError(OVER)

    def _past(self, index: int) -> dict[str, Any]:
        history = self._history()
        if index < len(history):
            self._refuse_over(history[index].task.item_id, None)
        return super()._past(index)

    def _save(self, message: Submit | Skip) -> dict[str, Any]:
        self._refuse_over(message.item_id, message.label_id)
        return super()._save(message)


def application() -> Application:
    """The application that the environment describes: what the packaged notebook shows."""
    url = os.environ.pop(URL_VARIABLE, None)
    if not url:
        raise LabError("this notebook is served by the command: llama2lab annotate URL")
    return Application(url, Settings(**json.loads(os.environ.get(SETTINGS_VARIABLE, "{}"))))
