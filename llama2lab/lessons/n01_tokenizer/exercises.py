"""Exercises of notebook 01: the tokenizer and the data (Llama 2, sections 2.1 and 2.2)."""

from __future__ import annotations

from llama2lab.lab.checking import Exercise, Level
from llama2lab.lab.predictions import Choice, Guess, Number, Prediction

DIGITS = Exercise(
    "01.digits",
    "A number in tokens",
    "Digits stand alone, as in Llama 2. How many tokens does the text 2026 take (spaces and control tokens not "
    "counted)?",
    Level(difficulty=1, minutes=1, points=1),
    "2.2",
    ("One token a digit.",),
    Number(
        4,
        (
            (1, "A tokenizer that merges digits would do that; here each stands alone."),
            (2, "Pairs of digits are not merged: each stands alone."),
        ),
        relative=0.0,
    ),
)

WHY_BYTES = Exercise(
    "01.why_bytes",
    "A character never seen",
    "The corpus holds no snowman. What becomes of it in our tokenizer?",
    Level(difficulty=1, minutes=2, points=1),
    "2.2",
    ("From what does the vocabulary start?",),
    Choice(
        a=("the unknown token", "Every byte has a token of its own, so nothing is unknown."),
        b="its bytes, three tokens",
        c=("nothing, it is dropped", "A tokenizer that drops text could not give it back; ours gives back every text."),
    ),
)

MORE_VOCABULARY = Exercise(
    "01.more_vocabulary",
    "Twice the vocabulary",
    "The plot shows tokens a text against the size of the vocabulary. Why does the curve flatten?",
    Level(difficulty=2, minutes=3, points=1),
    "2.2",
    ("Which pairs are merged first?",),
    Choice(
        a="frequent pairs are merged first, later ones save little",
        b=("texts cannot get shorter than one token", "True of any text, but the curve flattens long before."),
        c=("long tokens are slower", "Speed is not what the plot shows."),
    ),
)

COMPRESSION = Prediction(
    "01.compression",
    "Bytes in a token",
    "Predict how many bytes of the town's text one token of our tokenizer holds on average.",
    Level(difficulty=1, minutes=2, points=1),
    "2.2",
    ("Without merges it is exactly 1.",),
    Guess(
        1.0,
        20.0,
        "The town repeats itself: frequent words are single tokens.",
        "A small vocabulary has no room for every word.",
        relative=0.2,
    ),
)

EXERCISES = (DIGITS, WHY_BYTES, MORE_VOCABULARY, COMPRESSION)
