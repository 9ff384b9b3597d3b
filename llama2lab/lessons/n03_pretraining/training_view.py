"""A language model's training in view: pretraining and supervised fine-tuning."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama2lab.lab.live import Plan, Training
from llama2lab.lab.live_view import POINTS, Chart, Choice, LiveView, Record, smooth, spread

LOOKS = 20  # spread over a training, beside those after the first steps
EARLY = (1, 2, 4, 8)  # steps: most changes there


class TrainingView(LiveView):
    """A training that one watches: its loss on what it reads and on held-out text, and at every look one fact and the
    same prompt.

    `plan(**values)` says what is trained with the chosen values; `choices` are the names and options of the controls,
    each one's default first. Every choice keeps its work in a folder of its own, and its held-out curve stays in the
    picture. `watched`: what every look asks, and what the finished model says to it: {"asked" (how a text is got),
    "fact": {"asked", "value", "goal" (a look), "goal_by" (whose)}}. `level` is a line across the chart.
    """

    def __init__(
        self,
        title: str,
        plan: Callable[..., Plan],
        watched: Mapping[str, Any],
        level: tuple[float, str] | None = None,
        **choices: Sequence[Any],
    ):
        self.plans = {
            values: plan(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())
        }
        self.training: Training | None = None
        self.before: list[dict[str, Any]] = []
        super().__init__(
            [Chart("loss", "loss", "loss, nats a token", from_zero=True, level=level)],
            {
                name: Choice(name.replace("_", " "), [(shown(option), option) for option in options])
                for name, options in choices.items()
            },
            title=title,
            does="Press Start; pause, stop and go on as you like, nothing is lost.",
            sees="See the loss fall, and watch what the model makes of one prompt and of one fact meanwhile.",
            unit="step",
            x="thousand tokens read",
            **watched,
        )
        self.fresh()

    @property
    def folder(self) -> Path:
        return self.plans[tuple(self.values.values())].folder

    @property
    def speed(self) -> float | None:
        """Tokens a second over the last steps; None before any."""
        last = self.record.rows[-20:]
        return len(last) * self.record.more["tokens"] / sum(row["seconds"] for row in last) if last else None

    def work(self) -> Any:
        if self.training is None:
            self.training = self.plans[tuple(self.values.values())].make()
        self.record.more["tokens"] = self.training.tokens
        return self.training.train()

    def look(self, done: int) -> None:
        every = max(1, self.job.steps // LOOKS)
        due = done % every == 0 or done in EARLY or done == self.job.steps
        wanted = due and self.job.state == "running"  # who stops does not wait for a look
        if self.training and wanted and all(one["step"] != done for one in self.record.looks):
            self.record.looks.append({"step": done, "held_out": self.training.held_out(), **self.training.look()})

    def fresh(self) -> None:
        self.training, self.before = None, []
        for values, plan in self.plans.items():
            record = self.kept(plan.folder)
            if record.looks and plan.folder != self.folder:
                own = self.values.items()
                other = [f"{name} {shown(v)}" for (name, mine), v in zip(own, values, strict=True) if v != mine]
                name = ", ".join(other).replace("_", " ")
                self.before.append({"name": f"held out, {name}", "kind": "before", "points": held_out(record)})
        super().fresh()

    def seen(self) -> dict[str, Any]:
        rows, looks, job = self.record.rows, self.record.looks, self.job
        a_step = self.record.more.get("tokens", 0) / 1000
        losses = smooth([row["loss"] for row in rows])
        points = [[round((i + 1) * a_step, 3), round(losses[i], 4)] for i in spread(range(len(losses)), POINTS)]
        words = [{"not started": "Nothing is trained yet", "failed": job.error}.get(self.state, self.state)]
        if job.running and not rows:
            words.append("the data are prepared")
        if rows:
            words += [
                f"step {len(rows)} of {self.record.steps}",
                f"loss {rows[-1]['loss']:.2f}",
                f"learning rate {rows[-1]['lr']:.1e}",
                f"{self.speed:,.0f} tokens a second",
            ]
            left = (self.record.steps - len(rows)) * sum(row["seconds"] for row in rows) / len(rows)
            words += [f"about {left:.0f} s to go"] if left else []
        furthest = max((p[0] for one in self.before for p in one["points"]), default=0.0)
        return {
            "said": "; ".join(words),
            "lines": {
                "loss": [
                    {"name": "on what it reads", "kind": "now", "points": points},
                    {"name": "on held-out text", "kind": "looked", "points": held_out(self.record)},
                    *self.before,
                ]
            },
            "ends": [0, max(self.record.steps * a_step, furthest)],
            "looks": [
                {
                    "step": one["step"],
                    "x": one["step"] * a_step,
                    "text": one["text"],
                    "note": f"held out {one['held_out']:.2f}",
                    "fact": one["fact"],
                }
                for one in looks
            ],
            "table": None,
        }


def held_out(record: Record) -> list[list[float]]:
    """Points (thousand tokens, loss) of a training's looks."""
    return [[one["step"] * record.more["tokens"] / 1000, one["held_out"]] for one in record.looks]


def shown(option: Any) -> str:
    """An option in words."""
    return f"{option:g}" if isinstance(option, float) else f"{option:,}" if isinstance(option, int) else str(option)
