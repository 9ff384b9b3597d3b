"""Exercises of notebook 05: preferences and agreement (Llama 2, section 3.2.1)."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llama2lab.annotation import rows
from llama2lab.annotation.agreement import coefficients as agreement
from llama2lab.engine import stats
from llama2lab.engine.scale import GRADES
from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import judge, read
from llama2lab.lab.predictions import Choice, Guess, Order, Prediction
from llama2lab.lessons.n05_preferences.own_output import draw_ac1, draw_interval, draw_percent

# ---- agreement ---------------------------------------------------------------------------------------------------

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
    lesson="What only one person has judged cannot tell how far people agree. So agreement is paid for: some pairs are "
    "given to several people, who could have judged new ones instead.",
    picture=draw_percent,
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
    lesson="Kappa, alpha and AC1 differ in one thing alone, what they call chance, and no choice of it is neutral. Say "
    "which one you used, and print the plain percent beside it.",
    picture=draw_ac1,
)

# ---- two on the same items ---------------------------------------------------------------------------------------

Array = NDArray[np.float64]


def paired_bootstrap(a: Array, b: Array) -> tuple[float, float]:
    """The interval of the library's figure."""
    figure = stats.paired_bootstrap(a, b)
    return figure["low"], figure["high"]


def check_bootstrap(f: Callable) -> None:
    rng = np.random.default_rng(5)
    worth = rng.normal(0.5, 1.2, 80)  # of the prompts, for both
    a, b = (np.clip(np.round(worth + rng.normal(better, 0.4, 80), 2), -3, 3) for better in (0.15, 0.0))
    apart, width = a - b, (a - b).std() / len(a) ** 0.5  # one standard error
    result = f(a, b)
    if isinstance(result, tuple | list | np.ndarray) and len(result) > 2:
        raise Mistake(f"Two numbers are expected, (low, high); you give {len(result)}.")
    low, high = read(result, (2,), "the interval").double().tolist()
    if low > high:
        raise Mistake("The lower end comes first: (low, high).")
    if high - low < width / 10:
        raise Mistake(
            "The interval has no width: every draw gives the same mean. Draw with replacement, so that some prompts "
            "come several times and others not at all."
        )

    def ends(means: Array, *percent: float) -> tuple[float, float]:
        one, other = np.percentile(means, percent or (2.5, 97.5))
        return float(one), float(other)

    draws = rng.integers(len(a), size=(2, 4000, len(a)))
    means = apart[draws[0]].mean(1)

    def off(target: tuple[float, float]) -> float:
        """In standard errors: the ends of 2,000 draws are uncertain by .06, and those of 90 % stand .31 off."""
        return max(abs(low - target[0]), abs(high - target[1])) / width

    right = stats.paired_bootstrap(a, b, 20_000)
    if off((right["low"], right["high"])) < 0.24:
        return
    wrongs = (
        (
            ends(a[draws[0]].mean(1) - b[draws[1]].mean(1)),
            "You draw other prompts for b than for a: then easy and hard prompts do not cancel, and the interval is "
            "too wide. Draw once, for both.",
        ),
        ((-right["high"], -right["low"]), "The sign is wrong: it is the mean of a less b."),
        (ends(means, 5, 95), "That is the interval of 90 %; from 2.5 to 97.5 there are 95."),
        (ends(means, 25, 75), "That is the middle half; from 2.5 to 97.5 there are 95 %."),
        (ends(means, 16, 84), "That is one standard error to either side; from 2.5 to 97.5 percent there are two."),
        (ends(apart), "That is how far single prompts differ; the interval is of their mean, draw by draw."),
        (ends(means, 0, 100), "Those are the smallest and the largest mean, which grow apart the more you draw."),
    )
    target, name = min(wrongs, key=lambda wrong: off(wrong[0]))
    if off(target) < 0.5:
        raise Mistake(name)
    if high < apart.mean():
        raise Mistake("The mean lies above both ends. np.percentile counts to 100: 2.5 and 97.5, not 0.025 and 0.975.")
    raise Mistake(
        f"The interval is [{low:.3f}, {high:.3f}]; [{right['low']:.3f}, {right['high']:.3f}] is right, give or take a "
        "little chance."
    )


PAIRED_BOOTSTRAP = Exercise(
    "05.paired_bootstrap",
    "Two on the same prompts",
    "Write paired_bootstrap(a, b) -> (low, high), the 95 % interval of the mean of a less b; a and b (n,) are scores "
    "of two models on the same n prompts. 2,000 times draw n prompts with replacement and take the mean difference on "
    "them; the interval reaches from the 2.5th to the 97.5th percentile of these means.",
    Level(difficulty=2, minutes=12, points=3),
    "3.4; Efron 1979",
    (
        "The difference of each prompt comes first; what is drawn are prompts, with both scores.",
        "np.random.default_rng(0).integers(n, size=(2000, n)) draws all at once.",
        "np.percentile(means, [2.5, 97.5])",
    ),
    check_bootstrap,
    paired_bootstrap,
    lesson="A prompt that is hard for both says nothing about which is better, and in the difference it cancels: the "
    "same prompts for both tell more than as many of their own would, and cost no more.",
    picture=draw_interval,
)

# ---- from labels to a row ----------------------------------------------------------------------------------------

Said = tuple[int, str]  # the answer that was chosen, 1 or 2, and the grade


def majority(labels: Sequence[Said]) -> Said | str:
    """The library's rule."""
    said = rows.majority([{"choice": c, "grade": g, "safe_1": None, "safe_2": None} for c, g in labels])
    return "tie" if said is None else (said["choice"], said["grade"])


def one_voice(
    labels: Sequence[Said],
    split: Any = "tie",
    who: Callable[[Said, int], bool] = lambda label, choice: label[0] == choice,
    pick: Callable[[list[int]], int] = lambda places: sorted(places)[len(places) // 2],
) -> Any:
    """One label for several: `split` where they are evenly divided, the grades of those that `who` lets speak, of which
    `pick` takes one; grades are places in GRADES."""
    first = sum(choice == 1 for choice, _ in labels)
    if 2 * first == len(labels) and split == "tie":
        return "tie"
    choice = split if 2 * first == len(labels) else 1 if 2 * first > len(labels) else 2
    return choice, GRADES[pick([GRADES.index(label[1]) for label in labels if who(label, choice)])]


LABELS: tuple[list[Said], ...] = (
    [(1, "slightly")],
    [(1, "significantly"), (1, "slightly"), (2, "negligibly"), (2, "negligibly"), (1, "slightly")],
    [(2, "significantly"), (2, "negligibly"), (1, "significantly")],
    [(1, "better"), (2, "better")],
    [(1, "significantly"), (1, "significantly"), (1, "better"), (2, "negligibly"), (2, "negligibly")],
    [(2, "better"), (1, "significantly"), (2, "significantly"), (2, "significantly"), (2, "negligibly"), (2, "better")],
    [(1, "negligibly"), (1, "significantly"), (1, "negligibly"), (1, "better"), (1, "significantly"), (2, "better")],
)


def check_majority(f: Callable) -> None:
    def reading(value: Any) -> Any:
        if isinstance(value, str):
            return value.strip().lower()
        if isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[1], str):
            return int(read(value[0], (), "the answer")), value[1]
        raise Mistake(f'(answer, grade) or "tie" is expected, not {str(value)[:60]}.')

    def alphabet(places: list[int]) -> int:
        return GRADES.index(sorted(GRADES[p] for p in places)[len(places) // 2])

    got, right = [reading(f(labels)) for labels in LABELS], [majority(labels) for labels in LABELS]
    for name, how in (
        ("The grades of those who chose the other answer do not count.", {"who": lambda label, choice: True}),
        ("Of an even number the middle lies between two grades: take the weaker.", {"pick": _stronger}),
        (
            "Of an even number you take a grade between the two in the middle; take the weaker of them.",
            {"pick": _between},
        ),
        ("That is the most frequent grade; the median is the one in the middle.", {"pick": _most_frequent}),
        ("That is the mean of the places, rounded; one enthusiast moves it. Take the median.", {"pick": _mean}),
        ("That is the strongest grade, so one enthusiast makes a large margin. Take the median.", {"pick": min}),
        ("sorted() puts grades in the order of the alphabet; their order is that of the task.", {"pick": alphabet}),
        ('Where as many chose one answer as the other, the pair is a "tie" and trains nothing.', {"split": 1}),
        ('Where as many chose one answer as the other, the pair is a "tie" and trains nothing.', {"split": 2}),
    ):
        if got != right and got == [one_voice(labels, **how) for labels in LABELS]:
            raise Mistake(name)
    for labels, g, r in zip(LABELS, got, right, strict=True):
        if g != r and isinstance(g, tuple) and isinstance(r, tuple) and g[0] != r[0]:
            raise Mistake(f"Of {labels} you choose answer {g[0]}; more chose {r[0]}.")
        if g != r:
            raise Mistake(f"Of {labels} you make {g}; {r} is right.")


def _stronger(places: list[int]) -> int:
    return sorted(places)[(len(places) - 1) // 2]


def _between(places: list[int]) -> int:
    return math.ceil(statistics.median(places))


def _most_frequent(places: list[int]) -> int:
    return Counter(places).most_common(1)[0][0]


def _mean(places: list[int]) -> int:
    return round(sum(places) / len(places))


MAJORITY = Exercise(
    "05.majority",
    "One row for several labels",
    "Write majority(labels) -> (choice, grade): labels are (choice, grade) of several people on one pair, choice 1 or "
    '2. Give the answer that more chose, and the median grade of those who chose it, between two the weaker; "tie" '
    "where as many chose either. From strong to weak: significantly, better, slightly, negligibly.",
    Level(difficulty=2, minutes=10, points=2),
    "3.2.1",
    (
        "Count the labels for each answer first.",
        "Put the grades of that side in the order of the task; the one at place len // 2 is the median, or the weaker "
        "of the two in the middle.",
    ),
    check_majority,
    majority,
    lesson="A median is moved by how many people stand on a side, not by how far out one of them stands: so nobody can "
    "make a large margin alone. A tie is thrown away, since its row would be a coin's.",
)

# ---- questions and predictions -----------------------------------------------------------------------------------

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
    lesson="And no coefficient can mend it: two people who mark the same thing without looking agree as well as two "
    "who look. Only items whose answer is known beforehand tell them apart.",
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
    lesson="Where people hardly agree, a label is mostly noise. So the margin in the loss is 0 there, and a reward "
    "model that misses such a pair misses what a second person would have missed too.",
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

EXERCISES = (OWN_AGREEMENT, PERCENT, AC1, WHY_AC1, GRADES_ORDER, PAIRED_BOOTSTRAP, MAJORITY)
