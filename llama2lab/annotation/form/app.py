"""The annotation form for people who know no notebooks, as `llama2lab annotate` serves it.

A visitor gives a name, reads the guidelines of a task, practises on gold pairs that are explained, tries out some more,
and goes on to the real ones if enough of the choices agree (standing.py). A name goes with a personal code (codes.py),
unless a JupyterHub or a class's login on PostgreSQL says who it is.
"""

from __future__ import annotations

import json
import os
from typing import Any

from llama2lab.annotation.form.standing import Settings, Standing
from llama2lab.annotation.form.widget import AnnotationForm
from llama2lab.annotation.store import codes
from llama2lab.annotation.store.checks import clean_name
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine.errors import LabError

URL_VARIABLE = "LLAMA2LAB_ANNOTATE_URL"
SETTINGS_VARIABLE = "LLAMA2LAB_ANNOTATE"
WHERE = "the place where labels are kept"  # what visitors read instead of a path or a URL
DEFAULTS = Settings()


class Application(AnnotationForm):
    """The annotator's form with a name, a code, guidelines and a qualification before it.

    What it says is read by strangers: nothing about where the store is, and of an unforeseen error only its kind.
    """

    _is_app = True

    def __init__(self, store: Any, settings: Settings = DEFAULTS, **kwargs: Any):
        self._read: set[str | None] = set()  # the tasks whose guidelines the visitor has been through
        self._trying_again: dict[str | None, int] = {}  # by task: the failed attempt after which the visitor went on
        self._was_passed: dict[str | None, bool] = {}
        super().__init__(store, "", settings.kind, settings.seed, goal=settings.goal, **kwargs)
        self._settings = settings
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
        self._annotator, self._chosen = "", None  # whoever was here before
        self._read, self._trying_again, self._was_passed = set(), {}, {}
        if self._settings.name is not None:
            self._name, first = clean_name(self._settings.name), False
            self._annotator = self._open().annotator(self._name)
        elif name is None:
            return {"stage": "name"}
        else:
            self._name = clean_name(name)
            self._annotator, first = codes.enter(self._open(), self._name, code)
        return {"stage": "ready", "annotator": self._name, "first": first}

    def _work(self, wish: str) -> dict[str, Any]:
        task, standing = self._task, self._standing()
        if task not in self._was_passed:
            self._was_passed[task] = standing.passed
            counts = self._progress()
            if counts.done + counts.skipped:
                self._read.add(task)
        if wish == "begin":
            self._read.add(task)
        elif wish == "again":
            self._trying_again[task] = standing.complete
            self._read.discard(task)
        attempt = standing.words(standing.complete + 1)
        to_come = {"practice": standing.practice, "qualification": None if standing.passed else attempt}
        if standing.passed or standing.practising:
            if task not in self._read:
                return {"stage": "guidelines", **to_come} if self._progress().open else super()._work(wish)
            answer = super()._work(wish)
            if not standing.practising and not self._was_passed[task]:
                self._was_passed[task] = True
                answer["banner"] = self._passed_words(standing)
            return answer
        if standing.over or standing.complete > self._trying_again.get(task, 0):
            return {"stage": "failed", "qualification": standing.words(standing.complete)}
        if task not in self._read:
            return {"stage": "guidelines", **to_come}
        return {**self._item(self._claim(gold_first=True), standing), "qualification": attempt}

    def _passed_words(self, standing: Standing) -> str:
        agreed = f"{standing.agreed(standing.passed_in)} of {standing.number} choices"
        return f"You have passed: {agreed} were the ones the guidelines lead to. From here on these are the real pairs."


def application() -> Application:
    """The application that the environment describes: what the packaged notebook shows."""
    url = os.environ.pop(URL_VARIABLE, None)
    if not url:
        raise LabError("this notebook is served by the command: llama2lab annotate URL")
    return Application(url, Settings(**json.loads(os.environ.get(SETTINGS_VARIABLE, "{}"))))
