"""The live panel of a language model's training: pretraining and supervised fine-tuning."""

from __future__ import annotations

import html
import json
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as w
from IPython.display import HTML

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import read_json, write_atomic
from llama2lab.lab import pictures
from llama2lab.lab.explorer import Explorer, button, dropdown
from llama2lab.lab.job import ENDS, Job
from llama2lab.lab.live import Training
from llama2lab.model.network import Llama

Curve = list[tuple[float, float]]


class TrainingPanel(Explorer):
    """A training that one watches: its loss on what it reads and on held-out text, the rate, the speed, the time that
    remains, and samples.

    `setup(**values)` makes the `Training` for the chosen values, in the job's thread; `choices` are the names and
    options of the controls, each one's default first. Every choice keeps its work in a folder of its own, so that
    stopping, changing, going back and restarting the kernel lose nothing; curves of earlier choices stay in the
    picture. `wait()` in the next cell starts what was not started: so 'Run All' trains to the end.
    """

    def __init__(self, title: str, setup: Callable[..., Training], every: int = 15, **choices: Sequence[Any]):
        self.setup, self.every = setup, every
        self.job = Job(self._work, self._changed)
        self.training: Training | None = None
        self.notes: list[dict[str, Any]] = []  # {"step", "held_out", "sample"}
        self.earlier: dict[str, Curve] = {}
        self._drawn = 0.0
        self.controls = {
            name: dropdown(name.replace("_", " "), options, width="auto") for name, options in choices.items()
        }
        self.buttons = {
            name: button(name, words, press, layout=w.Layout(width="auto"))
            for name, words, press in (
                ("Start", "Start, or go on where it was stopped", lambda: self.job.start()),
                ("Pause", "Wait after the step under way", lambda: self.job.pause()),
                ("Stop", "Stop after the step under way; the work is kept", lambda: self.job.stop()),
                ("Forget", "Forget what was trained with these choices", self._forget),
            )
        }
        super().__init__(title, [*self.controls.values(), *self.buttons.values()], watch=False)
        for control in self.controls.values():
            control.observe(self._choose, "value")
        self.redraw()

    @property
    def values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    @property
    def model(self) -> Llama:
        """The model as it is now; LabError before the start."""
        if self.training is None:
            raise LabError("nothing is trained yet: press Start, or run panel.wait()")
        return self.training.model

    @property
    def speed(self) -> float:
        """Tokens a second, over the last steps."""
        last = self.job.rows[-20:]
        return len(last) * self.training.tokens / sum(r["seconds"] for r in last) if last and self.training else 0.0

    def wait(self) -> HTML:
        """To the end; gives the picture. Starts what was not started. The kernel's stop button stops the training,
        which keeps its work."""
        self.job.wait()
        return HTML(self.static())

    def draw(self) -> str:
        """The curves, where the training stands in words, and the last samples."""
        job, tokens = self.job, self.training.tokens / 1000 if self.training else 0.0
        losses = smooth([row["loss"] for row in job.rows])
        series = [
            ("training", [(i * tokens, x) for i, x in enumerate(losses, 1)]),
            ("held out", [(n["step"] * tokens, n["held_out"]) for n in self.notes]),
            *self.earlier.items(),
        ]
        last = job.rows[-1] if job.rows else None
        words = [{"not started": "Press Start, or run the next cell.", "failed": job.error}.get(job.state, job.state)]
        if job.running and not job.rows:
            words.append("the data are prepared")
        if last:
            left = (job.steps - len(job.rows)) * sum(r["seconds"] for r in job.rows) / len(job.rows)
            words += [
                f"step {len(job.rows)} of {job.steps}",
                f"loss {last['loss']:.3f} nats a token",
                f"learning rate {last['lr']:.1e}",
                f"{self.speed:,.0f} tokens a second",
            ]
            words += [f"about {left:.0f} s to go"] if left else []
        table = pictures.table(("step", "what it writes"), [(n["step"], n["sample"]) for n in spread(self.notes, 6)])
        return (
            f"<p>{html.escape('; '.join(words))}</p>"
            + pictures.lines(series, "loss by tokens", "thousand tokens", "loss, nats a token", width=680)
            + (table if self.notes else "")
        )

    def _work(self) -> Any:
        if self.training is None:
            self.training = self.setup(**self.values)
            path = self.training.folder / "panel.json"
            self.notes = read_json(path) if path.is_file() else []
        return self.training.train()

    def _changed(self) -> None:
        """In the job's thread, at each step: measure now and then, redraw at most twice a second."""
        done, training = len(self.job.rows), self.training
        due = done % self.every == 0 or done == self.job.steps
        new = all(n["step"] != done for n in self.notes)
        if training and self.job.steps and due and new and self.job.state == "running":
            self.notes = [n for n in self.notes if n["step"] < done] + [
                {"step": done, "held_out": training.held_out(), "sample": training.sample(done)}
            ]
            training.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(training.folder / "panel.json", json.dumps(self.notes))
        if self.job.state != "running" or done == self.job.steps or time.monotonic() - self._drawn > 0.5:
            self._drawn = time.monotonic()
            self.redraw()

    def redraw(self, _: Any = None) -> None:
        super().redraw()
        state = self.job.state
        self.buttons["Start"].disabled = state in ("running", "stopping", "done")
        self.buttons["Start"].description = "Start" if state in ("not started", "running", "done") else "Go on"
        self.buttons["Pause"].disabled = state != "running"
        self.buttons["Stop"].disabled = state not in ("running", "paused")
        self.buttons["Forget"].disabled = state not in ENDS

    def _forget(self) -> None:
        if self.training and self.job.state in ENDS:
            shutil.rmtree(self.training.folder, ignore_errors=True)
            self._fresh()

    def _fresh(self) -> None:
        self.job, self.training, self.notes = Job(self._work, self._changed), None, []
        self.redraw()

    def _choose(self, change: dict[str, Any]) -> None:
        """Other values: the job stops and keeps its work, its held-out curve stays in the picture."""
        self.job.stop()
        if self.training and self.notes:
            now = {**self.values, change["owner"].description.replace(" ", "_"): change["old"]}
            self.earlier[", ".join(map(str, now.values()))] = [
                (n["step"] * self.training.tokens / 1000, n["held_out"]) for n in self.notes
            ]
        if self.job.running:
            self.job.wait()
        self.earlier.pop(", ".join(map(str, self.values.values())), None)
        self._fresh()


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the rows, the first and the last among them."""
    step = max(1.0, (len(rows) - 1) / (most - 1))
    return [rows[round(i * step)] for i in range(min(most, len(rows)))]


def smooth(values: Sequence[float], width: int = 8) -> list[float]:
    """The mean of each value and those before it, at most `width` in all."""
    return [sum(values[max(0, i - width) : i]) / min(i, width) for i in range(1, len(values) + 1)]
