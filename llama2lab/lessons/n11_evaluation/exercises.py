"""Exercises of notebook 11: evaluation (Llama 2, sections 2.2.1, 3.4 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from llama2lab.engine.stats import effective_n, wilson
from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import Wrong, judge, randn, read
from llama2lab.lab.predictions import Choice, Number, Pick, Prediction
from llama2lab.lessons.n11_evaluation.own_output import draw_effective, draw_win_rate

POINTS = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def win_rate(outcomes: Sequence[str]) -> tuple[float, float, float]:
    """The share of points, with the library's Wilson interval."""
    share = sum(POINTS[o] for o in outcomes) / len(outcomes)
    return share, *wilson(share, len(outcomes))


def check_win_rate(f: Callable) -> None:
    for wins, ties, losses in ((12, 5, 8), (9, 0, 1), (6, 0, 0)):
        outcomes = ["win"] * wins + ["loss"] * losses + ["tie"] * ties
        n = len(outcomes)
        right = win_rate(outcomes)
        result = f(outcomes)
        if not isinstance(result, tuple | list) or len(result) != 3:
            raise Mistake("Three numbers are expected: the rate, and the lower and upper end of its interval.")
        rate, low, high = read(result, (3,), "the result").double().tolist()
        judge(
            read(rate),
            right[0],
            (wins / n, "Ties count half a point; here they count as losses."),
            (wins / max(1, wins + losses), "Ties count half a point; here they are left out."),
            ((wins + ties) / n, "Ties count half a point; here they count as wins."),
            (100 * right[0], "Give a share between 0 and 1, not percent."),
            (losses / n + ties / n / 2, "That is the other model's rate."),
            what="the rate",
        )
        half = 1.96 * (right[0] * (1 - right[0]) / n) ** 0.5
        if low > high:
            raise Mistake("The lower end comes first, then the upper one.")
        known = (
            (
                (right[0] - half, right[0] + half),
                "That is the plain interval, rate plus or minus 1.96 standard errors: near 1 it leaves [0, 1], and for "
                "6 of 6 it has no width. Wilson's does not.",
            ),
            (
                (max(0.0, right[0] - half), min(1.0, right[0] + half)),
                "That is the plain interval, cut at 0 and 1: for 6 of 6 it has no width, as if six games made certain. "
                "Use Wilson's.",
            ),
            ((right[0] - half / 1.96, right[0] + half / 1.96), "That is one standard error; a 95 % interval has 1.96."),
            (wilson(right[0], n, 1.0), "z is 1.96 for 95 %; you use 1."),
        )
        for ends, name in known:
            if abs(low - ends[0]) + abs(high - ends[1]) < 1e-3 and abs(low - right[1]) + abs(high - right[2]) > 1e-3:
                raise Mistake(name)
        judge(read([low, high]), right[1:], what="the interval", tolerance=1e-3)


WIN_RATE = Exercise(
    "11.win_rate",
    "A win rate with its interval",
    "Write win_rate(outcomes) -> (rate, low, high) for a list of 'win', 'tie' and 'loss': a tie is half a point; low "
    "and high are Wilson's 95 % interval (z = 1.96) of that rate among n.",
    Level(difficulty=3, minutes=12, points=3),
    "3.4",
    (
        "Wilson: the middle is (p + z²/2n) / (1 + z²/n).",
        "Half the width is z / (1 + z²/n) * sqrt(p (1 - p) / n + z² / 4n²).",
    ),
    check_win_rate,
    win_rate,
    lesson="Four times the prompts halve an interval. Wilson's asks which true rates would have made the result "
    "likely, so it never leaves 0 to 1 and is never of no width.",
    picture=draw_win_rate,
)


def check_effective(f: Callable) -> None:
    alike = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    apart = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    for values, groups in (
        (alike, list("aaabbbbccddd")),
        ((randn(9, seed=3) + torch.arange(9) // 3 * 1.5).tolist(), list("xyzxyzxyz")[::-1]),
        (apart, list("aabbccdd")),
        ([0.0] * 6, list("aabbcc")),
    ):
        x, n, names = np.array(values), len(values), sorted(set(groups))
        sums = np.array([sum(v - x.mean() for v, g in zip(x, groups, strict=True) if g == name) for name in names])
        means = np.array([np.mean([v for v, g in zip(x, groups, strict=True) if g == name]) for name in names])
        right, what = effective_n(values, groups), "the effective number"
        got = read(f(values, groups), (), f"{what} where all values are equal" if x.var() == 0 else what)
        count = len(names)
        wrongs: list[Wrong] = [(n, "Groups are not used: alike values count as if each said something new.")]
        if x.var() > 0:
            effect = float(count / (count - 1) * (sums**2).sum() / (n * x.var(ddof=1)))
            wrongs += [
                (effect, "That is the design effect; n is divided by it."),
                (n / effect, "It is never more than n: a design effect under 1 counts as 1."),
                (n * max(1.0, effect), "n is divided by the design effect, not multiplied."),
                (
                    n / max(1.0, effect * (count - 1) / count),
                    "The factor G / (G - 1) is missing: the sums are taken about a mean that they made themselves.",
                ),
                (n / max(1.0, effect * x.var(ddof=1) / x.var()), "The variance has n - 1 in its denominator, not n."),
                (
                    float(x.var(ddof=1) / (means.var(ddof=1) / count)),
                    "You compare the groups' means: then a group of one value weighs as much as one of many.",
                ),
                (count, "That is the number of groups, as if a group said no more than one value."),
            ]
        judge(got, right, *wrongs, what=what)


EFFECTIVE_N = Exercise(
    "11.effective_n",
    "How many prompts are these?",
    "Write effective_n(values, groups) -> n / max(1, D), the number of independent values that would say as much as "
    "these n, of which some share a group. D is the design effect, G / (G - 1) * sum of s_g² / (n * variance): G "
    "groups, s_g the sum over a group of value less the mean of all, the variance with n - 1. Where all values are "
    "equal give G.",
    Level(difficulty=3, minutes=12, points=3),
    "3.4; Kish 1965",
    (
        "Sum the deviations of each group in a dictionary; the groups are in no order.",
        "If values of a group were independent, s_g² would be about its size times the variance, and D about 1.",
    ),
    check_effective,
    effective_n,
    lesson="Five wordings of one question are hardly five questions. Whoever counts them so gets intervals that are "
    "too narrow and finds differences that the next set of prompts does not show.",
    picture=draw_effective,
)

OVERLAP = Exercise(
    "11.overlap",
    "A difference or chance?",
    "Model A wins .54 [.47, .61] against model B. What may you say?",
    Level(difficulty=1, minutes=2, points=1),
    "3.4",
    ("Where is one half?",),
    Choice(
        a=("A is better", "One half lies within the interval: chance alone may give .54."),
        b="the data do not tell which is better",
        c=("they are equally good", "That is more than the data say: a true .60 lies within the interval too."),
    ),
    lesson="Not significant is not equal: the interval is the answer, and more prompts are the cure. That two models' "
    "intervals overlap would say less still: compare them pair by pair.",
)


NARROWER = Prediction(
    "11.narrower",
    "Where does variety go?",
    "Self-BLEU rises where answers to one prompt grow alike. Predict for which prompts it rises more from SFT to the "
    "last model, at temperature 0.9.",
    Level(difficulty=2, minutes=2, points=1),
    "5.1",
    ("Which prompts have one good answer?",),
    Pick(
        factual=("questions with one true answer", "The report's finding did not come out here."),
        creative=("stories", "Where one answer is right, the reward leaves no other."),
        neither=("no difference beyond chance", "The two differ by more than chance."),
    ),
    lesson="The report: RLHF takes variety from factual prompts and leaves creative ones theirs (figure 21).",
)

CARBON = Exercise(
    "11.carbon",
    "The carbon of the 7B",
    "Table 2: 184,320 GPU hours at 400 W for the 7B model. With 0.4235 kg of CO2eq for each kWh, how many tons is "
    "that?",
    Level(difficulty=2, minutes=4, points=1),
    "2.2.1",
    ("Watts times hours are watt-hours; 1,000 make a kWh.", "1,000 kg make a ton."),
    Number(
        31.22,
        (
            (31_220, "Those are kilograms; a ton has 1,000."),
            (31_220_000, "Watt-hours are not kWh: divide by 1,000, and again for tons."),
            (73.73, "That is the energy in MWh; it is still to be multiplied by 0.4235."),
            (174.1, "Multiply by the carbon of a kWh, do not divide."),
        ),
        relative=0.01,
    ),
    lesson="The chips' rated power is not what a centre draws: cooling and networks come on top, and where the power "
    "comes from decides more than the hours do. The report says that its tons were offset.",
)

MONTHLY_USERS = Exercise(
    "11.monthly_users",
    "Who must ask?",
    "A company had 800 million monthly users when the model came out and wants to build it into its product. What does "
    "the licence say?",
    Level(difficulty=1, minutes=2, points=1),
    "model card; licence",
    ("The number is 700 million.",),
    Choice(
        a=("it may, like everybody", "Above 700 million monthly users the licence grants nothing by itself."),
        b="it must ask Meta for a licence of its own",
        c=(
            "commercial use is forbidden to all",
            "Commercial use is allowed; the clause is about a handful of very large companies.",
        ),
    ),
    lesson="Free for nearly all and closed to the few who compete: such a licence is not open source by that "
    "movement's own definition, which allows no exception by size or use.",
)

OPEN_PARTS = Exercise(
    "11.open_parts",
    "What is open?",
    "Which of these did the release give to everybody who accepts the licence?",
    Level(difficulty=1, minutes=2, points=1),
    "model card; licence",
    ("What would you need to train it again?",),
    Choice(
        a="the weights",
        b=(
            "the pretraining data",
            "The report describes the pretraining data in a few sentences; nobody outside can look at them.",
        ),
        c=("the 1.4 million comparisons", "The comparisons and the reward models were kept back."),
        d=("the code that trained it", "Code to run the models was published, the code that trained them was not."),
    ),
    lesson="Weights let you run, probe and fine-tune a model. Without data and code nobody can repeat it, say what it "
    "has read, or find out which step made it so.",
)

EXERCISES = (
    WIN_RATE,
    OVERLAP,
    EFFECTIVE_N,
    NARROWER,
    CARBON,
    MONTHLY_USERS,
    OPEN_PARTS,
)
