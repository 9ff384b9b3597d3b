"""Preferences (Llama 2, section 3.2.1): the student's own labels, and claims 5 and 6: annotation vendors differ and it
shows downstream; a binary choice is enough.

All judge real pairs of the run. The oracle says which answer is truly better; pairs closer than a tie have no truth.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from llama2lab.annotation.agreement.coefficients import Label, alpha_of, gwet_of, judged
from llama2lab.annotation.agreement.quality import quality
from llama2lab.annotation.agreement.simulate import Items, simulated_labels
from llama2lab.annotation.files.adding import add_pairs
from llama2lab.annotation.files.sifting import sift
from llama2lab.annotation.rows import people_against_simulated
from llama2lab.annotation.store.store import Store, open_store
from llama2lab.engine import stats
from llama2lab.engine.files import digest
from llama2lab.engine.scale import GRADES
from llama2lab.engine.stats import Figure
from llama2lab.lab.checking import whose
from llama2lab.lab.finished import Finished, live_folder
from llama2lab.lab.seeds import less, over_seeds
from llama2lab.lessons.n05_preferences.exercises import PAIRED_BOOTSTRAP
from llama2lab.lessons.n05_preferences.pairs import (
    TRUTH,
    Pair,
    draw,
    items_of,
    prompts_by_id,
    real_pairs,
    true_gap,
    truth_rows,
)
from llama2lab.model.logprobs import answer_loglikelihoods, pad_right
from llama2lab.report.summary import difference
from llama2lab.run.gold import gold_pairs, guidelines
from llama2lab.stages import reward
from llama2lab.stages.evaluate import TIE
from llama2lab.stages.reward import RewardModel, encode_answers, judged_well, pair_scores
from llama2lab.stages.rounds import ROUNDS, RlhfSettings
from llama2lab.town import language
from llama2lab.town.annotators import VENDORS, Annotator, grade_of, label_pairs

Array = NDArray[np.float64]

FEWEST = 5  # labels from which on a person's own are looked at
STAND_IN = Annotator("stand-in", "stand-in", noise=0.6)

# The report: comparisons in each weekly batch (Table 26); share of the bins of safety pairs, percent (section 3.2.1).
TABLE_26 = (
    *(5_561, 17_072, 30_146, 36_206, 49_375, 57_746, 84_388),
    *(95_235, 127_235, 136_729, 136_868, 181_293, 210_881, 249_356),
)
SAFETY_BINS = {"chosen_safe": 18, "both_safe": 47, "both_unsafe": 35}


# ---- pairs of the run ----------------------------------------------------------------------------------------------


def grades_by_round(lab: Finished) -> dict[str, dict[str, Figure]]:
    """Share of each grade in each round's helpfulness pairs (the report's Figure 25)."""
    rows = {str(v): lab.rows(f"preferences-v{v}", "helpfulness.train.jsonl") for v in ROUNDS}
    return {g: {v: stats.rate([r["grade"] == g for r in some]) for v, some in rows.items()} for g in GRADES}


def safety_bins(lab: Finished) -> dict[str, Figure]:
    """Share of each bin of the safety pairs of all rounds."""
    rows = draw(lab, "safety", "train", 10**6, 0)
    return {name: stats.rate([r["safety"] == name for r in rows]) for name in SAFETY_BINS}


# ---- the student's own labels --------------------------------------------------------------------------------------


def own_pairs(lab: Finished, n: int = 24) -> list[Pair]:
    """At most `n` pairs of the run that are worth a person's time (annotation/files/sifting.py)."""
    pairs = real_pairs(lab, 4 * n, seed=11)
    rows = [as_row(pair) for pair in pairs]
    kept = {id(row) for row in sift(rows, language.sound).kept}
    return [pair for pair, row in zip(pairs, rows, strict=True) if id(row) in kept][:n]


def as_row(pair: Pair) -> dict[str, Any]:
    """The pair as people are asked about it."""
    prompt, *answers = pair
    messages = [dict(m) for m in prompt.messages]
    return {"kind": "helpfulness", "prompt": messages, "answers": answers, "prompt_id": prompt.id}


def own_store(lab: Finished, n: int = 24, gold: int = 7) -> Store:
    """A store in runs/lab with `n` pairs of the run, `gold` pairs whose better answer is known, and the guidelines;
    what was labelled there before is still there."""
    folder = live_folder()
    folder.mkdir(parents=True, exist_ok=True)
    store = open_store(folder / f"labels-{digest([str(lab.folder.resolve()), lab.figures])[:8]}.db")
    store.add_guidelines("helpfulness", guidelines(lab.town, "helpfulness"))
    rows = [as_row(pair) for pair in own_pairs(lab, n)]
    add_pairs(store, rows + gold_pairs(lab.town, gold, "helpfulness", 5), overlap=3)
    return store


def own_labels(lab: Finished, store: Store, n: int = 24) -> tuple[list[Label], bool]:
    """What people said in the store, and True; where they have said too little, what a simulated stand-in says of the
    same pairs, and False. Nothing of the stand-in is stored."""
    mine = [x for x in store.labels() if x["annotator_kind"] == "person"]
    if len(judged(mine)) >= FEWEST:
        return mine, True
    return simulated_labels([STAND_IN], lab.oracle, items_of(own_pairs(lab, n)), "helpfulness"), False


def beside_simulated(
    lab: Finished,
    mine: Sequence[Label],
    names: Sequence[str] = ("careful", "typical", "hasty"),
) -> dict[str, Any]:
    """How often one's labels and simulated annotators' of the same pairs prefer the same answer (`same`), alpha and AC1
    of one's labels and the majority of theirs, how often one agrees with the `truth` and with `gold`, and the median
    `seconds` a pair."""
    known = prompts_by_id(lab, "train")
    items: Items = {
        x["item_id"]: (known[x["prompt_id"]], *x["answers"]) for x in judged(mine) if x["prompt_id"] in known
    }
    theirs = simulated_labels([VENDORS[name] for name in names], lab.oracle, items, "helpfulness", seed=1)
    both = people_against_simulated(mine, theirs)
    me = quality([{**x, "annotator": "me"} for x in mine])[0]
    return {
        "same": both["as_often"],
        "alpha": both["choice"]["alpha"],
        "ac1": both["choice"]["ac"],
        "truth": against_truth(lab, items, mine)["all"],
        "gold": me.gold,
        "seconds": None if math.isnan(me.seconds) else me.seconds,
    }


def against_truth(lab: Finished, items: Items, said: Sequence[Label]) -> dict[str, Figure]:
    """How often these labels choose the truly better answer: of "all" pairs, and by how clear the pair truly is (the
    grade that its true gap deserves). Ties are left out."""
    gaps = {key: true_gap(lab, pair) for key, pair in items.items()}
    rows = [
        (items[x["item_id"]][0].content, gap, (x["choice"] == 1) == (gap > 0))
        for x in judged(said)
        if abs(gap := gaps.get(x["item_id"], 0.0)) > TIE
    ]

    def rate(some: Sequence[tuple[str, float, bool]]) -> Figure:
        return stats.rate([ok for _, _, ok in some], [content for content, _, _ in some])

    return {"all": rate(rows), **{g: rate([r for r in rows if grade_of(r[1]) == g]) for g in GRADES}}


def second_opinion(said: Sequence[Label], a: str, b: str) -> dict[str, Figure]:
    """How often annotator b chooses as a did, by a's grade."""
    first, second = ({x["item_id"]: x for x in judged(said) if x["annotator"] == name} for name in (a, b))
    both = [(first[i]["grade"], first[i]["choice"] == second[i]["choice"]) for i in first if i in second]
    return {g: stats.rate([same for grade, same in both if grade == g]) for g in GRADES}


def right_or_wrong(lab: Finished, items: Items, said: Sequence[Label], names: Sequence[str]) -> list[Array]:
    """Of each of these annotators 1 or 0 for every pair that has a truth and that all of them judged, in one order:
    whether the truly better answer was chosen."""
    choices = [{x["item_id"]: x["choice"] for x in judged(said) if x["annotator"] == name} for name in names]
    gaps = {key: true_gap(lab, pair) for key, pair in items.items()}
    both = [key for key, gap in gaps.items() if abs(gap) > TIE and all(key in of for of in choices)]
    return [np.array([float((of[key] == 1) == (gaps[key] > 0)) for key in both]) for of in choices]


def apart(a: Array, b: Array, paired_bootstrap: Callable | None = None) -> dict[str, Figure | None]:
    """The mean of a less b on the same items: by the student's `paired_bootstrap`, or the library's if that is not
    right yet, and as if the items of b were others."""
    function, owner = whose(PAIRED_BOOTSTRAP, paired_bootstrap)
    low, high = map(float, function(a, b))
    paired: Figure = {"mean": float(a.mean() - b.mean()), "low": low, "high": high, "n": len(a)}
    return {
        f"on the same pairs ({owner} bootstrap)": paired,
        "as if on others": difference(stats.rate(a.tolist()), stats.rate(b.tolist())),
    }


def agreement_by_prevalence(
    error: float = 0.05, shares: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98), n: int = 4000
) -> dict[str, dict[float, dict[str, float]]]:
    """Percent agreement, alpha and AC1 of two people who mark `n` answers, by the share that is truly safe: two who
    look and err in `error` of the cases, and two who do not look, and mark as many safe by chance."""
    result: dict[str, dict[float, dict[str, float]]] = {"both look": {}, "neither looks": {}}
    for p in shares:
        right = 1 - error
        yes, no = p * right**2 + (1 - p) * error**2, (1 - p) * right**2 + p * error**2
        for who, both in (("both look", (yes, no)), ("neither looks", (p * p, (1 - p) ** 2))):
            agree = [round(n * x) for x in both]
            table = np.array([[0, 2]] * agree[0] + [[2, 0]] * agree[1] + [[1, 1]] * (n - sum(agree)), dtype=float)
            alpha, ac1 = alpha_of(table, "nominal"), gwet_of(table, np.eye(2))
            result[who][p] = {"percent": sum(agree) / n, "alpha": alpha, "AC1": ac1}
    return result


# ---- claim 5 -------------------------------------------------------------------------------------------------------

HABITS: dict[str, Callable[[str], float]] = {
    "longer": lambda text: len(language.words(text)),
    "more polite": lambda text: sum(language.pleasantries(language.sentences(language.tidy(text)))),
    "longer words": lambda text: sum(map(len, w)) / len(w) if (w := language.words(text)) else 0.0,
}


def vendor_labels(lab: Finished, pairs: int = 1200) -> tuple[dict[str, Pair], list[Label]]:
    """The same pairs of the run, judged by every vendor."""
    items = items_of(real_pairs(lab, pairs, seed=3))
    return items, simulated_labels(list(VENDORS.values()), lab.oracle, items, "helpfulness", seed=2)


def reward_on(
    lab: Finished, rows: Sequence[dict], seed: int, head: str = "likelihood", epochs: float = 1.0
) -> RewardModel:
    """The recipe's helpfulness model, trained on these rows from a copy of the SFT model; in batches of half the size:
    the first dozen steps only undo the head's random start, and so few pairs have few steps. In memory."""
    start = copy.deepcopy(lab.model("sft"))
    settings = replace(RlhfSettings().helpfulness, head=head, batch_pairs=16, epochs=epochs)
    reference, what = lab.model("sft"), f"{len(rows)} pairs, seed {seed}"
    return reward.train_reward(start, lab.tokenizer, rows, settings, seed, lab.machine, reference=reference, what=what)[
        0
    ]


def pull(rows: Sequence[dict], scores: Sequence[tuple[float, float]], habit: str) -> Figure:
    """How much more often a model prefers the longer (more polite, ..) answer than the truth does, over the pairs that
    differ in this; `rows` are labelled by the truth."""
    gaps = []
    for row, (chosen, rejected) in zip(rows, scores, strict=True):
        better, worse = (HABITS[habit](row[side][0]["content"]) for side in ("chosen", "rejected"))
        if better != worse:
            gaps.append(
                judged_well(*((chosen, rejected) if better > worse else (rejected, chosen))) - float(better > worse)
            )
    return stats.mean(gaps)


def vendors(
    lab: Finished,
    pairs: int = 2400,
    held_out: int = 500,
    seeds: Sequence[int] = (0, 1),
    names: Sequence[str] = ("careful", "hasty", "length_biased", "charmed", "formal"),
) -> dict[str, Any]:
    """Claim 5: the same pairs labelled by each vendor (and by the truth), and the reward model that each one's labels
    yield, judged on held-out pairs labelled by the truth. Two trainings a vendor; about 90 seconds.
    On fewer pairs all models are poor, whoever labels."""
    test = truth_rows(lab, held_out)
    groups = [row["prompt_id"].rsplit("/", 1)[0] for row in test] * len(seeds)
    told: dict[str, Figure] = {}
    right: dict[str, list[list[float]]] = {}
    pulls: dict[str, dict[str, Figure]] = {}
    for annotator in (TRUTH, *(VENDORS[name] for name in names)):
        labelled, scores = [], []
        for seed in seeds:
            rows = label_pairs([annotator], lab.oracle, real_pairs(lab, pairs, seed=seed), "helpfulness", seed)
            for row in rows:
                one, two = (row[side][0]["content"] for side in ("chosen", "rejected"))
                gap = true_gap(lab, (prompts_by_id(lab, "train")[row["prompt_id"]], one, two))
                labelled += [gap > 0] if abs(gap) > TIE else []
            model = reward_on(lab, rows, seed)
            scores.append(pair_scores(model, lab.tokenizer, test, lab.machine))
        told[annotator.name] = stats.rate(labelled)
        right[annotator.name] = [[judged_well(c, r) for c, r in one] for one in scores]
        flat = [x for one in scores for x in one]
        pulls[annotator.name] = {habit: pull(test * len(seeds), flat, habit) for habit in HABITS}
    models = {name: over_seeds(stats.rate, each, groups) for name, each in right.items()}
    gaps = {n: less(right["careful"], right[n]) for n in names if n != "careful" and "careful" in names}
    claims = {
        f"reward model's accuracy: trained on careful less on {name} labels": over_seeds(stats.mean, gap, groups)
        for name, gap in gaps.items()
    }
    return {"labels": told, "models": models, "pulls": pulls, "claims": claims}


# ---- claim 6 -------------------------------------------------------------------------------------------------------

STRENGTH = dict(zip(GRADES, (3.0, 1.6, 0.75, 0.2), strict=True))  # the perceived gap that a grade stands for
WAYS = ("choice", "choice and grade", "two scores")


@dataclass(frozen=True)
class Effort:
    """What is assumed of people. None of it is measured: the seconds are your own guess, or your own clock's."""

    seconds_choice: float = 20.0  # for one pair
    seconds_grade: float = 4.0  # more, to say how much better
    seconds_score: float = 20.0  # for one answer on a scale of seven; a pair has two
    noise: float = 0.75  # of the perceived gap of a pair, logistic; a score has its share of it
    strictness: float = 1.0  # standard deviation of what annotators hold for the middle of the scale, in points
    annotators: int = 10

    def pairs(self, way: str, hours: float) -> int:
        times = (self.seconds_choice, self.seconds_choice + self.seconds_grade, 2 * self.seconds_score)
        return int(hours * 3600 / max(dict(zip(WAYS, times, strict=True))[way], 0.1))


def probe_features(lab: Finished, pairs: int = 1000, held_out: int = 400, dims: int = 24) -> dict[str, Any]:
    """What a reward model in miniature sees of each answer of real pairs: the chat model's last hidden state, in its
    `dims` main directions, the answer's log-likelihood, whole and a token, and the HABITS. With the true worth of each
    answer. About 5 seconds."""
    parts = {"train": real_pairs(lab, pairs, seed=5), "test": real_pairs(lab, held_out, "test", seed=5)}
    parts["test"] = [p for p in parts["test"] if abs(true_gap(lab, p)) > TIE]
    asked = [(p, answer) for some in parts.values() for p, *two in some for answer in two]
    encoded = encode_answers(lab.tokenizer, [p.messages for p, _ in asked], [a for _, a in asked])
    model, pad = lab.model("sft"), lab.tokenizer.pad_token_id
    states = []
    for start in range(0, len(encoded), 100):
        tokens, lengths = pad_right([ids for ids, _ in encoded[start : start + 100]], pad)
        with torch.inference_mode():
            hidden = model.hidden(tokens.to(lab.machine.device)).float().cpu()  # (batch, seq, dim)
        states.append(hidden[torch.arange(len(lengths)), lengths - 1].numpy())
    x = np.concatenate(states).astype(float)
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    x = x @ np.linalg.svd(x, full_matrices=False)[2][:dims].T
    loglik = np.array(answer_loglikelihoods(model, encoded, pad, lab.machine))
    seen = [loglik, loglik / [sum(mask) for _, mask in encoded], *([f(a) for _, a in asked] for f in HABITS.values())]
    x = np.concatenate([x, np.array(seen).T], axis=1)
    x = np.round((x - x.mean(0)) / (x.std(0) + 1e-6), 3)
    worth = [round(lab.oracle.judge(p, a).helpfulness, 3) for p, a in asked]
    n = 2 * len(parts["train"])
    return {"train": {"x": x[:n].tolist(), "worth": worth[:n]}, "test": {"x": x[n:].tolist(), "worth": worth[n:]}}


def learnt(features: dict[str, Any], effort: Effort, hours: float, seed: int) -> dict[str, float]:
    """Let people label in each of the WAYS for as many hours, fit a linear reward to it, and see how often that prefers
    the truly better of two held-out answers."""
    rng = np.random.default_rng(seed)
    x = np.array(features["train"]["x"]).reshape(len(features["train"]["x"]) // 2, 2, -1)  # (pairs, 2, features)
    worth = np.array(features["train"]["worth"]).reshape(-1, 2)
    order = rng.permutation(len(x))
    gap = worth[:, 0] - worth[:, 1] + rng.logistic(0, max(effort.noise, 1e-9), len(x))
    middle = rng.normal(0, effort.strictness, effort.annotators)[rng.integers(effort.annotators, size=len(x))]
    seen = worth + middle[:, None] + rng.logistic(0, max(effort.noise, 1e-9) / math.sqrt(2), worth.shape)
    test_x, test_worth = (np.array(features["test"][key]) for key in ("x", "worth"))
    better = test_worth[::2] > test_worth[1::2]
    result = {}
    for way in WAYS:
        take = order[: max(2, effort.pairs(way, hours))]
        apart = x[take, 0] - x[take, 1]
        if way == "choice":
            w = logistic_weights(apart, gap[take] > 0)
        elif way == "choice and grade":
            strength = np.array([STRENGTH[grade_of(g)] for g in gap[take]]) * np.sign(gap[take])
            w = ridge_weights(apart, strength)
        else:
            scores = np.clip(np.round(seen[take]), -3, 3).reshape(-1)
            flat = x[take].reshape(-1, x.shape[2])
            w = ridge_weights(flat - flat.mean(0), scores - scores.mean())
        result[way] = float(np.mean(((test_x[::2] - test_x[1::2]) @ w > 0) == better))
    return result


def ridge_weights(x: Array, y: Array, ridge: float = 3.0) -> Array:
    return np.asarray(np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y), dtype=np.float64)


def logistic_weights(x: Array, first: NDArray[np.bool_], ridge: float = 1.0) -> Array:
    """Bradley and Terry's model of the choice (equation 1 of the report), by Newton's method."""
    w = np.zeros(x.shape[1])
    for _ in range(12):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        w += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(w)), x.T @ (first - p) - ridge * w)
    return w


def accuracy_by_hours(
    features: dict[str, Any],
    effort: Effort,
    hours: Sequence[float],
    repeats: int = 6,
) -> dict[str, dict[str, Figure]]:
    """{way: {hours: accuracy}}; the intervals are about other people who label other pairs of the same kind."""
    found = {h: [learnt(features, effort, h, seed) for seed in range(repeats)] for h in hours}
    return {way: {f"{h:g}": stats.mean([one[way] for one in each]) for h, each in found.items()} for way in WAYS}


def choice_against_scores(
    lab: Finished,
    hours: Sequence[float] = (0.25, 0.5, 1, 2, 4),
    repeats: int = 30,
    strictness: Sequence[float] = (0.0, 1.0, 2.0),
    **size: Any,
) -> dict[str, Any]:
    """Claim 6: a choice, a choice with a grade, and two scores, at equal annotation time, by how much annotators differ
    in strictness; all else as `Effort` assumes. People are simulated, pairs are real. About 10 seconds."""
    features = probe_features(lab, **size)
    by = {f"{s:g}": accuracy_by_hours(features, Effort(strictness=s), hours, repeats) for s in strictness}
    middle = min(hours, key=lambda h: abs(h - 1))
    gaps = {}
    for s in strictness:
        found = [learnt(features, Effort(strictness=s), middle, seed) for seed in range(repeats)]
        words = f"strictness differs by {s:g}: choice and grade less two scores, {middle:g} h"
        gaps[words] = stats.mean([one["choice and grade"] - one["two scores"] for one in found])
    return {"accuracy": by, "claims": gaps}


EXPERIMENTS = (vendors, choice_against_scores)
