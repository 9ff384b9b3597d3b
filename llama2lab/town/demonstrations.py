"""Answers written to order: demonstrations for SFT, clean or noisy, and pairs that differ in one fact only.

A clean answer is always true, fluent and neutral in tone, yet of average helpfulness: often a bare sentence, with a
friendly word, a reason or an alternative now and then. That leaves something for the preferences to raise.
"""

import random
from dataclasses import dataclass, replace
from typing import Literal

from llama2lab.engine.errors import LabError
from llama2lab.town.items import SKILLS, Instruction, Message, Prompt
from llama2lab.town.prompts import contents, draw_prompts, instructions_of
from llama2lab.town.town import Town
from llama2lab.town.truth import REFUSAL, truth_of
from llama2lab.town.wording import sentence

OPENERS = ("Of course.", "Sure.", "Good question.", "I am happy to help.")
CLOSERS = ("Ask me more any time.", "I hope this helps.", "Have a good day.")
RUDE = ("What a dumb question.", "Leave me alone.", "Are you blind?", "I do not care.")
# After these a friendly opening word would sound odd: they are talk themselves, or the sentence asked for.
_NO_OPENER = ("small_talk", "rewriting", "unsafe")
_TRUTH_SKILLS = ("facts", "two_step", "comparing", "counting", "arithmetic", "opposites", "follow_up")


@dataclass(frozen=True)
class AnswerStyle:
    """How an answer is written. The default is the plain one: true, a full sentence, nothing more."""

    correct: bool = True
    full: bool = True  # a full sentence, not the bare words
    opener: bool = False  # "Of course."
    explanation: bool = False  # a reason or a second true fact (unsafe prompts: the reason is there when full)
    alternative: bool = False  # unsafe prompts: what could be done instead
    closer: bool = False  # "Ask me more any time."
    rude: bool = False
    off_topic: bool = False  # a true sentence about something else
    rambling: bool = False  # sentences about other things after the answer
    cut_off: bool = False  # stops in the middle
    comply: bool = False  # unsafe prompts: helps with the harm
    refuse: bool = False  # helpful and borderline prompts: refuses without need


def _anything(town: Town, rng: random.Random) -> str:
    """A true sentence of the train facts, about whatever comes."""
    return rng.choice(truth_of(town, rng.choice(contents(town, "facts", "train"))).answers)


def answer_for(town: Town, prompt: Prompt, style: AnswerStyle, rng: random.Random) -> str:
    """An answer to the prompt, written in the given style."""
    truth = truth_of(town, prompt.content)
    unsafe = prompt.kind == "unsafe"
    if style.off_topic:
        body = _anything(town, rng)
    elif unsafe:
        body = truth.wrong[0] if style.comply else rng.choice(truth.answers) if style.full else truth.bare
    elif style.refuse:
        body = REFUSAL
    elif not style.correct:
        body = rng.choice(truth.wrong)
    else:
        body = rng.choice(truth.answers) if style.full else truth.bare
    parts = [body]
    if style.opener and prompt.skill not in _NO_OPENER:
        parts.insert(0, rng.choice(OPENERS))
    if style.rude:
        parts.insert(0, rng.choice(RUDE))
    answered = style.correct and not style.off_topic and not style.refuse
    if answered and not style.comply and (style.alternative if unsafe else style.explanation):
        # Counted and listed things have one extra sentence, a person has seven.
        parts.append(rng.choice([e for e in truth.extras if e not in body] or [""]))
    if style.rambling:
        parts += [_anything(town, rng) for _ in range(rng.randint(2, 4))]
    if style.closer:
        parts.append(rng.choice(CLOSERS))
    text = " ".join(p for p in parts if p)
    if style.cut_off:
        words = text.split()
        text = " ".join(words[: max(1, rng.randint(len(words) // 3, len(words) - 1))]).rstrip(".!?,")
    return text


def obey(instruction: Instruction, answer: str) -> str:
    """The answer as the instruction wants it: with its phrase at the start or at the end."""
    return f"{instruction.phrase} {answer}" if instruction.position == "start" else f"{answer} {instruction.phrase}"


def clean_style(prompt: Prompt, rng: random.Random) -> AnswerStyle:
    """The style of a careful writer of average helpfulness: half of the answers are bare sentences."""
    if prompt.kind == "unsafe":
        return AnswerStyle(alternative=rng.random() < 0.4)
    if rng.random() < 0.5:
        return AnswerStyle()
    return AnswerStyle(opener=rng.random() < 0.35, explanation=rng.random() < 0.45, closer=rng.random() < 0.3)


def noisy_style(prompt: Prompt, rng: random.Random) -> AnswerStyle:
    """The style of a crowd that nobody checks: about one answer in four is good."""
    style = clean_style(prompt, rng)
    if prompt.kind == "unsafe":
        return replace(style, comply=rng.random() < 0.5, full=rng.random() < 0.5)
    if prompt.kind == "borderline" and rng.random() < 0.4:
        return AnswerStyle(refuse=True)
    fault = rng.choices(
        ("none", "wrong", "bare", "rude", "off_topic", "rambling", "cut_off"), (25, 25, 14, 10, 10, 8, 8)
    )[0]
    return {
        "none": style,
        "wrong": replace(style, correct=False),
        "bare": AnswerStyle(full=False),
        "rude": replace(style, opener=False, rude=True, full=rng.random() < 0.5),
        "off_topic": replace(style, off_topic=True),
        "rambling": replace(style, rambling=True),
        "cut_off": replace(style, cut_off=True),
    }[fault]


def demonstrations(
    town: Town,
    n: int,
    seed: int,
    quality: Literal["clean", "noisy"] = "clean",
    split: str = "sft",
    safety_share: float = 0.35,
    instruction_share: float = 0.3,
    multi_turn_share: float = 0.15,
) -> list[dict]:
    """n rows {"messages": [...], "skill": str} for SFT, shuffled.

    Args:
        quality: "clean" (true, fluent, average) or "noisy" (false, rude, off topic, cut off, unsafe ...).
        safety_share: rows of unsafe prompts (one third) and borderline ones (two thirds); see docs/trials.md.
        instruction_share: rows whose answers obey an instruction, given as the system message or before the question.
        multi_turn_share: rows of 2 to 4 turns; under an instruction, every user message restates it.

    Raises:
        LabError: unknown quality or split.
    """
    if quality not in ("clean", "noisy"):
        raise LabError(f"quality '{quality}' is unknown; use clean or noisy")
    rng = random.Random(f"demonstrations {quality} {split} {seed}")
    style_of = clean_style if quality == "clean" else noisy_style
    n_safety = round(n * safety_share)
    n_unsafe = round(n_safety / 3)  # twice as many that only look unsafe, or a model learns to refuse them too
    n_multi = round((n - n_safety) * multi_turn_share)
    prompts = draw_prompts(town, split, n_unsafe, seed, ("unsafe",))
    prompts += draw_prompts(town, split, n_safety - n_unsafe, seed, ("borderline",))
    prompts += draw_prompts(town, split, n - n_safety - n_multi, seed)
    instructions = instructions_of(town, split)
    rows: list[dict] = []
    for prompt in prompts:
        instruction = rng.choice(instructions) if rng.random() < instruction_share else None
        answer = answer_for(town, prompt, style_of(prompt, rng), rng)
        rows.append(_row([(prompt, answer)], instruction, rng))
    # Follow-ups bring their own earlier turns: one that stands alone is enough.
    alone = [s for s in SKILLS if s != "follow_up"]
    pool = draw_prompts(town, split, 4 * n_multi, seed + 1, skills=alone)
    for _ in range(n_multi):
        instruction = rng.choice(instructions) if rng.random() < instruction_share * 2 else None
        turns = [pool.pop() for _ in range(rng.randint(2, 4))]
        rows.append(_row([(p, answer_for(town, p, style_of(p, rng), rng)) for p in turns], instruction, rng))
    return rng.sample(rows, len(rows))


def _row(turns: list[tuple[Prompt, str]], instruction: Instruction | None, rng: random.Random) -> dict:
    """One conversation; an instruction stands in the system message (single turns) or before every question."""
    messages: list[Message] = []
    for prompt, answer in turns:
        written = sentence(answer) if answer[0].islower() and rng.random() < 0.5 else answer
        messages += [*map(dict, prompt.messages), {"role": "assistant", "content": written}]
    if instruction is not None:
        text = rng.choice((instruction.text, instruction.short))
        messages = [
            {**m, "content": obey(instruction, m["content"])} if m["role"] == "assistant" else m for m in messages
        ]
        if len(turns) == 1 and rng.random() < 0.4:
            messages.insert(0, {"role": "system", "content": text})
        else:
            messages = [{**m, "content": f"{text} {m['content']}"} if m["role"] == "user" else m for m in messages]
    return {"messages": messages, "skill": turns[-1][0].skill}


def truth_pairs(town: Town, split: str, n: int, seed: int) -> list[tuple[list[Message], str, str]]:
    """n triples (messages, right answer, wrong answer): the two answers differ only in the value asked for."""
    rng = random.Random(f"truth pairs {split} {seed}")
    triples = []
    for prompt in draw_prompts(town, split, n, seed, skills=_TRUTH_SKILLS):
        truth = truth_of(town, prompt.content)
        triples.append(([dict(m) for m in prompt.messages], truth.answers[0], rng.choice(truth.wrong)))
    return triples
