"""Questions and predictions as they are answered in a notebook: statement, answer and verdict in one place.

    ask(WHY_ROOT)                                 a question: choose, or write, and check
    sealed(FIRST_TALK, talk["right"], chart)      a prediction: what was measured, and what shows it, stay covered
                                                  until a guess is locked or the reader asks to be shown

A sealed result is computed all the same, so that the cells after it run; the code is there to be read. Where no widget
runs, `predict` and `compare` (progress.py) do the same in two cells.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go
import traitlets
from IPython.core.interactiveshell import InteractiveShell

from llama2lab.engine.errors import LabError
from llama2lab.lab.checking import Exercise, Mistake, Outcome, is_empty
from llama2lab.lab.explorer import with_html
from llama2lab.lab.picture import Picture
from llama2lab.lab.predictions import Guess, InOrder, Keyed, Prediction
from llama2lab.lab.progress import Progress, check, compare, predict
from llama2lab.report.look import GREY


class Asked(Picture):
    """A question or prediction on the page. The page sets `given`: {"answer": ...}, or {"show": True}, with a number
    that makes each press a change; `judge` turns it into `found`: {"status", "head", "message", "open"}, and of a
    prediction that is open {"guess", "measured"}."""

    given = traitlets.Dict().tag(sync=True)
    found = traitlets.Dict().tag(sync=True)

    def __init__(self, exercise: Exercise, judge: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        super().__init__(data=as_data(exercise))
        self.exercise = exercise
        self.observe(lambda change: self.set_trait("found", judge(change["new"])), "given")

    def __repr__(self) -> str:
        said = ": ".join(filter(None, (self.found.get("head"), self.found.get("message"))))
        return "\n  ".join(filter(None, (repr(self.exercise), said)))

    def static(self) -> str:
        said = html.escape(f"{self.found.get('head', '')}: {self.found.get('message', '')}".strip(": "))
        return self.exercise._repr_html_() + (said and f"<details><summary>Show</summary><p>{said}</p></details>")


class Sealed(w.VBox):
    """A prediction and, below it, what shows the result: there from the moment on that a guess is locked.

    `axis` ("x" or "y") is the axis of the figures on which the guess lies; it is drawn there as a dashed line."""

    def __init__(
        self, exercise: Prediction, measured: Any, *shows: Any, axis: str = "", progress: Progress | None = None
    ) -> None:
        self.exercise, self.measured, self.shows, self.axis = exercise, measured, shows, axis
        self.progress = progress or Progress()
        self.question, self.out = Asked(exercise, self.judge), w.Output()
        super().__init__([self.question, self.out])
        entry = _kept(self.progress, exercise)
        if "prediction" in entry or "measured" in entry:
            self.question.found = self.opened()

    def judge(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Lock the guess that the page has sent, or open without one."""
        if given.get("show"):
            return self.opened(seen=True)
        outcome = predict(self.exercise, given.get("answer"), self.progress)
        return self.opened() if outcome.status == "noted" else as_found(outcome)

    def opened(self, seen: bool = False) -> dict[str, Any]:
        """Compare, and show all. `seen` without a guess: no guess made later counts."""
        outcome = compare(self.exercise, self.measured, self.progress, seen=seen)
        guess = _kept(self.progress, self.exercise).get("prediction")
        mark = guess if isinstance(self.exercise.check, Guess) else None
        self.out.outputs = tuple(as_output(item, mark, self.axis) for item in self.shows if item is not None)
        found = as_found(outcome) | {"open": True} | ({} if guess is None else {"guess": guess})
        with suppress(Mistake):  # what cannot be compared is said in words (`compare`)
            found["measured"] = self.exercise.check.truth(self.measured)
        return found

    def __repr__(self) -> str:
        return repr(self.question)

    def static(self) -> str:
        """The statement, and the measured value folded away."""
        shows = [str(self.measured), *self.shows]
        folded = "".join(f"<p>{html.escape(s)}</p>" if isinstance(s, str) else as_html(s) for s in shows)
        return f"{self.question.static()}<details><summary>Measured</summary>{folded}</details>"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = with_html(super()._repr_mimebundle_(**kwargs), self.static())
        return {**bundle, "text/plain": repr(self)}  # ipywidgets cuts it


def ask(exercise: Exercise, answer: Any = None, progress: Progress | None = None) -> Asked:
    """A question to be answered on the page, or here: `ask(WHY_ROOT, "b")`.

    Raises:
        LabError: the exercise is a prediction, or wants code.
    """
    if isinstance(exercise, Prediction):
        raise LabError(f"{exercise.title} is a prediction: call sealed() with it and what was measured")
    if callable(exercise.solution):
        raise LabError(f"{exercise.title} wants code: call check() with it and your function")
    asked = Asked(exercise, lambda given: as_found(check(exercise, given.get("answer"), progress)))
    if not is_empty(answer):
        asked.found = as_found(check(exercise, answer, progress))
    elif _kept(progress or Progress(), exercise).get("status") == "passed":
        points = exercise.level.points
        passed = Outcome(exercise.key, exercise.title, "passed", exercise.lesson, points=points, of=points)
        asked.found = as_found(passed)
    return asked


def sealed(
    exercise: Prediction, measured: Any, *shows: Any, axis: str = "", progress: Progress | None = None
) -> Sealed:
    """A prediction whose result, `measured`, and what shows it (texts, figures, anything a notebook can show) are
    covered until a guess is locked. A guess of an earlier visit, or of `predict`, opens it at once.

    Raises:
        LabError: the exercise is no prediction.
    """
    if not isinstance(exercise, Prediction):
        raise LabError(f"{exercise.title} is no prediction: ask() is for a question, check() for code")
    return Sealed(exercise, measured, *shows, axis=axis, progress=progress)


# ---- what the page is given --------------------------------------------------------------------------------------


def as_data(exercise: Exercise) -> dict[str, Any]:
    """An exercise as the page draws it. `form` is how it is answered."""
    form: Any = exercise.check
    data = {
        "title": exercise.title,
        "task": exercise.task,
        "facts": exercise.facts,
        "hints": list(exercise.hints),
        "prediction": isinstance(exercise, Prediction),
        "form": "order" if isinstance(form, InOrder) else "choice" if isinstance(form, Keyed) else "number",
    }
    if isinstance(form, Keyed):
        data["options"] = [[key, words] for key, words in form.options.items()]
    if isinstance(form, Guess):
        data |= {"form": "guess", "low": form.low, "high": form.high}
    return data


def as_found(outcome: Outcome) -> dict[str, Any]:
    return {"status": outcome.status, "head": outcome.head, "message": outcome.message, "open": False}


def as_output(item: Any, guess: float | None, axis: str) -> dict[str, Any]:
    """Something shown as Jupyter keeps it: texts as they would be printed, figures with the guess as a dashed line."""
    if isinstance(item, str):
        return {"output_type": "stream", "name": "stdout", "text": f"{item}\n"}
    if isinstance(item, go.Figure):
        page = go.Figure(item)
        if axis and guess is not None:
            mark_guess(page, guess, axis)
        data = {"application/vnd.plotly.v1+json": json.loads(page.to_json()), "text/plain": "a figure"}
        return {"output_type": "display_data", "data": data, "metadata": {}}
    formatter = InteractiveShell.instance().display_formatter
    data, metadata = formatter.format(item) if formatter else ({"text/plain": repr(item)}, {})
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def as_html(item: Any) -> str:
    """What is shown, where it has a form in HTML."""
    form = None if isinstance(item, go.Figure) else getattr(item, "_repr_html_", None)
    return (form and form()) or ""


def mark_guess(fig: go.Figure, guess: float, axis: str) -> None:
    """A dashed line at the guess, across every panel of a figure."""
    line: dict[str, Any] = {"line": {"color": GREY, "dash": "dash", "width": 2}, "annotation_text": "your guess"}
    if axis == "y":
        fig.add_hline(guess, annotation_position="top left", **line)
    else:
        fig.add_vline(guess, annotation_position="top left", **line)


def _kept(progress: Progress, exercise: Exercise) -> dict[str, Any]:
    """What is known of an exercise; nothing where the file cannot be read, which `check` and `predict` say."""
    try:
        return progress.read().get(exercise.key, {})
    except LabError:
        return {}
