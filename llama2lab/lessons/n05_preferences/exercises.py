"""Exercises of notebook 05: preferences and agreement (Llama 2, section 3.2.1)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llama2lab.annotation.agreement import coefficients as agreement
from llama2lab.lab.checking import Exercise, Level
from llama2lab.lab.compare import judge, read
from llama2lab.lab.predictions import Choice, Guess, Order, Prediction

TABLE = np.array([[3, 0], [2, 1], [0, 3], [3, 0], [1, 1], [1, 0], [4, 0], [2, 2]])


def percent_agreement(table: np.ndarray) -> float:
    """The library's figure for counts (items, categories)."""
    counts = agreement.counts_from(table.tolist(), range(len(table)), table.shape[1])
    return agreement.figures_of(counts, "nominal", resamples=1)["percent"]["mean"]


def gwet_ac1(table: np.ndarray) -> float:
    """The library's Gwet coefficient without weights between categories."""
    return agreement.gwet_of(table, np.eye(table.shape[1]))


def _pieces(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(agreement of each item judged twice or more, share of each category)."""
    raters = table.sum(1)
    twice = raters > 1
    agree = (table * (table - 1)).sum(1)[twice] / (raters * (raters - 1))[twice]
    return agree, (table / raters[:, None]).mean(0)


def check_percent(f: Callable) -> None:
    for table in (TABLE, np.array([[2, 0, 1], [1, 1, 1], [0, 3, 0]])):
        raters = table.sum(1)
        twice = raters > 1
        agree, _ = _pieces(table)
        judge(
            read(f(table), (), "the agreement"),
            percent_agreement(table),
            (
                agree.sum() / len(table),
                "Items judged by one person alone say nothing about agreement: leave them out, also when you divide.",
            ),
            (
                ((table / raters[:, None]) ** 2).sum(1)[twice].mean(),
                "You pair every judgement with itself too: of n judgements there are n * (n - 1) pairs.",
            ),
            (
                ((table / raters[:, None]) ** 2).sum(1).mean(),
                "You pair every judgement with itself too, and count items judged only once.",
            ),
            (
                (table.max(1) / raters)[twice].mean(),
                "That is the share of the majority; agreement counts pairs of people.",
            ),
            (
                (table.max(1) == raters)[twice].mean(),
                "That is the share of items on which all agree; agreement counts pairs of people.",
            ),
            (agree.mean() * 100, "Give a share between 0 and 1, not percent."),
            what="the agreement",
        )


PERCENT = Exercise(
    "05.percent_agreement",
    "Percent agreement",
    "Write percent_agreement(table): table (items, categories) counts the judgements. For each item judged by two or "
    "more, the share of pairs of people who agree; then the mean over these items.",
    Level(difficulty=2, minutes=10, points=2),
    "3.2.1",
    (
        "Of n people, n * (n - 1) ordered pairs; c * (c - 1) of them agree on a category chosen c times.",
        "Leave out items with fewer than two judgements.",
    ),
    check_percent,
    percent_agreement,
)


def check_ac1(f: Callable) -> None:
    for table in (TABLE, np.array([[2, 0, 1], [1, 1, 1], [0, 3, 0]])):
        agree, share = _pieces(table)
        observed, q = agree.mean(), table.shape[1]
        chance = (share * (1 - share)).sum() / (q - 1)
        squares = (share**2).sum()
        pooled = table.sum(0) / table.sum()
        pooled_chance = (pooled * (1 - pooled)).sum() / (q - 1)
        judge(
            read(f(table), (), "AC1"),
            gwet_ac1(table),
            (
                observed,
                "That is plain agreement; take out what chance would give: (agreement - chance) / (1 - chance).",
            ),
            (
                (observed - squares) / (1 - squares),
                "Chance is the sum of squared shares there: that is Fleiss' kappa, which collapses when nearly all "
                "choose the same. Gwet: sum of p (1 - p), divided by q - 1.",
            ),
            (observed - chance, "Divide by 1 - chance, so that full agreement gives 1."),
            ((observed - 0.5) / 0.5, "Chance is not one half: it follows from how often each category is chosen."),
            ((observed - chance * (q - 1)) / (1 - chance * (q - 1)), "The division by q - 1 is missing in chance."),
            (
                (observed - pooled_chance) / (1 - pooled_chance),
                "The shares are those of each item, averaged: you pool all judgements, so that items with many of them "
                "weigh more.",
            ),
            what="AC1",
        )


AC1 = Exercise(
    "05.ac1",
    "Gwet's AC1",
    "Write ac1(table): (agreement - chance) / (1 - chance) with percent agreement as before and chance = sum over the "
    "q categories of p (1 - p) / (q - 1), where p is the mean over all items of the share of judgements in the "
    "category.",
    Level(difficulty=3, minutes=15, points=3),
    "3.2.1; Gwet 2008",
    (
        "p: divide each row by its sum, then average over rows, those with one judgement too.",
        "Check: with full agreement on both of two categories AC1 is 1.",
    ),
    check_ac1,
    gwet_ac1,
)

WHY_AC1 = Exercise(
    "05.why_ac1",
    "Why not plain percent?",
    "Two annotators mark 95 % of answers safe, each at random. Their percent agreement is about .90. What does it "
    "show?",
    Level(difficulty=2, minutes=3, points=1),
    "3.2.1",
    ("Did they look at the answers?",),
    Choice(
        a=("they agree well", "They did not look at the answers at all: .95 * .95 + .05 * .05 is .905 by chance."),
        b="percent agreement is high by chance alone when one category is frequent",
        c=("the answers are safe", "Nothing was judged here: labels at random say nothing about the answers."),
    ),
)

GRADES_ORDER = Exercise(
    "05.grades_order",
    "Where is agreement largest?",
    "Order the grades by how often a second annotator chooses the same answer, smallest first.",
    Level(difficulty=1, minutes=3, points=1),
    "3.2.1, table 8",
    ("Which pairs are easy?",),
    Order(
        {"sig": "significantly better", "better": "better", "slightly": "slightly better", "neg": "negligibly better"},
        ("neg", "slightly", "better", "sig"),
        {
            ("neg", "sig"): "A clear difference is seen by both: significantly better pairs agree most.",
            ("neg", "slightly"): "Negligible differences are close to a coin toss: they come first.",
            ("slightly", "better"): "The larger the difference, the more agree.",
            ("better", "sig"): "The larger the difference, the more agree.",
        },
    ),
)

OWN_AGREEMENT = Prediction(
    "05.own_agreement",
    "How far will you agree?",
    "You and the simulated annotators judge the same pairs. Predict the share on which the same answer is preferred.",
    Level(difficulty=1, minutes=3, points=1),
    "3.2.1",
    ("Some pairs hardly differ.",),
    Guess(
        0.0,
        1.0,
        "You agree more than you thought: many pairs have a clearly better answer.",
        "You agree less than you thought: on pairs that hardly differ people toss a coin.",
        absolute=0.05,
    ),
    lesson="No reward model can agree with people much more than people do with each other.",
)

EXERCISES = (PERCENT, AC1, WHY_AC1, GRADES_ORDER, OWN_AGREEMENT)
