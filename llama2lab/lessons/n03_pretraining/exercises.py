"""Exercises of notebook 03: pretraining (Llama 2, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Callable

from llama2lab.engine.optim import Optim, cosine_lr
from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import judge, read
from llama2lab.lab.predictions import Choice, Guess, Number, Prediction


def learning_rate(step: int, steps: int, peak: float, warmup: int, final: float) -> float:
    """The library's schedule, which takes the warm-up as a share of the steps."""
    return cosine_lr(step, steps, Optim(lr=peak, warmup=warmup / steps, final=final))


def check_schedule(f: Callable) -> None:
    steps, peak, warmup, final = 40, 2e-3, 8, 0.1
    at = range(steps)
    got = read([float(read(f(s, steps, peak, warmup, final), (), "the rate")) for s in at], (steps,)) / peak
    right = read([learning_rate(s, steps, peak, warmup, final) for s in at]) / peak
    share = [(s - warmup) / (steps - 1 - warmup) for s in at]

    def variant(up: Callable[[int], float], down: Callable[[float], float], start: bool = False) -> list[float]:
        return [up(s) if s < warmup else down(s / (steps - 1) if start else share[s]) for s in at]

    def ramp(s: int) -> float:
        return (s + 1) / warmup

    def cosine(x: float) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * x)) / 2

    if got[0] == 0 and right[0] > 0:
        raise Mistake(
            "The first step has a rate of 0 and learns nothing: at step s of the warm-up it is peak * (s + 1) / warmup."
        )
    judge(
        got,
        right,
        (variant(lambda s: 1.0, cosine), "There is no warm-up: in the first steps the rate climbs in a line."),
        (variant(ramp, lambda x: (1 + math.cos(math.pi * x)) / 2), "The rate ends at 0; it ends at final * peak."),
        (
            variant(ramp, cosine, start=True),
            "The cosine begins at step 0, so that the rate jumps after the warm-up: it begins when the warm-up ends.",
        ),
        (
            variant(ramp, lambda x: 1 - (1 - final) * x),
            "That is a line down; here it is half a wave of the cosine.",
        ),
        (
            variant(ramp, lambda x: final + (1 - final) * math.cos(math.pi * x / 2)),
            "That is a quarter of a wave, which is steep at the end: use (1 + cos(pi * progress)) / 2.",
        ),
        (
            variant(ramp, lambda x: final + (1 + math.cos(math.pi * x)) / 2),
            "The rate goes above the peak: scale the wave by 1 - final before you add final.",
        ),
        what="the rate as a share of the peak",
    )


SCHEDULE = Exercise(
    "03.schedule",
    "The learning rate",
    "Write schedule(step, steps, peak, warmup, final): peak * (step + 1) / warmup for step < warmup, then half a "
    "cosine wave from peak (at step == warmup) down to final * peak (at the last step, steps - 1).",
    Level(difficulty=2, minutes=10, points=2),
    "2.2",
    (
        "After the warm-up let progress run from 0 to 1: (step - warmup) / (steps - 1 - warmup).",
        "(1 + cos(pi * progress)) / 2 runs from 1 to 0.",
    ),
    check_schedule,
    learning_rate,
)

STEPS = Exercise(
    "03.steps",
    "How many steps?",
    "Llama 2 saw 2.0 trillion tokens in batches of 4 million. How many optimiser steps are that?",
    Level(difficulty=1, minutes=2, points=1),
    "2.2",
    ("Divide.",),
    Number(
        500_000,
        (
            (500, "2 trillion is 2,000,000 millions, not 2,000."),
            (8e18, "Divide, do not multiply."),
            (2000, "2,000 steps are the warm-up."),
        ),
        relative=0.02,
    ),
)

NO_WARMUP = Exercise(
    "03.no_warmup",
    "Without warm-up",
    "The plot shows the loss with and without warm-up. Why does the second jump up at first?",
    Level(difficulty=2, minutes=3, points=1),
    "2.2",
    ("What does Adam know about the gradients in its first steps?",),
    Choice(
        a=("the data are harder at the start", "Both runs read the same batches in the same order."),
        b="Adam's estimates rest on a few gradients, and the steps are full size",
        c=("the weights are still zero", "The weights are random, not zero; with zeros nothing would move at all."),
    ),
)

FIRST_LOSS = Prediction(
    "03.first_loss",
    "The loss before any training",
    "The model has learnt nothing yet. Predict its loss in nats from the number of tokens that the tokenizer knows.",
    Level(difficulty=2, minutes=3, points=1),
    "2.2",
    ("How likely is each token to a model that knows nothing?",),
    Guess(
        0.0,
        30.0,
        "An ignorant model spreads its belief over all tokens: the loss is the logarithm of their number.",
        "Worse than ignorance takes certainty: a belief spread evenly has the logarithm of the number of tokens.",
        absolute=0.3,
    ),
    lesson="The natural logarithm of the number of tokens; a little more, for an untrained model is sure of something.",
)

EXERCISES = (SCHEDULE, STEPS, NO_WARMUP, FIRST_LOSS)
