"""Exercises of notebook 09: Ghost Attention (Llama 2, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import judge, read
from llama2lab.lab.predictions import Choice, Guess, Prediction
from llama2lab.lessons.n04_sft.exercises import CONVERSATION, EOS, library_mask, marks, sft_mask
from llama2lab.lessons.n09_gatt.own_output import draw_gatt_mask, draw_row
from llama2lab.model.chat import encode_chat
from llama2lab.stages import gatt


def gatt_mask(ids: Sequence[int]) -> list[int]:
    """1 on the last answer and its </s>, as the library marks it."""
    return library_mask(ids, "last")


def check_gatt(f: Callable) -> None:
    for ids in (CONVERSATION, CONVERSATION[:14], CONVERSATION[:8]):
        right = torch.tensor(gatt_mask(ids))
        every = torch.tensor(sft_mask(ids))
        cut = ids.index(EOS) + 1
        first = torch.where(torch.arange(len(ids)) < cut, every, 0)
        ends = torch.tensor([int(token == EOS) for token in ids])
        judge(
            read(f(ids), (len(ids),), "the mask"),
            right,
            (
                every,
                "All answers are learnt; the report zeroes the loss of previous turns, answers included: they were "
                "written with the instruction before each turn, which is gone.",
            ),
            (every - right, "The mask is inverted over the answers: the last one alone is learnt."),
            (1 - right, "The mask is inverted."),
            (first, "That is the first answer; the last one is learnt."),
            (right - right * ends, "The closing </s> of the last answer belongs to it."),
            (
                marks(ids, end_inst=True) * (torch.arange(len(ids)) >= int(right.argmax()) - 1),
                "[/INST] belongs to the prompt.",
            ),
            what="the mask",
            tolerance=0,
        )


GATT_MASK = Exercise(
    "09.gatt_mask",
    "Ghost Attention's mask",
    "Write gatt_mask(ids) -> a list of 0 and 1: 1 on the last answer and its </s> alone. Ids as in the mask of SFT: 1 "
    "is <s>, 2 is </s>, 4 is [INST], 5 is [/INST].",
    Level(difficulty=2, minutes=8, points=2),
    "3.3",
    ("The last answer begins after the last 5.", "Search from the end of the list."),
    check_gatt,
    gatt_mask,
    lesson="The mask cuts no attention: the earlier turns are read in full, only nothing is learnt of how they were "
    "written. What is learnt is to read past them, back to the first message.",
    picture=draw_gatt_mask,
)

TOLD = "Answer as a pirate."
ASKED = ("Where is Mira?", "Answer as a pirate. Is that rude?", "Who bakes?", "How old is Sam?")
SAID = ("Ahoy! At home.", "Ahoy! No.", "Ahoy! Tom.", "Ahoy! He is 40.")


def messages_in(value: Any, what: str = "the result") -> list[tuple[str, str]]:
    """(role, content) of each message of an answer."""
    if not isinstance(value, list | tuple) or not all(
        isinstance(m, Mapping) and isinstance(m.get("content"), str) and "role" in m for m in value
    ):
        raise Mistake(f'{what.capitalize()} must be a list of messages {{"role": ..., "content": text}}.')
    return [(str(m["role"]), m["content"]) for m in value]


def wrongly(
    questions: Sequence[str], answers: Sequence[str], prompt: Callable[[int, str], str], reply: str = ""
) -> list[tuple[str, str]]:
    """The messages of a dialogue: user messages are prompt(turn, question), answers begin with `reply`."""
    made = []
    for t, question in enumerate(questions[: len(answers) + 1]):
        made.append(("user", prompt(t, question)))
        made += [("assistant", reply + answers[t])] if t < len(answers) else []
    return made


def judge_messages(
    got: list[tuple[str, str]], right: list[tuple[str, str]], wrongs: Sequence[tuple[list[tuple[str, str]], str]]
) -> None:
    """Raise Mistake unless the messages are right, with the name of the mistake where it is known."""
    if got == right:
        return
    for value, name in wrongs:
        if got == value:
            raise Mistake(name)
    if len(got) != len(right):
        raise Mistake(f"{len(got)} messages; here {len(right)} are expected.")
    at = next(i for i, (a, b) in enumerate(zip(got, right, strict=True)) if a != b)
    given, expected = (f"{role}: {content}" for role, content in (got[at], right[at]))
    raise Mistake(f"Message {at + 1} is {given[:120]!r}; {expected[:120]!r} is right.")


def check_messages(f: Callable) -> None:
    for n, everywhere in ((2, True), (2, False), (3, False), (0, True), (4, False), (3, True)):
        check_dialogue(f, ASKED[: n + 1], SAID[:n], everywhere)


def check_dialogue(f: Callable, questions: Sequence[str], answers: Sequence[str], everywhere: bool) -> None:
    right = messages_in(gatt.dialogue_messages(TOLD, questions, answers, everywhere))
    made = partial(wrongly, questions, answers)

    def told(t: int) -> bool:
        return everywhere or t == 0

    judge_messages(
        messages_in(f(TOLD, list(questions), list(answers), everywhere)),
        right,
        (
            (
                made(lambda t, q: f"{TOLD} {q}"),
                "The instruction stands before every question, although `everywhere` is False.",
            ),
            (
                made(lambda t, q: q if t else f"{TOLD} {q}"),
                "The instruction stands before the first question only, although `everywhere` is True.",
            ),
            (made(lambda t, q: q), "The instruction is missing."),
            (
                made(lambda t, q: f"{TOLD} {q}" if t == len(answers) else q),
                "The instruction stands before the last question; without `everywhere` it is the first.",
            ),
            (
                made(lambda t, q: f"{q} {TOLD}" if told(t) else q),
                "The question stands first; it is the instruction, then the question.",
            ),
            (made(lambda t, q: TOLD + q if told(t) else q), "Between instruction and question belongs a space."),
            (
                [("system", TOLD), *made(lambda t, q: q)],
                "The instruction is a part of the user's message here, no system message.",
            ),
            (
                right[: 2 * len(answers)],
                "The last question is missing: where there is one more than answers, it is to be answered next.",
            ),
            (
                [("assistant" if role == "user" else "user", text) for role, text in right],
                "The roles are swapped: questions are the user's, answers the assistant's.",
            ),
            (
                made(lambda t, q: f"{TOLD} {q}" if told(t) else q, reply=f"{TOLD} "),
                "The instruction stands in the answers too; the assistant never says it.",
            ),
            (
                sorted(right, key=lambda message: message[0], reverse=True),
                "All questions come first, then all answers; they take turns.",
            ),
        ),
    )


DIALOGUE_MESSAGES = Exercise(
    "09.dialogue_messages",
    "A dialogue, asked and trained",
    "Write dialogue_messages(instruction, questions, answers, everywhere) -> a list of messages {'role': 'user' or "
    "'assistant', 'content': text} that take turns. The instruction and a space stand before every question, or with "
    "everywhere=False before the first alone. One question more than there are answers is to be answered next and "
    "stands at the end.",
    Level(difficulty=2, minutes=12, points=3),
    "3.3",
    (
        "enumerate(questions) gives the turn; the first one is 0.",
        "`if everywhere or t == 0` is all that tells the two apart.",
        "After each question its answer, if t < len(answers).",
    ),
    check_messages,
    gatt.dialogue_messages,
    lesson="One flag is the whole difference between the conversation that was sampled and the one that is trained on. "
    "The answers are the same: what the model learns lies in what is no longer said.",
)


def gatt_row(
    instruction: str, questions: Sequence[str], answers: Sequence[str], turns: int
) -> tuple[list[dict], list[int]]:
    """The messages of the library's row, and for each whether training learns it, as the library's mask has it."""
    row = gatt.gatt_row(instruction, questions, answers, turns)
    messages = row["messages"]
    one_each = [[0]] * len(messages)  # a token for each message
    return messages, encode_chat(lambda texts, **options: {"input_ids": one_each}, messages, mask_turns=row["loss"])[1]


def check_row(f: Callable) -> None:
    for turns in (3, 1, 4):
        check_turns(f, turns)


def check_turns(f: Callable, turns: int) -> None:
    result = f(TOLD, list(ASKED), list(SAID), turns)
    if not isinstance(result, tuple | list) or len(result) != 2 or isinstance(result[0], Mapping):
        raise Mistake("Two lists are expected: the messages, and for each of them 1 where it is learnt, else 0.")
    made, learnt = gatt_row(TOLD, ASKED, SAID, turns)
    right, asked, said = messages_in(made), ASKED[:turns], SAID[:turns]

    def messages(questions: Sequence[str], answers: Sequence[str], everywhere: bool = False) -> list[tuple[str, str]]:
        return messages_in(gatt.dialogue_messages(TOLD, questions, answers, everywhere))

    judge_messages(
        messages_in(result[0], "the first list"),
        right,
        (
            (
                messages(asked, said, True),
                "The instruction still stands before every question: so the answers were sampled. In training it stays "
                "in the first message alone.",
            ),
            (messages(ASKED, SAID), "The dialogue is not cut: only its first `turns` turns belong into the row."),
            (messages(ASKED[-turns:], SAID[-turns:]), "Those are the last turns; the row holds the first ones."),
            (right[:-1], "The last answer is missing, and it is the one that is learnt."),
            (messages(ASKED[: turns + 1], said), "A question stands at the end; the row ends with an answer."),
            ([("user", asked[0]), *right[1:]], "The instruction is gone from the first message too."),
            (
                wrongly(asked, said, lambda t, q: q.replace(TOLD, "").strip() if t else f"{TOLD} {q}")[: 2 * turns],
                "A question in which the user says the same words has lost them: only what was put before it may go.",
            ),
            (
                wrongly(asked, said, lambda t, q: f"{TOLD} {q}" if t == turns - 1 else q)[: 2 * turns],
                "The instruction stands before the last question: then nothing has to be remembered.",
            ),
        ),
    )
    n = 2 * turns
    judge(
        read(result[1], (n,), "the second list"),
        torch.tensor(learnt),
        (
            torch.tensor([i % 2 for i in range(n)]),
            "All answers are learnt. The earlier ones were written under a reminder that is gone: only the last one "
            "counts.",
        ),
        (1 - torch.tensor(learnt), "It is inverted: 1 is what is learnt."),
        (torch.tensor([int(i == 1) for i in range(n)]), "That is the first answer; the last one is learnt."),
        (
            torch.tensor([int(i >= n - 2) for i in range(n)]),
            "The last question is the user's and is not learnt; its answer alone is.",
        ),
        (torch.tensor([int(i == n - 2) for i in range(n)]), "That is the last question; its answer is learnt."),
        (torch.ones(n), "Everything is learnt; only the last answer counts."),
        what="the second list",
        tolerance=0,
    )


GATT_ROW = Exercise(
    "09.gatt_row",
    "A training row of Ghost Attention",
    "Write gatt_row(instruction, questions, answers, turns) -> (messages, learnt): the first `turns` turns of the "
    "dialogue as training has it, and a list with a number for each message: 1 where the loss counts, else 0. There "
    "are as many answers as questions.",
    Level(difficulty=3, minutes=12, points=3),
    "3.3",
    (
        "Your dialogue_messages makes the messages; cut questions and answers first.",
        "Of all messages one is learnt.",
    ),
    check_row,
    gatt_row,
    lesson="Cutting at a random turn makes rows of every length from a few long dialogues, so each turn is once the "
    "last one. Late turns stay rare: only the longest rows show them.",
    picture=partial(draw_row, TOLD, ASKED, SAID),
)

WHERE = Exercise(
    "09.where",
    "Where is the instruction?",
    "In training data of Ghost Attention, before which messages does the instruction stand?",
    Level(difficulty=2, minutes=2, points=1),
    "3.3",
    ("Sampling and training differ.",),
    Choice(
        a=(
            "before every user message",
            "That is how the answers were sampled. Trained so, the model would need the reminder for ever.",
        ),
        b="before the first one only",
        c=("before the last one only", "Then nothing would have to be remembered over the turns between."),
    ),
    lesson="It is distillation of a context: a model with a reminder teaches the same model without it. The report's "
    "safety context distillation (notebook 12) does the same with a preprompt.",
)

TURN_20 = Prediction(
    "09.turn_20",
    "Turn twenty",
    "Predict the share of dialogues in which the model trained with Ghost Attention still obeys at turn 20.",
    Level(difficulty=1, minutes=2, points=1),
    "3.3",
    ("Without it, nearly none does.",),
    Guess(
        0.0,
        1.0,
        "It holds longer than you thought.",
        "It fades more than you thought: a small model forgets over twenty turns.",
        absolute=0.1,
    ),
    lesson="The report's table 30: 100 percent at turns 2 to 20 with; 100, 10 and 0 percent at turns 2, 4 and 6 "
    "without.",
)

EXERCISES = (DIALOGUE_MESSAGES, WHERE, GATT_ROW, GATT_MASK, TURN_20)
