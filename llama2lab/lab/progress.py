"""Progress, kept in one JSON file beside the notebooks, or in the folder that LLAMA2LAB_PROGRESS names.

The file is written whole or not at all. One that cannot be read is set aside under another name, and said so: it may
be mended by hand. What was passed once stays passed.
"""

from __future__ import annotations

import html
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import Number, disk_errors, write_atomic
from llama2lab.engine.validation import fault
from llama2lab.lab.call import Fault, Status
from llama2lab.lab.checking import SECONDS, WORDS, Exercise, Mistake, Outcome, is_empty, plain, run
from llama2lab.lab.predictions import Prediction

FOLDER = "LLAMA2LAB_PROGRESS"
FILE = "lab-progress.json"
# The better status of two is kept.
RANK: dict[str, int] = {"not attempted": 0, "error": 1, "stopped": 1, "failed": 1, "noted": 2, "passed": 3}
NEW = {"status": "not attempted", "points": 0, "attempts": 0}  # an entry before the first attempt


@with_config(ConfigDict(extra="allow"))
class Entry(TypedDict):
    """What is kept of an exercise, as far as it is read again here."""

    status: Status
    points: Number


class Kept(TypedDict):
    exercises: dict[str, Entry]


KEPT = TypeAdapter(Kept)


def not_saved(outcome: Outcome, why: LabError) -> Outcome:
    """The outcome, which is shown all the same."""
    return replace(outcome, message=f"{outcome.message} (Your progress was not saved: {why})".strip())


class Progress:
    """The entries of the progress file: {key: {status, points, of, title, attempts, first, last, ...}}. Every call
    reads the file anew, so that several notebooks can be open."""

    def __init__(self, folder: Path | str | None = None):
        self.path = Path(os.path.expanduser(folder or os.environ.get(FOLDER) or ".")) / FILE

    def read(self) -> dict[str, Any]:
        """All entries; none if there is no file yet. A damaged file is set aside with a warning."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as e:
            raise LabError(f"{self.path} cannot be read: {e.strerror or e}; mend its permissions") from e
        try:
            return KEPT.validate_json(text)["exercises"]
        except ValidationError as e:
            return self._set_aside(fault(e)[:100])

    def _set_aside(self, why: str) -> dict[str, Any]:
        number = 1
        while (aside := self.path.with_name(f"lab-progress.damaged-{number}.json")).exists():
            number += 1
        with disk_errors(self.path):
            os.replace(self.path, aside)
        warnings.warn(
            f"The progress file was damaged ({why}). It is kept as {aside.name}, and a new one is begun; "
            "your code is in the notebooks, run their cells again to fill it.",
            stacklevel=4,
        )
        return {}

    def change(self, key: str, attempt: bool = True, **changes: Any) -> dict[str, Any]:
        """Merge changes into an entry; the entry as it is then."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with suppress(OSError):  # some network file systems have no locks
                stack.enter_context(FileLock(self.path.with_name(f".{FILE}.lock")))
            entries = self.read()
            now = time.strftime("%Y-%m-%dT%H:%M:%S")
            entry = entries.setdefault(key, {**NEW, "first": now})
            if RANK[changes.get("status", entry["status"])] < RANK[entry["status"]]:
                changes = {k: v for k, v in changes.items() if k not in ("status", "points")}
            entry.update(changes, last=now)
            entry["attempts"] += attempt
            write_atomic(self.path, json.dumps({"version": 1, "exercises": entries}, indent=1, ensure_ascii=False))
            return entry

    def record(self, outcome: Outcome) -> Outcome:
        """Keep an outcome; one that cannot be saved says so, and is still shown. Not attempted leaves no mark."""
        if outcome.status == "not attempted":
            return outcome
        try:
            self.change(outcome.key, status=outcome.status, points=outcome.points, of=outcome.of, title=outcome.title)
        except LabError as e:
            return not_saved(outcome, e)
        return outcome

    def summary(self, exercises: Iterable[Exercise] = ()) -> Summary:
        """A table of these exercises, or of all that the file knows."""
        entries = self.read()
        wanted = [(e.key, e.title, e.level.points) for e in exercises] or [
            (key, entry.get("title", key), entry.get("of", 0)) for key, entry in entries.items()
        ]
        return Summary([{**NEW, **entries.get(key, {}), "title": title, "of": of} for key, title, of in wanted])


def is_done(row: Mapping[str, Any]) -> bool:
    """Passed, or a prediction that has met its measurement."""
    return row["status"] == "passed" or (row["status"] == "noted" and row["points"] > 0)


@dataclass(frozen=True)
class Summary:
    """Progress as a table, in text and in HTML; `rows` are entries."""

    rows: Sequence[dict[str, Any]]

    @property
    def head(self) -> str:
        done = sum(map(is_done, self.rows))
        points, of = (sum(row[key] for row in self.rows) for key in ("points", "of"))
        return f"{done} of {len(self.rows)} exercises done, {points:g} of {of} points"

    def __repr__(self) -> str:
        width = max((len(row["title"]) for row in self.rows), default=0)
        lines = (f"  {r['title']:<{width}}  {r['points']:g}/{r['of']}  {WORDS[r['status']]}" for r in self.rows)
        return "\n".join([self.head, *lines])

    def _repr_html_(self) -> str:
        body = "".join(
            f'<tr><th scope="row" style="text-align: left">{html.escape(row["title"])}</th>'
            f"<td>{html.escape(WORDS[row['status']])}</td><td>{row['points']:g} of {row['of']}</td>"
            f"<td>{row['attempts']}</td></tr>"
            for row in self.rows
        )
        return (
            '<table style="color: var(--jp-content-font-color1, inherit)">'
            f"<caption>{html.escape(self.head)}</caption><thead><tr>"
            + "".join(f'<th scope="col">{name}</th>' for name in ("Exercise", "State", "Points", "Attempts"))
            + f"</tr></thead><tbody>{body}</tbody></table>"
        )


# ---- what a notebook calls ---------------------------------------------------------------------------------------


def check(exercise: Exercise, answer: Any, progress: Progress | None = None, seconds: float = SECONDS) -> Outcome:
    """Check an answer and keep the outcome. For a prediction, use `predict` and `compare`."""
    if isinstance(exercise, Prediction):
        raise LabError(f"{exercise.title} is a prediction: predict(...) before the run, compare(...) after it")
    return (progress or Progress()).record(run(exercise, answer, seconds, draw=True))


def predict(exercise: Prediction, answer: Any, progress: Progress | None = None) -> Outcome:
    """Keep a prediction. It can be changed until it has been compared with a measurement."""
    progress = progress or Progress()
    outcome = partial(Outcome, exercise.key, exercise.title)
    if is_empty(answer):
        return outcome("not attempted", "Predict first: a guess that can be wrong teaches more than a result.")
    try:
        answer = plain(answer)
        exercise.check(answer)
        kept = exercise.check.plain(answer)
    except (Mistake, Fault) as e:
        return outcome("failed", str(e))
    try:
        entry = progress.read().get(exercise.key, {})
        if "measured" in entry:
            first = entry.get("prediction", "none")
            return outcome("noted", f"The result is known already; your first prediction, {first}, stays.")
        progress.change(exercise.key, attempt=False, of=exercise.level.points, title=exercise.title, prediction=kept)
    except LabError as e:
        return outcome("failed", f"Your prediction was not saved: {e}")
    return outcome("noted", f"You predict {kept}. Now run the experiment.")


def compare(exercise: Prediction, measured: Any, progress: Progress | None = None, seen: bool = False) -> Outcome:
    """Hold the kept prediction against the measurement. Whoever predicted gets the points, right or wrong. `seen`: who
    has not predicted has been shown the result, and what is predicted from now on does not count."""
    progress, points = progress or Progress(), exercise.level.points
    outcome = partial(Outcome, exercise.key, exercise.title)
    try:
        entry = progress.read().get(exercise.key, {})
    except LabError as e:
        return outcome("failed", str(e))
    if "prediction" not in entry:
        if seen:
            with suppress(LabError):  # nothing is lost if it cannot be kept
                progress.change(exercise.key, attempt=False, measured=str(measured)[:200], title=exercise.title)
        return outcome("not attempted", f"There is no prediction to compare with. {exercise.lesson}".strip(), of=points)
    try:
        measured = plain(measured)
        right, text = exercise.check.compare(entry["prediction"], measured)
    except (Mistake, Fault) as e:
        return outcome("failed", f"The measurement cannot be compared: {e}")
    status: Status = "passed" if right else "noted"
    found = outcome(status, f"{text} {exercise.lesson}".strip(), points=points, of=points)
    if "measured" not in entry:
        try:
            progress.change(exercise.key, attempt=False, measured=str(measured)[:200])
        except LabError as e:
            return not_saved(found, e)
    return progress.record(found)
