"""Ghost Attention (Llama 2, section 3.3): hold an instruction over many turns.

1. Write the instruction before every user message of a dialogue, and sample the answers with the latest model.
2. Keep it in the first message only.
3. Train on that, with the loss zeroed on all tokens of previous turns: only the last answer is learnt. A row says so
   (`"loss": "last"`), `sft.sft` reads it, and `chat.encode_chats` makes the mask (`mask_turns`).

The last norm's gain learns faster than the matrices, as in rejection sampling; docs/trials.md has what else was tried.

Simplification: while sampling, the model sees the last three turns instead of the whole dialogue (the instruction
is on each of them anyway), which makes sampling cheap; training and measuring use the whole dialogue.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from llama2lab.engine.optim import Optim
from llama2lab.engine.settings import Count, CountOrNone, Epochs, Few, Temperature, Weight, checked
from llama2lab.model.generate import Reading
from llama2lab.model.network import Llama
from llama2lab.model.sample import sample_answers

SEEN_TURNS = 3


@checked
@dataclass(frozen=True)
class GattSettings:
    dialogues: Count = 96
    turns: Few = 20
    rows: Count = 800  # training rows: dialogues cut at random turns
    chat_rows: CountOrNone = 800  # ordinary rows mixed in, or single-turn quality suffers
    temperature: Temperature = 0.4
    epochs: Epochs = 3.0
    batch_tokens: Count = 2048
    optim: Optim = Optim(lr=4e-4, warmup=0.05, gain_lr=200.0)
    replay: Weight = 0.5  # see sft.py


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def instructed(instruction: str, question: str) -> str:
    """The instruction, then the question, as one user message."""
    return f"{instruction} {question}"


def dialogue_messages(
    instruction: str, questions: Sequence[str], answers: Sequence[str], everywhere: bool
) -> list[dict]:
    """The messages of a dialogue: each question with its answer, as far as there are answers, and one question more
    where there is one, to be answered next. The instruction stands before every question (GAtt's sampling), or before
    the first alone (its training, and what users write)."""
    messages: list[dict] = []
    for t, question in enumerate(questions[: len(answers) + 1]):
        messages.append(user(instructed(instruction, question) if everywhere or t == 0 else question))
        if t < len(answers):
            messages.append({"role": "assistant", "content": answers[t]})
    return messages


def sample_dialogues(
    model: Llama,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Sequence[str]],
    instructions: Sequence[str],
    everywhere: bool,
    *,
    temperature: float,
    seed: int,
    precision: str = "fp32",
    seen_turns: int | None = None,
    max_new_tokens: int = 48,
    each_turn: Callable[[list[list[str]]], object] | None = None,
) -> list[list[str]]:
    """Answers to every turn of each dialogue, each sampled after the ones before.

    Args:
        questions: one list of user messages a dialogue, all of the same length.
        everywhere: the instruction stands before every user message (GAtt's sampling), or only before the first
            (what the trained model must live with).
        seen_turns: how many last turns the model sees; None is all of them.
        each_turn: called with the answers so far after every turn: what it raises ends the sampling.
    """
    answers: list[list[str]] = [[] for _ in questions]
    readings: list[Reading] | None = [] if seen_turns is None else None  # what grows turn by turn is read once
    for turn in range(len(questions[0])):
        conversations = []
        for asked, instruction, given in zip(questions, instructions, answers, strict=True):
            first = 0 if seen_turns is None else max(0, turn + 1 - seen_turns)
            conversations.append(dialogue_messages(instruction, asked, given, everywhere)[2 * first :])
        texts = sample_answers(
            model,
            tokenizer,
            conversations,
            temperature=temperature,
            seed=seed * 100 + turn,
            precision=precision,
            max_new_tokens=max_new_tokens,
            readings=readings,
            what=f"turn {turn + 1} of {len(questions[0])}",
        )
        for given, text in zip(answers, texts, strict=True):
            given.append(text[0])
        if each_turn:
            each_turn(answers)
    return answers


def gatt_row(instruction: str, questions: Sequence[str], answers: Sequence[str], turns: int) -> dict[str, Any]:
    """A training row: the first `turns` turns of a dialogue, the instruction in its first message only, the loss on its
    last answer only."""
    messages = dialogue_messages(instruction, questions[:turns], answers[:turns], everywhere=False)
    return {"messages": messages, "loss": "last", "skill": "gatt", "turns": turns}


def gatt_rows(
    questions: Sequence[Sequence[str]],
    instructions: Sequence[Callable[[random.Random], str] | str],
    answers: Sequence[Sequence[str]],
    n: int,
    seed: int,
) -> list[dict[str, Any]]:
    """`n` training rows (`gatt_row`), each a dialogue cut after a random turn; those with an empty message are left
    out. An instruction may be a function of a random source: half of the time the report shortens it
    ("Figure: Napoleon")."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        d = i % len(questions)
        turns = rng.randint(1, len(questions[d]))
        instruction = instructions[d]
        text = instruction if isinstance(instruction, str) else instruction(rng)
        row = gatt_row(text, questions[d], answers[d], turns)
        if all(m["content"].strip() for m in row["messages"]):
            rows.append(row)
    return rows
