"""Exercises of notebook 07: rejection sampling (Llama 2, section 3.2.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import Wrong, judge, randn, read
from llama2lab.lab.predictions import Choice, Guess, Prediction
from llama2lab.lessons.n07_rejection.experiments import of_k
from llama2lab.lessons.n07_rejection.own_output import draw_best_curve, draw_expected
from llama2lab.stages import rejection
from llama2lab.town.items import Prompt

PROMPT = Prompt("exercise/0", (), "facts", "helpful", "", "train")  # which one does not matter to the choice
NAMES = [f"prompt {i}, answer {j}" for i in range(3) for j in range(4)]
SCORES = [0.1, 0.9, 0.3, 0.2, -2.0, -3.0, -1.0, -0.5, 4.0, 5.0, 6.0, 3.0]


def best_of_k(answers: Sequence[str], scores: Sequence[float], k: int) -> list[str]:
    """The library's choice, of answers in rows."""
    n = len(answers) // k
    rows = [list(answers[i * k : (i + 1) * k]) for i in range(n)]
    samples = rejection.Samples([PROMPT] * n, rows, [list(scores[i * k : (i + 1) * k]) for i in range(n)])
    return [row["messages"][-1]["content"] for row in rejection.best_of(samples)]


def check_best(f: Callable) -> None:
    got = f(NAMES, SCORES, 4)
    if not isinstance(got, list | tuple) or not all(isinstance(a, str) for a in got):
        raise Mistake("A list with one answer (text) for each prompt is expected.")
    got = list(got)
    right = best_of_k(NAMES, SCORES, 4)
    if got == right:
        return

    def pick(order: Callable, group: Callable) -> list[str]:
        return [NAMES[order(group(i), key=SCORES.__getitem__)] for i in range(3)]

    def row(i: int) -> range:
        return range(4 * i, 4 * i + 4)

    wrongs = {
        "You take the worst of each K: the largest score is the best.": pick(min, row),
        "Answers are mixed over prompts: the first K belong to the first prompt, then K of the second; you take every "
        "n-th.": pick(max, lambda i: range(i, 12, 3)),
        "Those are the best of all prompts together; each prompt keeps its own best.": [
            NAMES[j] for j in sorted(range(12), key=SCORES.__getitem__, reverse=True)[:3]
        ],
        "That is the first answer of each prompt, whatever its score.": NAMES[::4],
        "That is one answer for all; each prompt keeps its own best.": [NAMES[max(range(12), key=SCORES.__getitem__)]],
    }
    for name, value in wrongs.items():
        if got == value:
            raise Mistake(name)
    if len(got) != 3:
        raise Mistake(f"{len(got)} answers for 3 prompts: one each is expected.")
    first = next(a for a, b in zip(got, right, strict=False) if a != b)
    raise Mistake(f"For the first prompt that differs you give {first!r}.")


BEST_OF_K = Exercise(
    "07.best_of_k",
    "Best of K",
    "Write best_of_k(answers, scores, k): answers and scores are flat lists, k of the first prompt, then k of the "
    "second, ... Give a list with the best answer of each prompt.",
    Level(difficulty=1, minutes=8, points=2),
    "3.2.3",
    ("The answers of prompt i are answers[i * k:(i + 1) * k].", "max(range(k), key=...) finds the place of the best."),
    check_best,
    best_of_k,
    lesson="Each prompt keeps its own best, or the easy prompts, whose answers all score well, would fill the training "
    "set and the hard ones, where there is most to learn, would be missing.",
)


def best_of_curve(scores: Sequence[Sequence[float]], k: int) -> tuple[float, float]:
    """The library's point of the curve at k."""
    point = rejection.best_of_curve(scores, [k])[0]
    return point["max"], point["median"]


def check_curve(f: Callable) -> None:
    scores = randn(6, 8).double()
    for k in (4, 1, 3):
        first = scores[:, :k]
        got = read(f(scores.tolist(), k), (2,), "the pair (max, median)")
        judge(
            got,
            read(best_of_curve(scores.tolist(), k)),
            (
                [first.max(), best_of_curve(scores.tolist(), k)[1]],
                "That is the largest of all prompts; take the largest of each prompt, then the mean.",
            ),
            (
                [first.max(1).values.mean(), first.mean()],
                "The second number is the median of each prompt, not the mean.",
            ),
            (
                [first.max(1).values.mean(), first.median()],
                "Take the median of each prompt, then the mean over prompts.",
            ),
            (
                [first.max(1).values.mean(), first.median(1).values.mean()],
                "For an even number the median is the mean of the two in the middle; torch.median gives the lower one.",
            ),
            (
                read(best_of_curve(scores.tolist(), 8)),
                "All answers are used: only the first k of each prompt count.",
            ),
            (read(best_of_curve(scores.tolist(), k)).flip(0), "Largest first, then the median: they are swapped."),
            what=f"the pair (max, median) for k = {k}",
        )


BEST_OF_CURVE = Exercise(
    "07.best_of_curve",
    "What K buys",
    "Write best_of_curve(scores, k) -> (max, median): scores holds a list for each prompt. Of its first k scores take "
    "the largest and the median (of an even number: the mean of the middle two); give the means over prompts.",
    Level(difficulty=2, minutes=10, points=2),
    "3.2.3, figure 7",
    ("First cut every list to its first k.", "statistics.median does the even case as asked."),
    check_curve,
    best_of_curve,
    lesson="The distance of the two curves is what fine-tuning on the best may gain: the median is what the model "
    "mostly says, the max what it could say.",
    picture=draw_best_curve,
)

MEDIAN_FLAT = Exercise(
    "07.median_flat",
    "Two curves",
    "In the plot of max and median against K only the max rises. Why?",
    Level(difficulty=2, minutes=3, points=1),
    "3.2.3, figure 7",
    ("Does the model change when you draw more from it?",),
    Choice(
        a="more draws do not change what the model usually says, only how good its luckiest draw is",
        b=(
            "the model gets better with K",
            "The model is the same for every K; only fine-tuning on the best changes it.",
        ),
        c=(
            "the reward model prefers later answers",
            "Each answer is scored alone; the reward model does not know when it was drawn.",
        ),
    ),
    lesson="That is why the gain grows ever more slowly: each doubling of K asks for a rarer piece of luck. A better "
    "policy lifts both curves, more draws only the upper one.",
)

GAIN = Prediction(
    "07.gain",
    "From one draw to sixteen",
    "Predict by how many points the mean best score (the logit of the reward) rises from K = 1 to K = 16.",
    Level(difficulty=2, minutes=3, points=1),
    "3.2.3, figure 7",
    ("The best of 16 normal numbers lies 1.8 deviations up.",),
    Guess(
        0.0,
        20.0,
        "Answers to one prompt differ more than you thought.",
        "Answers to one prompt differ less than you thought.",
        relative=0.25,
    ),
    lesson="How far the best lies above the mean is a matter of spread alone: a model that always says the same gains "
    "nothing from more draws, and is done with rejection sampling.",
)


def expected_best(scores: Sequence[float], k: int) -> float:
    """The library's mean over all choices of k, of one prompt's scores."""
    one = np.array([scores], dtype=float)
    return float(of_k(one, one, k)["max"][0])


def check_expected(f: Callable) -> None:
    for n, k, seed in ((9, 3, 2), (8, 4, 3), (7, 1, 4), (6, 6, 5)):
        scores = (2 * randn(n, seed=seed)).tolist()
        up, ways = sorted(scores), math.comb(n, k)
        right, what = expected_best(scores, k), f"the expected best for k = {k}"
        pieces = [max(scores[i : i + k]) for i in range(0, n - k + 1, k)]
        counts = [math.comb(i, k - 1) / ways for i in range(n)]  # how often a score with i below it is the best
        got = read(f(scores, k), (), what)
        wrongs: list[Wrong] = [
            (max(scores[:k]), "That is the best of one choice of k, the first. Take the mean over all choices."),
            (up[-1], "That is the best of all n; most choices of k miss it, and their best is smaller."),
            (sum(scores) / n, "That is the mean of the scores, the expected best for k = 1 alone."),
            (
                sum(x * ((i + 1) ** k - i**k) / n**k for i, x in enumerate(up)),
                "That is the best of k draws with replacement. A choice of k holds no answer twice, so its best is "
                "larger.",
            ),
            (
                sum(pieces) / len(pieces),
                "You cut the list into pieces of k. That is right on average, and hangs on the order of the scores: "
                "take all choices.",
            ),
            (
                sum(c * x for c, x in zip(counts, scores, strict=True)),
                "How often a score is the best hangs on how many lie below it: sort first.",
            ),
            (
                sum(c * x for c, x in zip(counts, reversed(up), strict=True)),
                "You sorted from the largest down: that is the expected worst of k.",
            ),
            (
                sum(math.comb(i, k) / ways * x for i, x in enumerate(up)),
                "Off by one: the score itself is one of the k, so k - 1 others are chosen among those below it.",
            ),
        ]
        if abs(float(got) - right) < 0.15:
            wrongs.append(
                (got, "Close, and not exact. If it is a simulation: count the choices instead of drawing them.")
            )
        judge(got, right, *wrongs, what=what, tolerance=1e-5)


EXPECTED_BEST = Exercise(
    "07.expected_best",
    "The expected best of K",
    "Write expected_best(scores, k): from the n scores of one prompt (all different, n >= k) the largest of k of them, "
    "as a mean over all choices of k without repetition. It is what the best of K gives on average, without the luck "
    "of which k came first.",
    Level(difficulty=3, minutes=12, points=3),
    "3.2.3, figure 7",
    (
        "itertools.combinations(scores, k) lists all choices; for small n that is enough.",
        "Or count: in ascending order, the score with i below it is the best of math.comb(i, k - 1) choices.",
        "There are math.comb(n, k) choices in all.",
    ),
    check_expected,
    expected_best,
    lesson="From n draws this reads every K up to n, unbiased, and with less luck than the first K alone: the plots of "
    "this notebook are such means. The same count gives pass@k of code models.",
    picture=draw_expected,
)

EXERCISES = (BEST_OF_K, BEST_OF_CURVE, EXPECTED_BEST, MEDIAN_FLAT, GAIN)
