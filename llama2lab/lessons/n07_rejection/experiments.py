"""Rejection sampling (Llama 2, section 3.2.3): claims 16 (the best of K grows with K, the median does not; the best
temperature moves) and 14 (a reward model's accuracy predicts the final model), on held-out helpful prompts.

Intervals are over prompts, or over reward models, as each function says.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats as tests

from llama2lab.engine import stats
from llama2lab.engine.errors import LabError
from llama2lab.engine.stats import Figure
from llama2lab.lab.finished import Finished
from llama2lab.lessons.n05_preferences.experiments import reward_on
from llama2lab.lessons.n05_preferences.pairs import draw, truth_rows
from llama2lab.report import summary
from llama2lab.stages.rejection import Samples, sample_and_score
from llama2lab.stages.reward import HEADS, RewardModel, accuracy, pair_scores, score_answers
from llama2lab.town.items import Prompt

KS = (1, 2, 4, 8, 16, 32)
Array = NDArray[np.float64]
STAGES = ("sft", "rlhf-v5")
TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)


def sampled(lab: Finished, stage: str, prompts: Sequence[Prompt], k: int, temperature: float, seed: int = 0) -> Samples:
    """K answers of a stage to each prompt, with the score that the run's own rejection sampling goes by, logit(R_c) of
    its last reward models."""
    judges = lab.reward("reward-helpfulness-v5"), lab.reward("reward-safety-v5")
    return sample_and_score(lab.model(stage), *judges, lab.tokenizer, prompts, k, temperature, seed, lab.machine)


def score_rows(
    lab: Finished, model: RewardModel, prompts: Sequence[Prompt], answers: Sequence[Sequence[str]]
) -> list[list[float]]:
    """A reward model's score of every answer, of which each prompt has a row."""
    asked = [p.messages for p, row in zip(prompts, answers, strict=True) for _ in row]
    flat = iter(score_answers(model, lab.tokenizer, asked, [a for row in answers for a in row], lab.machine))
    return [[next(flat) for _ in row] for row in answers]


def true_worth(lab: Finished, samples: Samples) -> list[list[float]]:
    """What the answers are worth, by the oracle: true helpfulness."""
    return [
        [lab.oracle.judge(p, a).helpfulness for a in row]
        for p, row in zip(samples.prompts, samples.answers, strict=True)
    ]


# ---- claim 16 ------------------------------------------------------------------------------------------------------


def order_weights(n: int, k: int, place: int) -> Array:
    """(n,): how often each of n numbers in ascending order is the one at `place` (1 the smallest) of k of them, over
    all choices of k. A mean over all choices of K draws says the same as one over the first K, with less luck."""
    return np.array([math.comb(i, place - 1) * math.comb(n - 1 - i, k - place) for i in range(n)]) / math.comb(n, k)


def of_k(scores: Array, truths: Array, k: int) -> dict[str, Array]:
    """For each prompt, over all choices of K of its n draws: `max` and `median` score, the true worth of the one with
    the largest score (`pick`), and of the truly best (`ceiling`). scores, truths (prompts, n); results (prompts,)."""
    n = scores.shape[1]
    largest = order_weights(n, k, k)
    middle = (order_weights(n, k, (k + 1) // 2) + order_weights(n, k, k // 2 + 1)) / 2
    ranks = scores.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(scores, ranks, 1)
    return {
        "max": ordered @ largest,
        "median": ordered @ middle,
        "pick": np.take_along_axis(truths, ranks, 1) @ largest,
        "ceiling": np.sort(truths, axis=1) @ largest,
    }


def by_k(
    scores: Sequence[Sequence[float]],
    truths: Sequence[Sequence[float]],
    ks: Sequence[int] = KS,
) -> dict[str, dict[str, Figure]]:
    """{what: {K: figure}} over prompts, of what `of_k` gives."""
    s, t = np.array(scores, dtype=float), np.array(truths, dtype=float)
    found = {str(k): of_k(s, t, k) for k in ks if k <= s.shape[1]}
    return {
        what: {k: stats.mean(each[what].tolist()) for k, each in found.items()}
        for what in ("max", "median", "pick", "ceiling")
    }


def best_of_k_by_temperature(
    lab: Finished,
    stages: Sequence[str] = STAGES,
    temperatures: Sequence[float] = TEMPERATURES,
    prompts: int = 64,
    k: int = 32,
    resamples: int = 400,
) -> dict[str, Any]:
    """Claim 16: the report's Figures 7 and 8. Every stage answers the same prompts K times at every temperature.
    `curves` {stage: {temperature: by_k}}, `gain` {stage: {temperature: what the largest K has more than K = 1, of the
    "max" and the "median", prompt by prompt}}; `best` {stage: {K: the temperature whose mean best score is the largest,
    with the interval of a bootstrap over prompts}}, and `gap`, differences of such temperatures. About 60 seconds."""
    asked = lab.prompts(helpful=prompts, seed=16)
    ks = [x for x in KS if x <= k]
    curves: dict[str, dict[str, Any]] = {}
    gain: dict[str, dict[str, Any]] = {}
    highest: dict[str, np.ndarray] = {}  # (temperatures, ks, prompts): the best of the first K scores
    for stage in stages:
        curves[stage], gain[stage], rows = {}, {}, []
        for number, t in enumerate(temperatures):
            samples = sampled(lab, stage, asked, k, t, 100 + number)
            curves[stage][f"{t:g}"] = by_k(samples.scores, true_worth(lab, samples), ks)
            scores = np.array(samples.scores)
            rows.append([of_k(scores, scores, n)["max"] for n in ks])
            one, all_k = (of_k(scores, scores, n) for n in (1, ks[-1]))
            gain[stage][f"{t:g}"] = {what: stats.mean((all_k[what] - one[what]).tolist()) for what in ("max", "median")}
        highest[stage] = np.array(rows)
    drawn = np.random.default_rng(0).integers(prompts, size=(resamples, prompts))
    times = np.array(temperatures)
    at = {stage: {n: times[x[:, i].mean(1).argmax()] for i, n in enumerate(ks)} for stage, x in highest.items()}
    spread = {
        stage: {n: times[x[:, i][:, drawn].mean(2).argmax(0)] for i, n in enumerate(ks)} for stage, x in highest.items()
    }
    last, most = stages[-1], ks[-1]
    names = {s: summary.short_name(s) for s in stages}
    pairs = [(f"{names[s]}: best temperature at K = {most} less at K = 1", (s, most), (s, 1)) for s in stages]
    for s in stages[:-1]:
        pairs.append((f"K = {most}: best temperature of {names[last]} less {names[s]}", (last, most), (s, most)))
    return {
        "curves": curves,
        "gain": gain,
        "best": {s: {str(n): _around(at[s][n], spread[s][n], prompts) for n in ks} for s in stages},
        "gap": {
            words: _around(at[a][i] - at[b][j], spread[a][i] - spread[b][j], prompts) for words, (a, i), (b, j) in pairs
        },
    }


def _around(value: float, resampled: np.ndarray, n: int) -> Figure:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return {"mean": float(value), "low": min(float(low), float(value)), "high": max(float(high), float(value)), "n": n}


# ---- claim 14 ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Small:
    """A helpfulness model to be trained now: on so many pairs, of which a share is labelled the wrong way round."""

    pairs: int
    head: str
    flipped: float = 0.0
    epochs: float = 1.0

    @property
    def name(self) -> str:
        odd = (
            f", {self.flipped:.0%} flipped" if self.flipped else f", {self.epochs:g} epochs" if self.epochs > 1 else ""
        )
        return f"{self.pairs} pairs, {self.head}{odd}"


SMALL = (
    *(Small(n, head) for n in (50, 120, 300, 700, 1500, 2400) for head in HEADS),
    *(Small(1000, head, flipped=share) for share in (0.2, 0.4) for head in HEADS),
    *(Small(300, head, epochs=4.0) for head in HEADS),
)


def flipped(rows: Sequence[dict], share: float, seed: int) -> list[dict]:
    """The rows, in a random `share` of which the chosen answer and the rejected one have changed places."""
    wrong = set(random.Random(seed).sample(range(len(rows)), round(share * len(rows))))
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if i in wrong else row
        for i, row in enumerate(rows)
    ]


def candidates(lab: Finished, small: Sequence[Small]) -> list[tuple[str, str, int, RewardModel]]:
    """(name, head, pairs, model): the run's own helpfulness models, and small ones trained now."""
    found = []
    for name in (*(f"reward-helpfulness-v{v}" for v in range(1, 6)), "reward-helpfulness-v5-linear"):
        try:
            model = lab.reward(name)
        except LabError:  # a run that is shipped keeps only some
            continue
        short = name.removeprefix("reward-helpfulness-").replace("-", ", ")
        found.append((short, model.head, int(lab.metrics(name).get("pairs", 0)), model))
    for number, s in enumerate(small):
        rows = flipped(draw(lab, "helpfulness", "train", s.pairs, s.pairs), s.flipped, number)
        found.append((s.name, s.head, s.pairs, reward_on(lab, rows, number, s.head, s.epochs)))
    return found


def accuracy_predicts(
    lab: Finished,
    small: Sequence[Small] = SMALL,
    prompts: int = 160,
    k: int = 16,
    held_out: int = 500,
    stage: str = "sft",
) -> dict[str, Any]:
    """Claim 14: some twenty helpfulness models, which differ in pairs, wrong labels, epochs and head, choose among the
    same K answers to each prompt. Accuracy of each on the same held-out pairs, as its annotators labelled them and as
    the truth would, and the true helpfulness of what it chooses. The intervals of the correlations are about further
    models (Fisher's z). About 150 seconds."""
    asked = lab.prompts(helpful=prompts, seed=14)
    answers = lab.sample_answers(stage, [p.messages for p in asked], k=k, seed=14)
    truths = [[lab.oracle.judge(p, a).helpfulness for a in row] for p, row in zip(asked, answers, strict=True)]
    by_people, by_truth = draw(lab, "helpfulness", "test", held_out, 0), truth_rows(lab, held_out)
    models: list[dict[str, Any]] = []
    for name, head, n, model in candidates(lab, small):
        scores = score_rows(lab, model, asked, answers)
        told, truly = (accuracy(pair_scores(model, lab.tokenizer, rows, lab.machine)) for rows in (by_people, by_truth))
        pick = by_k(scores, truths, [k])["pick"][str(k)]
        models.append({"name": name, "head": head, "pairs": n, "pick": pick, "accuracy": told, "truth": truly})
    picks = [m["pick"]["mean"] for m in models]
    return {
        "models": models,
        "k": k,
        "one": stats.mean([t[0] for t in truths]),
        "ceiling": stats.mean([max(t) for t in truths]),
        "correlation": {
            words: correlation([m[key]["mean"] for m in models], picks)
            for words, key in (("accuracy on annotators' labels", "accuracy"), ("accuracy on the truth", "truth"))
        },
    }


def correlation(x: Sequence[float], y: Sequence[float]) -> Figure:
    """Pearson's, with Fisher's interval; NaN where it is not defined."""
    if len(x) < 4 or np.std(x) == 0 or np.std(y) == 0:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "n": len(x)}
    found = tests.pearsonr(x, y)
    low, high = found.confidence_interval(0.95)
    return {"mean": float(found.statistic), "low": float(low), "high": float(high), "n": len(x)}


# ---- learning from the best ----------------------------------------------------------------------------------------


def best_against_random(lab: Finished) -> dict[str, dict[str, Any]]:
    """Fine-tuned on the best of K, and on any of the same K: {stage: figures}, and the difference of true helpfulness,
    prompt by prompt where the answers are kept; from the run."""
    stages = ("sft", "rlhf-v1-random", "rlhf-v1")
    metrics = ("helpfulness", "correct", "violation_rate")
    found = {summary.short_name(s): {m: f for m in metrics if (f := summary.find(lab.figures, s, m))} for s in stages}
    gap = summary.paired_gap([lab.folder], "rlhf-v1", "rlhf-v1-random", lab.figures)
    return {"stages": found, "claims": {"true helpfulness: learnt from the best less from any": gap} if gap else {}}


EXPERIMENTS = (best_of_k_by_temperature, accuracy_predicts)
