"""Work that one watches as a picture: it waits for Start, and is paused, gone on with and stopped; large curves, and at
every look what is written now. What was done is kept and shown again, in another kernel too, where it can go on."""

from __future__ import annotations

import contextlib
import html
import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import traitlets

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import read_as, write_atomic
from llama2lab.engine.identity import alone
from llama2lab.lab.job import Job
from llama2lab.lab.picture import Picture
from llama2lab.lab.pictures import bars, lines, table

PUSH_EVERY = 0.3  # seconds between two pictures of a job that runs
POINTS = 240  # of a curve; a screen shows no more
LISTED = 6  # looks in the picture at rest


@dataclass(frozen=True)
class Choice:
    """A control: `options` are (words, value). One that is `live` acts on work under way, any other begins another."""

    words: str
    options: Sequence[tuple[str, Any]]
    at: int = 0
    live: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart of the view, one at a time: its button's word, the name and unit of its axis; `level` is a line across,
    (value, words)."""

    key: str
    words: str
    y: str
    from_zero: bool = False
    level: tuple[float, str] | None = None


@dataclass
class Record:
    """What is kept of work: its length, the loop's log, what was seen now and then, and what else the view wants."""

    steps: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    looks: list[dict[str, Any]] = field(default_factory=list)  # each with its "step"
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """As a job would say it, in a kernel that has not touched this work."""
        return "not started" if not self.rows else "done" if len(self.rows) == self.steps else "stopped"


class LiveView(Picture):
    """The picture of a `Job`. A view of some work says what `folder` keeps it, how to `work`, what to `look` at after a
    step, and what is `seen` of its record; the rest is here.

    Nothing runs before Start is pressed. `data` is what stays, `shown` what changes; the page sends what is pressed.
    """

    shown = traitlets.Dict().tag(sync=True)

    def __init__(self, charts: Sequence[Chart], choices: Mapping[str, Choice], **data: Any):
        self.charts, self.choices = tuple(charts), dict(choices)
        self.at = {name: choice.at for name, choice in choices.items()}
        self.job, self.record = Job(self.work, self._changed), self.kept()
        self._drawing, self._drawn = threading.RLock(), 0.0
        controls = [
            {"name": name, "words": c.words, "live": c.live, "options": [words for words, _ in c.options]}
            for name, c in choices.items()
        ]
        whole = {"charts": [asdict(c) for c in charts], "choices": controls, **data}
        super().__init__(data=whole, shown=self._now())
        self.on_msg(self._pressed)

    # ---- what a view says of its work --------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Keeps the work of the values that are chosen."""
        raise NotImplementedError

    def work(self) -> Any:
        """Run the loop, in the job's thread."""
        raise NotImplementedError

    def look(self, done: int) -> None:
        """In the job's thread after each step and at its end: add to the record's looks where one is due."""

    def seen(self) -> dict[str, Any]:
        """`said` (a line of words), `lines` ({chart: [{"name", "kind", "points"}]}), `ends` of the horizontal axis,
        `looks` (each with "step", "x", "text", "note", and "fact" where one is asked), `table` (header, rows) or
        None."""
        raise NotImplementedError

    # ---- its state ---------------------------------------------------------------------------------------------------

    @property
    def values(self) -> dict[str, Any]:
        """What is chosen, by name."""
        return {name: choice.options[self.at[name]][1] for name, choice in self.choices.items()}

    @property
    def state(self) -> str:
        return self.record.state if self.job.state == "not started" else self.job.state

    def kept(self, folder: Path | None = None) -> Record:
        """The record in `folder` (that of the chosen values); an empty one where there is none, or none to be read."""
        path = (folder or self.folder) / "seen.json"
        with contextlib.suppress(LabError):
            if path.is_file():
                return read_as(Record, path, "remove the file: the work begins anew")
        return Record()

    def start(self) -> None:
        """Start, or go on; work that is done begins anew."""
        if self.state == "done":
            self.forget()
        self.job.start()

    def forget(self) -> None:
        """End the work, and remove what is kept of it. LabError where another notebook is at it."""
        self._end()
        with alone(self.folder, wait=False):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.fresh()

    def choose(self, name: str, at: int) -> None:
        """Another value. Work under way ends, unless the choice acts on it, and is kept."""
        choice = self.choices[name]
        if not choice.live:
            self._end()
        self.at[name] = at % len(choice.options)
        if not choice.live:
            self.fresh()
        self._push()

    def fresh(self) -> None:
        """A new job for the chosen values, and what was kept of them."""
        self.job, self.record = Job(self.work, self._changed), self.kept()
        self._push()

    def _end(self) -> None:
        if self.job.running:
            self.job.stop()
            with contextlib.suppress(LabError):  # its reason has been shown
                self.job.wait()

    def _pressed(self, _: Any, message: Any, __: Any) -> None:
        """What the page sends: {"press": one of the buttons} or {"choose": [name, place]}."""
        presses = {"start": self.start, "pause": self.job.pause, "stop": self.job.stop, "anew": self.forget}
        try:
            if press := presses.get(message.get("press", "")):
                press()
            elif "choose" in message:
                self.choose(*message["choose"])
        except LabError as e:
            self._push(str(e))

    def _changed(self) -> None:
        """At each step and each change of state; a step in the job's own thread."""
        job, done = self.job, len(self.job.rows)
        mine, looked = threading.current_thread() is job._thread, False
        if job.steps and mine:
            self.record.steps, self.record.rows = job.steps, list(job.rows)
            before = self.record.looks
            self.record.looks = [one for one in before if one["step"] <= done]
            self.look(done)
            looked = self.record.looks != before
            if looked or job.state != "running":
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomic(self.folder / "seen.json", json.dumps(asdict(self.record)))
        if looked or job.state != "running" or time.monotonic() - self._drawn > PUSH_EVERY:
            self._push()

    def _push(self, trouble: str = "") -> None:
        with self._drawing:
            self._drawn = time.monotonic()
            self.shown = self._now() | ({"said": trouble} if trouble else {})

    def _now(self) -> dict[str, Any]:
        done, of = len(self.record.rows), self.record.steps
        return {"state": self.state, "at": list(self.at.values()), "done": done, "of": of, **self.seen()}

    # ---- at rest -----------------------------------------------------------------------------------------------------

    def static(self) -> str:
        d, now = self.data, self.shown
        parts = [f"<p><strong>{html.escape(d['title'])}</strong></p><p>{html.escape(now['said'])}</p>"]
        for chart in d["charts"]:
            curves = [(one["name"], [p[:2] for p in one["points"]]) for one in now["lines"].get(chart["key"], [])]
            if any(points for _, points in curves):
                parts.append(lines(curves, f"{chart['words']} by {d['x']}", d["x"], chart["y"], width=680))
        if now["looks"]:
            some = spread(now["looks"], LISTED)
            told = [(one["step"], one["text"], one.get("note", "")) for one in some]
            parts.append(f"<p>{html.escape(d['asked'])}</p>" + table((d["unit"], "what it writes", ""), told))
        if d.get("fact"):
            fact = (now["looks"][-1] if now["looks"] else d["fact"]["goal"])["fact"]
            said = f"{d['fact']['asked']} ... {d['fact']['value']}"
            parts.append(f"<p>{html.escape(said)}</p>" + bars([fact["true"], *fact["rivals"]], said, 1.0))
        if now["table"]:
            parts.append(table(*now["table"]))
        return "".join(parts)


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the rows, the first and the last among them."""
    step = max(1.0, (len(rows) - 1) / (most - 1))
    return [rows[round(i * step)] for i in range(min(most, len(rows)))]


def smooth(values: Sequence[float], width: int = 9) -> list[float]:
    """The mean of each value and as many before it as after it, at most `width` in all: a mean of those before alone
    would lag behind a loss that falls."""
    n, half = len(values), width // 2
    reach = [min(half, i, n - 1 - i) for i in range(n)]
    return [sum(values[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(reach)]
