"""Figures of single annotators, or of vendors as if each were one annotator, and the rule by which one is singled out.

Four habits are tested, each against what would be seen of somebody without it:

- **left**: half of the choices fall left, since the sides are drawn (exact binomial test, both ways);
- **length**: what ten more words are worth, in steps of the scale. The share of longer answers proves nothing: these
  may be better, and a careless annotator finds fewer of them. So a logistic regression explains the choice by how much
  better the others find an answer and by its words; the quotient of the two weights is compared with the median of the
  others (normal test, both ways). Where most of them like length too, nothing shows;
- **others**, **gold**: agreement with the majority of the others, and with gold, is no lower than theirs (Fisher's
  exact test, one way).

The p values of one table are corrected together (Holm): without habits, about five tables of a hundred raise any
alarm. Because people do differ, a difference must also matter: five points of agreement, or half a step for ten words.
Of two, nobody can say which is odd, so only the side and gold are tested. An alarm is a reason to look, not a verdict.

Careless work needs no others to be seen (`careless`). Three rules, each with its reason in words:

- **fast**: more than half of the judgements took less time than skimming the last message and both answers does
  (`skimming`; sign test);
- **gold**: fewer gold pairs are right than the nine of ten that careful reading gives (exact binomial test);
- **grade**: one grade makes up more than four fifths of the judgements (exact binomial test, times four for the choice
  of the grade; of twenty, all).

Each is tested at 5 %, uncorrected: of careful people a rule names at most one in twenty, and nobody is hidden by how
many others there are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
from scipy import stats as tests

from llama2lab.annotation.agreement.coefficients import Label, grouped, judged, signed, undefined
from llama2lab.engine.scale import GRADES
from llama2lab.engine.stats import Figure, rate

By = Literal["annotator", "vendor"]
LEVEL = 0.05  # chance of any false alarm in one table
MATTERS = 0.05  # how much lower an agreement must be to be called low
STEPS = 0.5  # how much ten more words must be worth to be called a habit
FEWEST = 20  # judgements beside others' from which the weight of words is estimated
WORDS = 10
# Words a minute. People read 238 on average (Brysbaert 2019, a meta-analysis of 190 studies); at about 600 they skim,
# and no longer understand all of it (Rayner et al. 2016, section "Skimming").
SKIMMED = 600
QUICKEST = 1.0  # seconds, for a pair of two words: to see, to decide and to press a key
CAREFUL = 0.9  # share of gold pairs that careful reading gets right
ONE_GRADE = 0.8  # share of one grade up to which it may be how the pairs are


@dataclass(frozen=True)
class Quality:
    """What is to be said of one annotator or vendor."""

    name: str
    vendor: str
    labels: int  # judgements, gold items among them
    skips: int
    flags: int
    gold: Figure  # agreement with known answers
    others: Figure  # agreement with the majority of all others, gold items left out
    left: Figure  # share of choices that stood left
    longer: Figure  # share of choices of the longer answer
    words: tuple[float, float]  # steps of the scale that ten more words are worth, and standard error; NaN: not known
    length: Figure  # the same less the others' median: 0 is no habit
    safe: Figure  # share of answers marked safe
    grades: dict[str, Figure]  # share of each grade
    usual: str  # the grade that is used most, gold items left out
    one_grade: Figure  # its share
    hasty: Figure  # share of judgements that took less time than skimming does
    seconds: float  # median time on an item; NaN where none was taken
    skimming: float  # median of what skimming would have taken; NaN likewise

    @property
    def left_p(self) -> float:
        """Exact binomial test of one half, both ways: how likely a share as far from it is by chance; NaN without
        any case."""
        n = round(self.left["n"])
        return float(tests.binomtest(round(self.left["mean"] * n), n).pvalue) if n else float("nan")


def longer_answer(label: Label) -> int:
    """1 or 2, the answer with more words; 0 where they are as long."""
    one, two = (len(answer.split()) for answer in label["answers"])
    return 0 if one == two else 1 if one > two else 2


def skimming(label: Label) -> float:
    """Seconds that it takes to skim the last message and both answers."""
    texts = (label["prompt"][-1]["content"], *label["answers"])
    return max(QUICKEST, sum(len(text.split()) for text in texts) / SKIMMED * 60)


def majorities(labels: Iterable[Label], by: By) -> dict[tuple[Hashable, str], int]:
    """(item, group) -> the answer, 1 or 2, that most labels of all other groups chose; no entry where they are evenly
    split or there are none."""
    result: dict[tuple[Hashable, str], int] = {}
    for item, several in grouped(judged(labels), "item_id").items():
        votes = [(label[by], 1 if label["choice"] == 1 else -1) for label in several]
        for group in {name for name, _ in votes}:
            rest = sum(vote for name, vote in votes if name != group)
            if rest:
                result[item, group] = 1 if rest > 0 else 2
    return result


def quality(labels: Sequence[Label], by: By = "annotator") -> list[Quality]:
    """The figures of every annotator or vendor, in the order of their names."""
    most, fits, groups = majorities(labels, by), weights_of_words(labels, by), grouped(labels, by)
    return [_quality(name, groups[name], most, fits) for name in sorted(groups)]


def weights_of_words(labels: Sequence[Label], by: By) -> dict[str, tuple[float, float, int]]:
    """How many steps of the scale ten more words are worth, for each group with enough labels beside others':
    (steps, standard error, labels). Not for who chooses regardless of what the others find."""
    items = grouped(judged(labels), "item_id")
    fits = {}
    for name, mine in grouped(judged(labels), by).items():
        seen = []
        for label in mine:
            rest = [signed(x) for x in items[label["item_id"]] if x[by] != name]
            if rest:
                one, two = (len(answer.split()) for answer in label["answers"])
                seen.append((sum(rest) / len(rest), (two - one) / WORDS, label["choice"] == 2))
        x = np.array(seen, dtype=float)
        if len(x) >= FEWEST and x[:, 1].any():
            (step, words), covariance = _logistic(x[:, :2], x[:, 2])
            if step > 2 * covariance[0, 0] ** 0.5:
                slope = np.array([-words / step**2, 1 / step])  # the delta method for a quotient
                fits[name] = (float(words / step), float((slope @ covariance @ slope) ** 0.5), len(x))
    return fits


def _logistic(x: np.ndarray, y: np.ndarray, ridge: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a logistic regression without intercept (which answer is number 1 is an accident), and their
    covariance. The small ridge keeps them finite where a few labels can be told apart perfectly."""
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        curvature = x.T @ (x * (p * (1 - p))[:, None]) + ridge * np.eye(len(w))
        step = np.linalg.solve(curvature, x.T @ (y - p) - ridge * w)
        w = w + step
        if np.abs(step).max() < 1e-9:
            break
    return w, np.linalg.inv(curvature)


def beside(mine: tuple[float, float], rest: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(weight less the median of the rest's, standard error of that)."""
    k = len(rest)
    spread = median(error**2 for _, error in rest) * (1.571 if k > 2 else 1) / k  # pi / 2: a median against a mean
    return mine[0] - median(weight for weight, _ in rest), (mine[1] ** 2 + spread) ** 0.5


def _quality(
    name: str,
    labels: Sequence[Label],
    most: dict[tuple[Hashable, str], int],
    fits: dict[str, tuple[float, float, int]],
) -> Quality:
    mine = judged(labels, gold=True)
    gold = [x for x in mine if x["gold"] and x["gold"].get("choice") in (1, 2)]
    others = [x["choice"] == most[x["item_id"], name] for x in judged(labels) if (x["item_id"], name) in most]
    lengths = [(x, longer_answer(x)) for x in mine]
    timed = [(x["seconds"], skimming(x)) for x in mine if x["seconds"] and x["seconds"] > 0]
    graded = [x["grade"] for x in judged(labels)]
    usual = max(GRADES, key=graded.count)
    vendors = {x["vendor"] for x in labels}
    return Quality(
        name=name,
        vendor=vendors.pop() if len(vendors) == 1 else "",
        labels=len(mine),
        skips=sum(bool(x["skip_reason"]) for x in labels),
        flags=sum(bool(x["flag"]) for x in labels),
        gold=rate([x["choice"] == x["gold"]["choice"] for x in gold]),
        others=rate(others),
        left=rate([x["choice"] == x["left"] for x in mine if x["left"] in (1, 2)]),
        longer=rate([x["choice"] == longer for x, longer in lengths if longer]),
        words=fits[name][:2] if name in fits else (float("nan"), float("nan")),
        length=_length(name, fits),
        safe=rate([bool(safe) for x in mine for safe in (x["safe_1"], x["safe_2"]) if safe is not None]),
        grades={g: rate([x["grade"] == g for x in mine]) for g in GRADES},
        usual=usual,
        one_grade=rate([g == usual for g in graded]),
        hasty=rate([took < needed for took, needed in timed]),
        seconds=median(took for took, _ in timed) if timed else float("nan"),
        skimming=median(needed for _, needed in timed) if timed else float("nan"),
    )


def _length(name: str, fits: dict[str, tuple[float, float, int]]) -> Figure:
    rest = [fit[:2] for other, fit in fits.items() if other != name]
    if name not in fits or len(rest) < 2:
        return undefined(fits[name][2] if name in fits else 0)
    more, error = beside(fits[name][:2], rest)
    return {"mean": more, "low": more - 1.96 * error, "high": more + 1.96 * error, "n": fits[name][2]}


# ---- who is singled out ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alarm:
    """One annotator or vendor and one habit, tested. `p` is corrected for all tests of the table, save where there is a
    `reason`: that is one of `careless`."""

    name: str
    what: Literal["left", "length", "others", "gold", "fast", "grade"]
    figure: Figure
    p: float
    raised: bool
    reason: str = ""

    @property
    def words(self) -> str:
        mean = self.figure["mean"]
        return (
            self.reason
            or {
                "left": f"chooses the {'right' if mean < 0.5 else 'left'} side: {mean:.0%} left",
                "length": f"takes {'shorter' if mean < 0 else 'longer'} answers: ten words more are worth {mean:+.1f} "
                "steps of the scale",
                "others": f"agrees less with the others: {mean:.0%}",
                "gold": f"agrees less with gold: {mean:.0%}",
            }[self.what]
        )


def alarms(rows: Sequence[Quality]) -> list[Alarm]:
    """All tests of one table, those that raise an alarm first.

    Who is found to agree less, or to like long or short answers, is no yardstick for the others' liking of length: one
    strong habit would make the rest look as if they had the opposite one.
    """
    odd: set[str] = set()
    while True:
        found = _tests(rows, odd)
        corrected = holm([p for *_, p, _ in found])
        result = [
            Alarm(name, what, figure, p, p < LEVEL and matters)
            for (name, what, figure, _, matters), p in zip(found, corrected, strict=True)
        ]
        careless = {a.name for a in result if a.raised and a.what == "others"} - odd
        likes = [a for a in result if a.raised and a.what == "length" and a.name not in odd]
        if not careless and not likes:
            return sorted(result, key=lambda a: (not a.raised, a.p, a.name))
        odd |= careless or {min(likes, key=lambda a: a.p).name}


def _tests(rows: Sequence[Quality], odd: set[str]) -> list[tuple[str, Any, Figure, float, bool]]:
    """(name, what, figure, p, whether it is large enough to matter) of each test that can be made."""
    found: list[tuple[str, Any, Figure, float, bool]] = []
    for row in rows:
        if row.left["n"]:
            found.append((row.name, "left", row.left, row.left_p, True))
        rest = [r.words for r in rows if r is not row and r.name not in odd and np.isfinite(r.words[0])]
        if np.isfinite(row.words[0]) and len(rest) >= 2:
            more, error = beside(row.words, rest)
            p = float(2 * tests.norm.sf(abs(more) / error))
            found.append((row.name, "length", row.length, p, abs(more) >= STEPS))
        for what in ("others", "gold"):
            mine = getattr(row, what)
            them = [getattr(r, what) for r in rows if r is not row and getattr(r, what)["n"]]
            if mine["n"] and len(them) >= (2 if what == "others" else 1):
                yes, no = (sum(x) for x in zip(*map(_hits, them), strict=True))
                p = float(tests.fisher_exact([_hits(mine), (yes, no)], alternative="less").pvalue)
                found.append((row.name, what, mine, p, yes / (yes + no) - mine["mean"] >= MATTERS))
    return found


def careless(rows: Sequence[Quality]) -> list[Alarm]:
    """The three rules of careless work, tested on each annotator: those that name one first."""
    found = []
    for row in rows:
        if row.hasty["n"]:
            yes, n = _hits(row.hasty)[0], round(row.hasty["n"])
            p = float(tests.binomtest(yes, n, 0.5, "greater").pvalue)
            why = (
                f"judges faster than one can read: median {row.seconds:.1f} s a pair, where skimming it takes "
                f"{row.skimming:.1f} s; {yes} of {n} judgements were faster than that"
            )
            found.append(Alarm(row.name, "fast", row.hasty, p, p < LEVEL, why))
        if row.gold["n"]:
            yes, n = _hits(row.gold)[0], round(row.gold["n"])
            p = float(tests.binomtest(yes, n, CAREFUL, "less").pvalue)
            why = f"gets {yes} of {n} gold pairs right, where careful reading gets nine of ten"
            found.append(Alarm(row.name, "gold", row.gold, p, p < LEVEL, why))
        if row.one_grade["n"]:
            yes, n = _hits(row.one_grade)[0], round(row.one_grade["n"])
            p = min(1.0, len(GRADES) * float(tests.binomtest(yes, n, ONE_GRADE, "greater").pvalue))
            why = f"gives nearly always the same grade: {row.usual} in {yes} of {n} judgements"
            found.append(Alarm(row.name, "grade", row.one_grade, p, p < LEVEL, why))
    return sorted(found, key=lambda a: (not a.raised, a.p, a.name))


def _hits(figure: Figure) -> tuple[int, int]:
    yes = round(figure["mean"] * figure["n"])
    return yes, round(figure["n"]) - yes


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for being many (Holm 1979), in their own order."""
    result, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        result[i] = worst
    return result
