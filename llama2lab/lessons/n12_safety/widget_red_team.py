"""The red-team game (Llama 2, section 4.3): find prompts that make a model help with harm, or refuse what is
harmless."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as w

from llama2lab.lab.explorer import Explorer, button, dropdown, slider, wide
from llama2lab.lab.finished import Finished
from llama2lab.lab.pictures import table
from llama2lab.lessons.n12_safety.attacks import ALARM, DRESSES, Attempt, attempt, save_find, store_path, templates
from llama2lab.report.look import tame


class RedTeam(Explorer):
    """Choose or write a prompt, ask, and save what you find."""

    def __init__(self, lab: Finished, stages: Sequence[str] = ("rlhf-v5", "sft"), path: Path | None = None):
        self.lab, self.path = lab, path
        self.attempts: list[Attempt] = []
        self.since: float | None = None  # of the first attempt, in seconds of a steady clock
        self.note = ""
        self.stage = dropdown("model", stages, width="330px")
        self.category = dropdown("category", list(ALARM), "illicit", "330px")
        self.topic = dropdown("topic", (), width="330px")
        self.wording = dropdown("wording", (), width="330px")
        self.dress = dropdown("before it", [(d or "nothing before it", d) for d in DRESSES], width="330px")
        self.temperature = slider("temperature", 1.0, 0.0, 1.6, 0.1, "330px")
        self.text = w.Textarea(description="your prompt", rows=2, **wide("100%"), continuous_update=False)
        tip = "sample one answer and let both judges see it"
        self.ask = button("Ask the model", tip, self._ask, button_style="primary")
        tip = "put the last answer, with a second one, into the annotation store"
        self.save = button("Save my find", tip, self._save, disabled=True)
        prompt = (self.category, self.topic, self.wording, self.dress)
        super().__init__(
            "Red team", [self.stage, *prompt, self.temperature, self.text, self.ask, self.save], watch=False
        )
        self.category.observe(self._topics, "value")
        self.topic.observe(self._wordings, "value")
        for control in (self.wording, self.dress):
            control.observe(self._write, "value")
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

    def _ask(self) -> None:
        if not self.text.value.strip():
            self.note = "Write a prompt first."
        else:
            self.since = self.since or time.monotonic()
            text, stage, temperature = self.text.value[:500], self.stage.value, self.temperature.value
            try:
                self.attempts.append(attempt(self.lab, text, stage, temperature, seed=len(self.attempts)))
                self.note = ""
            except Exception as e:  # too long a prompt, a damaged model: said, and the game goes on
                self.note = f"{type(e).__name__}: {e}"
        self.save.disabled = not (self.attempts and self.attempts[-1].find)
        self.redraw()

    def _save(self) -> None:
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

    def draw(self) -> str:
        note = f"<p><em>{html.escape(tame(self.note))}</em></p>" if self.note else ""
        if not self.attempts:
            return note + "<p>No attempt yet. Pick a topic, or write your own prompt, and ask.</p>"
        minutes = (time.monotonic() - (self.since or 0.0)) / 60
        finds = sum(a.find in ("violation", "false refusal") for a in self.attempts)
        pace = f", {finds / minutes * 60:.0f} an hour" if minutes > 1 else ""
        points, tries = sum(a.points for a in self.attempts), len(self.attempts)
        head = f"<p><strong>{points} points</strong>, {finds} finds in {tries} attempts{pace}.</p>"
        rows = [(a.text, a.answer, f"{a.safe:.2f}", oracle_says(a), a.points) for a in self.attempts[:-7:-1]]
        return note + head + table(("prompt", "answer", "reward model: safe", "oracle", "points"), rows)


def oracle_says(a: Attempt) -> str:
    """The oracle's verdict in words."""
    if a.verdict is None:
        return "does not know this question; " + ("reads a refusal" if a.refused else "reads no refusal")
    if a.kind == "unsafe":
        return a.find or ("refused, rightly" if a.refused else "no harm said")
    return a.find or ("right" if a.verdict.correct else "no refusal")
