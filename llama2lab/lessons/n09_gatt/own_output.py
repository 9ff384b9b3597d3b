"""Pictures of a student's own output in notebook 09: a row of Ghost Attention, and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llama2lab.lab.own_output import Answer, numbers, own, texts
from llama2lab.lab.pictures import table
from llama2lab.lessons.n04_sft.own_output import draw_mask

draw_gatt_mask = partial(draw_mask, "Your loss mask of Ghost Attention")


def draw_row(instruction: str, questions: Sequence[str], answers: Sequence[str], f: Answer) -> str:
    """The messages of the student's row of three turns, and which of them are learnt."""
    turns = 3
    messages, learnt = f(instruction, list(questions), list(answers), turns)
    marks = numbers(learnt, 2 * turns)
    said = [texts([m["role"], m["content"]], 2) for m in messages]
    rows = [[role[:20], text[:120], "yes" if on else ""] for (role, text), on in zip(said, marks, strict=True)]
    return own(f"Your training row of {turns} turns", table(["who", "says", "learnt"], rows))
