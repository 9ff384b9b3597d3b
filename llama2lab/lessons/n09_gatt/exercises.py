"""Exercises of notebook 09: Ghost Attention (Llama 2, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llama2lab.lab.checking import Exercise, Level
from llama2lab.lab.compare import judge, read
from llama2lab.lab.predictions import Choice, Guess, Prediction
from llama2lab.lessons.n04_sft.exercises import CONVERSATION, EOS, library_mask, marks, sft_mask


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

EXERCISES = (GATT_MASK, WHERE, TURN_20)
