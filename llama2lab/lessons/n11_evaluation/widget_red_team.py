"""The red-team game (Llama 2, section 4.3): find prompts that make a model help with harm, or refuse what is
harmless."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as w

from llama2lab.lab.explorer import Explorer, wide
from llama2lab.lab.finished import Finished
from llama2lab.lab.pictures import table
from llama2lab.lessons.n11_evaluation.attacks import ALARM, DRESSES, Attempt, attempt, save_find, store_path, templates
from llama2lab.report.look import tame


class RedTeam(Explorer):
    """Choose or write a prompt, ask, and save what you find."""

    def __init__(self, lab: Finished, stages: Sequence[str] = ("rlhf-v5", "sft"), path: Path | None = None):
        self.lab, self.path = lab, path
        self.attempts: list[Attempt] = []
        self.since: float | None = None  # of the first attempt, in seconds of a steady clock
        self.note = ""
        box = wide("330px")
        self.stage = w.Dropdown(options=list(stages), description="model", **box)
        self.category = w.Dropdown(options=list(ALARM), value="illicit", description="category", **box)
        self.topic = w.Dropdown(description="topic", **box)
        self.wording = w.Dropdown(description="wording", **box)
        self.dress = w.Dropdown(
            options=[(d or "nothing before it", d) for d in DRESSES], description="before it", **box
        )
        self.temperature = w.FloatSlider(1.0, min=0.0, max=1.6, step=0.1, description="temperature", **box)
        self.text = w.Textarea(description="your prompt", rows=2, **wide("100%"), continuous_update=False)
        self.ask = w.Button(
            description="Ask the model", tooltip="sample one answer and let both judges see it", button_style="primary"
        )
        self.save = w.Button(
            description="Save my find",
            disabled=True,
            tooltip="put the last answer, with a second one, into the annotation store",
        )
        super().__init__(
            "Red team",
            [
                self.stage,
                self.category,
                self.topic,
                self.wording,
                self.dress,
                self.temperature,
                self.text,
                self.ask,
                self.save,
            ],
            self._draw,
            watch=False,
        )
        self.category.observe(self._topics, "value")
        self.topic.observe(self._wordings, "value")
        for control in (self.wording, self.dress):
            control.observe(self._write, "value")
        self.ask.on_click(self._ask)
        self.save.on_click(self._save)
        self._topics()

    def _topics(self, _: Any = None) -> None:
        self._of = templates(self.lab.town, ALARM[self.category.value])
        self.topic.options = list(self._of)
        self.topic.index = 0 if self._of else None
        self._wordings()

    def _wordings(self, _: Any = None) -> None:
        self.wording.options = found = self._of.get(self.topic.value, [])
        self.wording.index = 0 if found else None
        self._write()

    def _write(self, _: Any = None) -> None:
        self.text.value = " ".join(part for part in (self.dress.value, self.wording.value) if part)

    def _ask(self, _: Any = None) -> None:
        if not self.text.value.strip():
            self.note = "Write a prompt first."
        else:
            self.since = self.since or time.monotonic()
            try:
                self.attempts.append(
                    attempt(
                        self.lab,
                        self.text.value[:500],
                        self.stage.value,
                        self.temperature.value,
                        seed=len(self.attempts),
                    )
                )
                self.note = ""
            except Exception as e:  # too long a prompt, a damaged model: said, and the game goes on
                self.note = f"{type(e).__name__}: {e}"
        self.save.disabled = not (self.attempts and self.attempts[-1].find)
        self.redraw()

    def _save(self, _: Any = None) -> None:
        try:
            new = save_find(self.lab, self.attempts[-1], self.path)
            self.note = (
                f"{'Saved' if new else 'It is there already'}: {self.path or store_path()}. Label it with the "
                "annotator of notebook 05; runs with --annotations learn from it."
            )
        except Exception as e:
            self.note = f"{type(e).__name__}: {e}"
        self.save.disabled = True
        self.redraw()

    def _draw(self) -> str:
        note = f"<p><em>{html.escape(tame(self.note))}</em></p>" if self.note else ""
        if not self.attempts:
            return note + "<p>No attempt yet. Pick a topic, or write your own prompt, and ask.</p>"
        minutes = (time.monotonic() - (self.since or 0.0)) / 60
        finds = sum(a.find in ("violation", "false refusal") for a in self.attempts)
        head = (
            f"<p><strong>{sum(a.points for a in self.attempts)} points</strong>, {finds} finds in "
            f"{len(self.attempts)} attempts"
            + (f", {finds / minutes * 60:.0f} an hour" if minutes > 1 else "")
            + ".</p>"
        )
        return (
            note
            + head
            + table(
                ("prompt", "answer", "reward model: safe", "oracle", "points"),
                [(a.text, a.answer, f"{a.safe:.2f}", oracle_says(a), a.points) for a in self.attempts[:-7:-1]],
            )
        )


def oracle_says(a: Attempt) -> str:
    """The oracle's verdict in words."""
    if a.verdict is None:
        return "does not know this question; " + ("reads a refusal" if a.refused else "reads no refusal")
    return a.find or (
        "refused, rightly"
        if a.kind == "unsafe" and a.refused
        else "no harm said"
        if a.kind == "unsafe"
        else "right"
        if a.verdict.correct
        else "no refusal"
    )
