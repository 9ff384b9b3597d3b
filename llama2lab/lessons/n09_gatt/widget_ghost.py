"""Ghost Attention explorer (Llama 2, section 3.3): who still obeys an instruction at turn 20, and where does a model
look while it answers?"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import ipywidgets as w

from llama2lab.lab.explorer import Explorer, button, dropdown, slider, wide
from llama2lab.lab.finished import Finished
from llama2lab.lab.job import Job
from llama2lab.lab.pictures import lines, table
from llama2lab.lessons.n09_gatt.dialogues import (
    PLACES,
    Dialogue,
    Look,
    instruction_attention,
    instructions_for,
    judged,
    kept_dialogues,
    obedience,
    sampled_dialogues,
)
from llama2lab.report.look import tame
from llama2lab.town.prompts import dialogue_prompts

WITHOUT, WITH = "rlhf-v3", ("gatt", "rlhf-v5")
ALL = "all of them"
MARKS = {True: "\u2713\u00a0obeys", False: "\u2717\u00a0does\u00a0not"}


def transcript(dialogue: Dialogue, turns: int) -> str:
    """The dialogue to read, each answer with a mark; everything in it is escaped."""
    shown = zip(dialogue.questions[:turns], dialogue.answers, dialogue.obeyed, strict=False)  # no more than `turns`
    rows = [(t, question, answer, MARKS[ok]) for t, (question, answer, ok) in enumerate(shown, 1)]
    told = f"<p><strong>Instruction</strong>, said once at turn 1: {html.escape(tame(dialogue.instruction.text))}</p>"
    return told + table(("turn", "user", "answer", "oracle"), rows)


def curve(values: Sequence[float], turns: int) -> list[tuple[float, float]]:
    return [(float(t), v) for t, v in enumerate(values[:turns], 1)]


class GhostExplorer(Explorer):
    """Two models, one instruction: their obedience by turn, one dialogue of each to read, and where they look."""

    def __init__(self, lab: Finished, without: str = WITHOUT, with_gatt: Sequence[str] = WITH):
        self.lab, self.without = lab, without
        self._kept = lru_cache(maxsize=8)(lambda stage: kept_dialogues(lab, stage))
        self._looks = lru_cache(maxsize=64)(self._look)
        self.sampled: dict[str, list[Dialogue]] = {}  # by stage, since the button was pressed
        self.job: Job | None = None
        names = list(dict.fromkeys(d.instruction.text for d in self._kept(without)))
        self.instruction = dropdown("instruction", [ALL, *names], width="330px")
        self.stage = dropdown("with Ghost Attention", with_gatt, width="330px")
        self.turns = slider("turns", 10, 2, 20, width="330px", continuous_update=False)
        self.number = w.BoundedIntText(1, min=1, max=99, description="dialogue number", **wide("330px"))
        self.read = dropdown("read the dialogue", [("with", True), ("without", False)], width="330px")
        self.place = dropdown("attention", [(words, place) for place, words in PLACES.items()], width="330px")
        self.go = button("Sample now", "four new dialogues of each model, with this instruction", self.sample)
        self.halt = button("Stop", "end after the turn under way", self._halt, disabled=True)
        chosen = (self.instruction, self.turns, self.stage, self.read, self.number, self.place)
        super().__init__("Ghost Attention", [*chosen, self.go, self.halt])
        self.instruction.observe(self._forget, "value")

    def dialogues(self, stage: str) -> list[Dialogue]:
        """What is shown of a stage: sampled ones, where there are, or the run's."""
        chosen = self.instruction.value
        return self.sampled.get(stage) or [d for d in self._kept(stage) if chosen in (ALL, d.instruction.text)]

    def sample(self) -> Job:
        """Start to sample four dialogues of each model; the picture follows turn by turn."""
        known = {i.text: i for i in self.lab.town.instructions}
        named = self.instruction.value
        chosen = instructions_for(self.lab, 4) if named == ALL else [known[named]] * 4
        turns, stages = self.turns.value, (self.without, self.stage.value)
        # A dict of this job's own: what comes after another instruction was chosen lands where nobody looks.
        found: dict[str, list[Dialogue]] = {}
        self.sampled = found

        def work() -> None:
            for stage in stages:
                questions = dialogue_prompts(self.lab.town, "test", turns, len(chosen), 900)

                def keep(answers: list[list[str]], stage: str = stage, asked: Any = questions) -> None:
                    found[stage] = [judged(self.lab, *row) for row in zip(chosen, asked, answers, strict=True)]
                    self.redraw()
                    if job.state == "stopping":
                        raise KeyboardInterrupt

                sampled_dialogues(self.lab, stage, chosen, turns, each_turn=keep)

        def changed() -> None:
            if self.job is job:  # an older one that ends says nothing of the buttons
                self.go.disabled, self.halt.disabled = job.state == "running", job.state != "running"

        self.job = job = Job(work, changed)
        job.start()
        return job

    def _halt(self) -> None:
        if self.job:
            self.job.stop()

    def _forget(self, _: Any) -> None:
        """Another instruction: what was sampled is not about it."""
        self._halt()
        self.sampled = {}
        self.redraw()

    def _look(self, stage: str, dialogue: Dialogue) -> dict[str, Look]:
        """Of the whole dialogue: what comes later changes nothing of what comes before."""
        return instruction_attention(self.lab, self.lab.model(stage), dialogue)

    def draw(self) -> str:
        turns, stages = self.turns.value, (self.without, self.stage.value)
        of = {stage: self.dialogues(stage) for stage in stages}
        named = dict(zip(stages, ("without", "with"), strict=True))
        new = {s: ", sampled now" if self.sampled.get(s) else "" for s in stages}
        obeyed = {s: [f["mean"] for f in obedience(of[s])] for s in stages}
        curves = [(f"{named[s]}, n {len(of[s])}{new[s]}", curve(obeyed[s], turns)) for s in stages]
        words = "share of answers that obey, by turn"
        share = lines(curves, words, "turn", y_range=(0, 1), dots=True, width=640)
        share = (
            f"<p><strong>Share of answers that obey</strong> by turn: without ({self.without}) and with "
            f"({self.stage.value}) Ghost Attention, n dialogues each.</p>{share}"
        )
        shown = of[stages[self.read.value]]
        if not shown:
            return share + "<p>No dialogue of this instruction is kept: press Sample now.</p>"
        picked = shown[(self.number.value - 1) % len(shown)]
        looks = {s: self._looks(s, picked)[self.place.value] for s in stages}
        curves = [(f"{named[s]}, {how}", curve(looks[s][how], turns)) for s in stages for how in ("max", "mean")]
        curves.append(("if even", curve(looks[stages[0]]["even"], turns)))
        where = lines(curves, "attention on the instruction, by turn", "turn", dots=True, width=640)
        return (
            f"{share}{transcript(picked, turns)}<p><strong>Share of the attention on the instruction</strong> by "
            "turn, both models reading this dialogue: of the head that looks most (max), of all heads (mean), and "
            f"of one that looks at all tokens alike (if even).</p>{where}"
        )
