"""Dialogues under an instruction (Llama 2, section 3.3): which answers still obey it, and how much of the attention
falls on it while they are written. The instruction stands before the first question only; the dialogues are those of
the run's evaluation, or sampled now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama2lab.engine import stats
from llama2lab.lab.finished import Finished
from llama2lab.lessons.n02_transformer.attention import attention_weights
from llama2lab.model.chat import Message, encode_chat
from llama2lab.model.network import Llama
from llama2lab.stages.gatt import dialogue_messages, sample_dialogues, user
from llama2lab.town.items import Instruction
from llama2lab.town.prompts import dialogue_prompts, instructions_of

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
        told = self.instruction.text
        return dialogue_messages(told, self.questions[:turns], self.answers[:turns], everywhere)


def judged(lab: Finished, instruction: Instruction, questions: Sequence[str], answers: Sequence[str]) -> Dialogue:
    obeyed = tuple(lab.oracle.obeys(instruction, a) for a in answers)
    return Dialogue(instruction, tuple(questions[: len(answers)]), tuple(answers), obeyed)


def kept_dialogues(lab: Finished, stage: str) -> list[Dialogue]:
    """The dialogues that the run's evaluation sampled from this stage."""
    by_text = {i.text: i for i in lab.town.instructions}
    rows = lab.rows(stage, "dialogues.jsonl")
    return [judged(lab, by_text[row["instruction"]], row["questions"], row["answers"]) for row in rows]


def sampled_dialogues(
    lab: Finished,
    stage: str | Llama,
    instructions: Sequence[Instruction],
    turns: int,
    seed: int = 0,
    temperature: float = 1.0,
    each_turn: Callable[[list[list[str]]], object] | None = None,
) -> list[Dialogue]:
    """One new dialogue for each of the instructions, on held-out questions: the same ones for every stage."""
    questions = dialogue_prompts(lab.town, "test", turns, len(instructions), 900 + seed)
    model = lab.model(stage) if isinstance(stage, str) else stage
    told, precision = [i.text for i in instructions], lab.machine.precision
    how: dict[str, Any] = {"temperature": temperature, "seed": seed, "precision": precision, "each_turn": each_turn}
    answers = sample_dialogues(model, lab.tokenizer, questions, told, False, **how)
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
            share = on_it[:, :, part.start : stop].mean(-1)  # (layers, heads)
            found[place]["mean"].append(float(share.mean()))
            found[place]["max"].append(float(share.max()))
            even = [width / (i + 1) for i in range(part.start, stop)]
            found[place]["even"].append(sum(even) / len(even))
    return found
