"""Ghost Attention explorer (Llama 2, section 3.3): who still obeys an instruction at turn 20, and where does a model
look while it answers?

Dialogues are those of the run's evaluation (the instruction stands before the first question only), or sampled now.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ipywidgets as w

from llama2lab.engine import stats
from llama2lab.lab.explorer import Explorer
from llama2lab.lab.finished import Finished
from llama2lab.lab.job import Job
from llama2lab.lab.pictures import lines
from llama2lab.lessons.n02_transformer.attention import attention_weights
from llama2lab.model.chat import Message, encode_chat
from llama2lab.model.network import Llama
from llama2lab.report.look import BLUE, ORANGE, tame
from llama2lab.stages.gatt import instructed, sample_dialogues, user
from llama2lab.town.items import Instruction
from llama2lab.town.prompts import dialogue_prompts, instructions_of

WITHOUT, WITH = "rlhf-v3", ("gatt", "rlhf-v5")
ALL = "all of them"
PLACES = {"first": "where its first token is chosen", "whole": "while the whole answer is written"}
Look = dict[str, list[float]]


@dataclass(frozen=True)
class Dialogue:
    """One dialogue with the instruction before its first question only, and which of its answers obey."""

    instruction: Instruction
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    obeyed: tuple[bool, ...]

    def messages(self, turns: int | None = None, everywhere: bool = False) -> list[Message]:
        """The first `turns` turns, as training and users have them, or with the instruction before every question, as
        the answers of the training data were sampled."""
        made: list[Message] = []
        for t, (question, answer) in enumerate(zip(self.questions[:turns], self.answers, strict=False)):
            made += [user(instructed(self.instruction.text, question) if everywhere or t == 0 else question),
                     {"role": "assistant", "content": answer}]
        return made


def judged(lab: Finished, instruction: Instruction, questions: Sequence[str], answers: Sequence[str]) -> Dialogue:
    return Dialogue(instruction, tuple(questions[:len(answers)]), tuple(answers),
                    tuple(lab.oracle.obeys(instruction, a) for a in answers))


def kept_dialogues(lab: Finished, stage: str) -> list[Dialogue]:
    """The dialogues that the run's evaluation sampled from this stage."""
    by_text = {i.text: i for i in lab.town.instructions}
    return [judged(lab, by_text[row["instruction"]], row["questions"], row["answers"])
            for row in lab.rows(stage, "dialogues.jsonl")]


def sampled_dialogues(lab: Finished, stage: str | Llama, instructions: Sequence[Instruction], turns: int, seed: int = 0,
                      temperature: float = 1.0, each_turn: Callable[[list[list[str]]], object] | None = None,
                      ) -> list[Dialogue]:
    """One new dialogue for each of the instructions, on held-out questions: the same ones for every stage."""
    questions = dialogue_prompts(lab.town, "test", turns, len(instructions), 900 + seed)
    model = lab.model(stage) if isinstance(stage, str) else stage
    answers = sample_dialogues(model, lab.tokenizer, questions, [i.text for i in instructions], False,
                               temperature=temperature, seed=seed, precision=lab.machine.precision,
                               each_turn=each_turn)
    return [judged(lab, *row) for row in zip(instructions, questions, answers, strict=True)]


def instructions_for(lab: Finished, n: int, split: str = "train") -> list[Instruction]:
    """n instructions, spread over the kinds: those that Ghost Attention trained on, or ("test") others."""
    known = instructions_of(lab.town, split)
    return [known[i * len(known) // n % len(known)] for i in range(n)]


def obedience(dialogues: Sequence[Dialogue]) -> list[stats.Figure]:
    """The share of answers that obey, turn by turn, with its interval."""
    longest = max((len(d.answers) for d in dialogues), default=0)
    return [stats.rate([d.obeyed[t] for d in dialogues if t < len(d.obeyed)]) for t in range(longest)]


def spans(lab: Finished, dialogue: Dialogue, turns: int) -> tuple[list[int], slice, list[slice]]:
    """(ids, the instruction's tokens, for each turn the places at which its answer is being written): from [/INST],
    where its first token is chosen, to its last, where </s> is."""
    ids, mask = encode_chat(lab.tokenizer, dialogue.messages(turns))
    alone, _ = encode_chat(lab.tokenizer, [user(dialogue.instruction.text)], add_generation_prompt=True)
    end = next((i for i, (a, b) in enumerate(zip(ids, alone, strict=False)) if a != b), len(alone))
    answers, start = [], None
    for i, inside in enumerate([*mask, 0]):
        if inside and start is None:
            start = i
        elif not inside and start is not None:
            answers.append(slice(start - 1, i - 1))
            start = None
    return ids, slice(2, end), answers  # <s> and [INST] come before the instruction


def instruction_attention(lab: Finished, model: Llama, dialogue: Dialogue, turns: int = 20) -> dict[str, Look]:
    """How much of the attention falls on the instruction at each turn, "whole": while the answer is written, and
    "first": at [/INST], where its first token is chosen. Each is {"mean": over all heads of all layers, "max": of the
    one head that looks most, "even": if a head looked at all tokens so far alike}."""
    ids, instruction, answers = spans(lab, dialogue, turns)
    on_it = attention_weights(model, ids)[:, :, :, instruction].sum(-1)  # (layers, heads, seq)
    width = instruction.stop - instruction.start
    found: dict[str, Look] = {place: {"mean": [], "max": [], "even": []} for place in PLACES}
    for part in answers:
        for place, stop in (("first", part.start + 1), ("whole", part.stop)):
            share = on_it[:, :, part.start:stop].mean(-1)  # (layers, heads)
            found[place]["mean"].append(float(share.mean()))
            found[place]["max"].append(float(share.max()))
            even = [width / (i + 1) for i in range(part.start, stop)]
            found[place]["even"].append(sum(even) / len(even))
    return found


def transcript(dialogue: Dialogue, turns: int) -> str:
    """The dialogue to read, each answer with a mark; everything in it is escaped."""
    def cell(text: str) -> str:
        return html.escape(tame(text))

    rows = ""
    shown = zip(dialogue.questions[:turns], dialogue.answers, dialogue.obeyed, strict=False)  # no more than `turns`
    for t, (question, answer, ok) in enumerate(shown, 1):
        said = f"<strong>{cell(dialogue.instruction.text)}</strong> {cell(question)}" if t == 1 else cell(question)
        mark = f'<span style="color: {BLUE}">&#10003;</span> obeys' if ok else (
            f'<span style="color: {ORANGE}">&#10007;</span> does not')
        rows += (f'<tr><td style="padding: 1px 8px; vertical-align: top">{t}</td><td style="padding: 1px 8px; '
                 f'text-align: left">{said}</td><td style="padding: 1px 8px; text-align: left">{cell(answer)}</td>'
                 f'<td style="white-space: nowrap">{mark}</td></tr>')
    return ('<table style="border-collapse: collapse; color: var(--jp-content-font-color1, inherit)"><tr><th>turn</th>'
            f"<th>user</th><th>answer</th><th>oracle</th></tr>{rows}</table>")


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
        wide: dict[str, Any] = {"style": {"description_width": "initial"}, "layout": w.Layout(width="330px")}
        names = list(dict.fromkeys(d.instruction.text for d in self._kept(without)))
        self.instruction = w.Dropdown(options=[ALL, *names], value=ALL, description="instruction", **wide)
        self.stage = w.Dropdown(options=list(with_gatt), description="with Ghost Attention", **wide)
        self.turns = w.IntSlider(10, min=2, max=20, description="turns", continuous_update=False, **wide)
        self.number = w.BoundedIntText(1, min=1, max=99, description="dialogue number", **wide)
        self.read = w.Dropdown(options=[("with", True), ("without", False)], description="read the dialogue", **wide)
        self.place = w.Dropdown(options=[(words, place) for place, words in PLACES.items()], description="attention",
                                **wide)
        self.go = w.Button(description="Sample now", tooltip="four new dialogues of each model, with this instruction")
        self.halt = w.Button(description="Stop", tooltip="end after the turn under way", disabled=True)
        super().__init__("Ghost Attention", [self.instruction, self.turns, self.stage, self.read, self.number,
                                             self.place, self.go, self.halt], self._draw)
        self.instruction.observe(self._forget, "value")
        self.go.on_click(lambda _: self.sample())
        self.halt.on_click(lambda _: self.job and self.job.stop())

    def dialogues(self, stage: str) -> list[Dialogue]:
        """What is shown of a stage: sampled ones, where there are, or the run's."""
        chosen = self.instruction.value
        return self.sampled.get(stage) or [d for d in self._kept(stage) if chosen in (ALL, d.instruction.text)]

    def sample(self) -> Job:
        """Start to sample four dialogues of each model; the picture follows turn by turn."""
        known = {i.text: i for i in self.lab.town.instructions}
        chosen = [known[self.instruction.value]] * 4 if self.instruction.value != ALL else (
            instructions_for(self.lab, 4))
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

    def _forget(self, _: Any) -> None:
        """Another instruction: what was sampled is not about it."""
        if self.job:
            self.job.stop()
        self.sampled = {}
        self.redraw()

    def _look(self, stage: str, dialogue: Dialogue) -> dict[str, Look]:
        """Of the whole dialogue: what comes later changes nothing of what comes before."""
        return instruction_attention(self.lab, self.lab.model(stage), dialogue)

    def _draw(self) -> str:
        turns, stages = self.turns.value, (self.without, self.stage.value)
        of = {stage: self.dialogues(stage) for stage in stages}
        named = dict(zip(stages, ("without", "with"), strict=True))
        new = {s: ", sampled now" if self.sampled.get(s) else "" for s in stages}
        share = lines([(f"{named[s]}, n {len(of[s])}{new[s]}", curve([f["mean"] for f in obedience(of[s])], turns))
                       for s in stages], "share of answers that obey, by turn", "turn",
                      y_range=(0, 1), dots=True, width=640)
        share = (f"<p><strong>Share of answers that obey</strong> by turn: without ({self.without}) and with "
                 f"({self.stage.value}) Ghost Attention, n dialogues each.</p>{share}")
        shown = of[stages[self.read.value]]
        if not shown:
            return share + "<p>No dialogue of this instruction is kept: press Sample now.</p>"
        picked = shown[(self.number.value - 1) % len(shown)]
        looks = {s: self._looks(s, picked)[self.place.value] for s in stages}
        curves = [(f"{named[s]}, {how}", curve(looks[s][how], turns)) for s in stages for how in ("max", "mean")]
        where = lines([*curves, ("if even", curve(looks[stages[0]]["even"], turns))],
                      "attention on the instruction, by turn", "turn", dots=True, width=640)
        return (f"{share}{transcript(picked, turns)}<p><strong>Share of the attention on the instruction</strong> by "
                "turn, both models reading this dialogue: of the head that looks most (max), of all heads (mean), and "
                f"of one that looks at all tokens alike (if even).</p>{where}")
