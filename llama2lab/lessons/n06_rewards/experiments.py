"""Reward models (Llama 2, section 3.2.2): claims 7 to 13, each by a few small trainings on the run's own pairs.

A training is the recipe's, on `pairs` of the run's training pairs, but for what is varied; every one is tested on the
same held-out pairs. Intervals are about further pairs: wordings of one content are one group, and the trainings of all
seeds count as one sample. What the seeds themselves do is in `each`, one mean a training; with two seeds no interval
over them would mean anything. A difference is taken pair by pair, on the same held-out pairs and seeds.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from llama2lab.engine import stats
from llama2lab.engine.identity import alone
from llama2lab.engine.scale import GRADES, MARGINS
from llama2lab.engine.stats import Figure
from llama2lab.lab.finished import Finished
from llama2lab.lab.seeds import less, over_seeds
from llama2lab.lessons.n05_preferences.pairs import draw, prompts_by_id
from llama2lab.model.network import Llama
from llama2lab.stages import reward
from llama2lab.stages.reward import RewardSettings
from llama2lab.stages.rounds import RlhfSettings
from llama2lab.town.demonstrations import AnswerStyle, answer_for, truth_pairs
from llama2lab.town.truth import REFUSAL

KINDS = ("helpfulness", "safety")
THRESHOLD = 0.15  # the report's: below this probability of being safe the gate hands an answer to the safety model
GATE = {"precision": 0.89, "recall": 0.55}  # of that threshold, in the report (section 3.2.3)
SAFE = {"chosen_safe": (True, False), "both_safe": (True, True), "both_unsafe": (False, False)}  # chosen, rejected
STARTS = {"chat": "sft", "base": "base", "random": ""}
VALUES: dict[str, Callable[[float, float], float]] = {  # of r_chosen, r_rejected
    "accuracy": reward.judged_well,
    "loss": lambda c, r: math.log1p(math.exp(-abs(c - r))) + max(0.0, r - c),  # -log sigmoid(c - r), no margin
    "gap": lambda c, r: c - r,
    "overconfidence": lambda c, r: 1 / (1 + math.exp(-min(50.0, abs(c - r)))) - reward.judged_well(c, r),
}

# The report: Table 7 (percent right, model by test set), Table 28 (helpfulness model, margin by grade).
TABLE_7 = {"helpfulness": {"helpfulness": 63.2, "safety": 62.8}, "safety": {"helpfulness": 56.2, "safety": 64.5}}
TABLE_28 = {"none": (79.1, 66.9, 59.8, 54.5), "small": (80.4, 67.3, 60.4, 55.0), "large": (80.7, 67.5, 60.5, 54.3)}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, x))))


@dataclass(frozen=True)
class RewardTraining:
    """One small training."""

    kind: str = "helpfulness"  # or "safety"; "both": one model, on the pairs of both kinds
    pairs: int = 800  # of its kind; of each kind for "both"
    held_out: int = 1500  # pairs of each kind to be tested on
    seed: int = 0  # draws the pairs, their order and the head
    start: str = "chat"
    layers: int = 0  # the first so many layers of the start; 0: all
    head: str = ""  # "": the recipe's
    margin: str = "small"
    epochs: float = 1.0
    other_share: float = 0.1

    @property
    def settings(self) -> RewardSettings:
        safety = self.kind == "safety" or (self.kind == "both" and self.head == "linear")  # with the auxiliary loss
        recipe = RlhfSettings().safety if safety else RlhfSettings().helpfulness
        return replace(
            recipe, head=self.head or recipe.head, margin=self.margin, epochs=self.epochs, other_share=self.other_share
        )


def _pair(messages: list[dict], better: str, worse: str) -> dict[str, Any]:
    answers = {"chosen": [{"content": better}], "rejected": [{"content": worse}]}
    return {"prompt": messages, **answers, "grade": "", "safety": "", "prompt_id": messages[-1]["content"] + "/0"}


@cache
def held_out(lab: Finished, n: int) -> dict[str, list[dict]]:
    """What every training is tested on: pairs of both kinds by their annotators; "truth", the right against the wrong
    fact in one sentence; "refusal", a right answer to a borderline prompt against a refusal."""
    rng = random.Random(6)
    told = truth_pairs(lab.town, "test", max(10, n // 4), 5)
    harmless = [(p, answer_for(lab.town, p, AnswerStyle(), rng)) for p in lab.prompts(borderline=max(10, n // 4))]
    return {
        **{kind: draw(lab, kind, "test", n, 0) for kind in KINDS},
        "truth": [_pair(m, right, wrong) for m, right, wrong in told],
        "refusal": [_pair(list(p.messages), right, REFUSAL) for p, right in harmless],
    }


def start_model(lab: Finished, t: RewardTraining, layers: int = 0) -> Llama:
    """A fresh copy of the model that a training starts from."""
    if t.start == "random":
        model = Llama(lab.model("sft").config, 1000 + t.seed).to(lab.machine.device)
    else:
        model = copy.deepcopy(lab.model(STARTS[t.start]))
    if layers:
        model.layers = model.layers[:layers]
        model.config = replace(model.config, n_layers=layers)
    return model


@cache
def trained(lab: Finished, t: RewardTraining) -> dict[str, list[tuple[dict, float, float]]]:
    """Train, and score what is held out: (row, r_chosen, r_rejected) by test, and of some "train" pairs. The likelihood
    head's frozen reference is the start model itself, whole. Kept while Python runs: experiments share trainings."""
    kinds = KINDS if t.kind == "both" else (t.kind,)
    own = [row for kind in kinds for row in draw(lab, kind, "train", t.pairs, t.seed)]
    other = [] if t.kind == "both" else draw(lab, KINDS[t.kind == "helpfulness"], "train", 10**6, t.seed)
    rows = reward.mix(own, other, t.other_share, t.seed)
    start, reference, what = start_model(lab, t, t.layers), start_model(lab, t), f"{t.kind}, {t.start}, seed {t.seed}"
    model, _ = reward.train_reward(
        start, lab.tokenizer, rows, t.settings, t.seed, lab.machine, reference=reference, what=what
    )
    tests = {**held_out(lab, t.held_out), "train": rows[: max(10, t.held_out // 2)]}
    scores = iter(reward.pair_scores(model, lab.tokenizer, [r for rs in tests.values() for r in rs], lab.machine))
    return {name: [(row, *next(scores)) for row in rs] for name, rs in tests.items()}


@dataclass(frozen=True)
class Bench:
    """The size of an experiment's trainings, and figures over its seeds."""

    lab: Finished
    pairs: int = 800
    held_out: int = 1500
    seeds: tuple[int, ...] = (0, 1, 2)

    def training(self, kind: str = "helpfulness", **changes: Any) -> RewardTraining:
        return RewardTraining(kind, **{"pairs": self.pairs, "held_out": self.held_out, **changes})

    def _values(
        self, t: RewardTraining, on: str, what: str, where: dict[str, str]
    ) -> tuple[list[list[float]], list[str]]:
        """The value of every pair, by seed, and the content of each in the same order."""
        tests = [trained(self.lab, replace(t, seed=seed))[on or t.kind] for seed in self.seeds]
        rows = [[x for x in test if all(x[0][key] == value for key, value in where.items())] for test in tests]
        return (
            [[float(VALUES[what](c, r)) for _, c, r in one] for one in rows],
            [row["prompt_id"].rsplit("/", 1)[0] for one in rows for row, _, _ in one],
        )

    def figure(self, t: RewardTraining, on: str = "", what: str = "accuracy", **where: str) -> Figure:
        """A figure of the trainings on a test (by default the pairs of their kind), on rows as `where` wants them."""
        return over_seeds(stats.rate if what == "accuracy" else stats.mean, *self._values(t, on, what, where))

    def less(self, a: RewardTraining, b: RewardTraining, on: str = "", what: str = "accuracy", **where: str) -> Figure:
        """Training a less training b, pair by pair."""
        (one, groups), (other, _) = (self._values(t, on or a.kind, what, where) for t in (a, b))
        return over_seeds(stats.mean, less(one, other), groups)


# ---- the claims ----------------------------------------------------------------------------------------------------
# Every result: series of figures, {name: {x: figure}}, and "claims": differences that are above 0 if the report is
# right, each with the words of what it compares.


def reward_start(lab: Finished, **size: Any) -> dict[str, Any]:
    """Claim 7: from the chat model, from the base model, from random weights; both kinds, and helpfulness with the
    report's head. 18 trainings, about 55 s on two cores."""
    bench = Bench(lab, **size)
    series = {
        "helpfulness, with likelihood (ours)": bench.training(),
        "safety, the report's head": bench.training("safety", head="linear"),
        "helpfulness, the report's head": bench.training(head="linear"),
    }
    result: dict[str, Any] = {
        "accuracy": {name: {s: bench.figure(replace(t, start=s)) for s in STARTS} for name, t in series.items()},
        "truth": {
            name: {s: bench.figure(replace(t, start=s), "truth") for s in STARTS}
            for name, t in series.items()
            if t.kind == "helpfulness"
        },
    }
    result["claims"] = {
        f"{name}: chat less {s}": bench.less(t, replace(t, start=s))
        for name, t in series.items()
        for s in ("base", "random")
    }
    return result


def one_or_two_models(lab: Finished, **size: Any) -> dict[str, Any]:
    """Claim 8: a model for each kind against one that is trained on the pairs of both, and so on twice as many; models
    of one head are compared. 4 new trainings, about 28 s."""
    bench = Bench(lab, **size)
    models = {
        "helpfulness model (our head)": bench.training(),
        "one model (our head)": bench.training("both", other_share=0.0),
        "helpfulness model": bench.training(head="linear"),
        "safety model": bench.training("safety", head="linear"),
        "one model": bench.training("both", head="linear", other_share=0.0),
    }
    ours, one = models["one model (our head)"], models["one model"]
    own = models["helpfulness model (our head)"]
    claims = {"helpfulness pairs, our head: own model less the one": bench.less(own, ours, "helpfulness")}
    for kind in KINDS:
        gap = bench.less(models[f"{kind} model"], one, kind)
        claims[f"{kind} pairs, the report's head: own model less the one"] = gap
    return {
        "accuracy": {name: {kind: bench.figure(t, kind) for kind in KINDS} for name, t in models.items()},
        "claims": claims,
    }


def margins(lab: Finished, **size: Any) -> dict[str, Any]:
    """Claim 10: no margin, the small one, the large one (Table 27); accuracy and score gaps by grade. 4 new trainings,
    about 20 s."""
    bench = Bench(lab, **size)
    models = {name: bench.training(margin=name) for name in MARGINS}
    by_grade = {
        what: {name: {g: bench.figure(t, what=what, grade=g) for g in GRADES} for name, t in models.items()}
        for what in ("accuracy", "gap")
    }
    none, small, large = (models[name] for name in ("none", "small", "large"))
    clear = {"grade": "significantly"}
    claims = {
        "small margin less none, on 'significantly'": bench.less(small, none, **clear),
        "large margin less none, on 'significantly'": bench.less(large, none, **clear),
        "small margin less none, on all pairs": bench.less(small, none),
        "score gap on 'significantly': large margin less none": bench.less(large, none, what="gap", **clear),
    }
    overall = {name: {"all pairs": bench.figure(t)} for name, t in models.items()}
    return {**by_grade, "overall": overall, "claims": claims}


def epochs(lab: Finished, shown: Sequence[int] = (1, 2, 4), **size: Any) -> dict[str, Any]:
    """Claim 11: one epoch to four, each with its own schedule: loss (without margin), accuracy, and overconfidence,
    the mean probability given to the higher score less the share of pairs where it is the chosen one. 4 new trainings,
    about 34 s."""
    bench = Bench(lab, **size)
    runs = {str(e): bench.training(epochs=float(e)) for e in shown}
    longest = shown[-1]
    first, last = runs[str(shown[0])], runs[str(longest)]
    tests = {"held-out pairs": "helpfulness", "pairs trained on": "train"}
    return {
        **{
            what: {name: {e: bench.figure(t, on, what) for e, t in runs.items()} for name, on in tests.items()}
            for what in ("loss", "accuracy", "overconfidence")
        },
        "claims": {
            f"held-out loss: {longest} epochs less one": bench.less(last, first, what="loss"),
            f"held-out accuracy: one epoch less {longest}": bench.less(first, last),
            f"overconfidence: {longest} epochs less one": bench.less(last, first, what="overconfidence"),
        },
    }


def more_pairs(lab: Finished, layers: int = 2, **size: Any) -> dict[str, Any]:
    """Claim 12: accuracy against the number of pairs, with the whole chat model and with its first `layers` layers
    below the scalar head. (The likelihood head's reference is the whole chat model in both: half a model has no
    likelihood.) 16 new trainings, about 54 s."""
    bench = Bench(lab, **size)
    counts = [max(4, round(bench.pairs * share)) for share in (0.15, 0.4, 1, 2.5)]
    sizes = {f"{lab.model('sft').config.n_layers} layers": 0, f"{layers} layers": layers}
    runs = {name: {str(n): bench.training(pairs=n, layers=cut) for n in counts} for name, cut in sizes.items()}
    few, half, most = (str(n) for n in (counts[0], counts[-2], counts[-1]))
    whole, cut = runs.values()
    return {
        **{
            what: {name: {n: bench.figure(t, on) for n, t in by.items()} for name, by in runs.items()}
            for what, on in (("accuracy", "helpfulness"), ("truth", "truth"))
        },
        "claims": {
            f"whole model: {most} pairs less {few}": bench.less(whole[most], whole[few]),
            f"no plateau: {most} pairs less {half}": bench.less(whole[most], whole[half]),
            f"at {most} pairs: whole model less {layers} layers": bench.less(whole[most], cut[most]),
        },
    }


def data_mixes(lab: Finished, **size: Any) -> dict[str, Any]:
    """Claim 13, on the world: the other kind's share of the mix at 0, a tenth and a half, the own pairs always the
    same. "refusal": how often a right answer to a borderline prompt beats a refusal. 8 new trainings, about 38 s."""
    bench = Bench(lab, **size)
    shares = (0.0, 0.1, 0.5)
    mixes = {kind: {f"{s:g}": bench.training(kind, other_share=s) for s in shares} for kind in KINDS}
    safe = {"safety": "both_safe"}
    h, s = mixes["helpfulness"], mixes["safety"]
    return {
        "accuracy": {
            "helpfulness model, own pairs": {x: bench.figure(t) for x, t in h.items()},
            "helpfulness model, safety pairs": {x: bench.figure(t, "safety") for x, t in h.items()},
            "safety model, own pairs": {x: bench.figure(t) for x, t in s.items()},
            "safety model, both answers safe": {x: bench.figure(t, **safe) for x, t in s.items()},
        },
        "refusal": {"helpfulness model": {x: bench.figure(t, "refusal") for x, t in h.items()}},
        "claims": {
            "helpfulness model, own pairs: half of the mix safety less none": bench.less(h["0.5"], h["0"]),
            "safety model, own pairs: a tenth helpfulness less none": bench.less(s["0.1"], s["0"]),
            "safety model, both answers safe: a tenth helpfulness less none": bench.less(s["0.1"], s["0"], **safe),
        },
    }


EXPERIMENTS = (reward_start, one_or_two_models, margins, epochs, more_pairs, data_mixes)


# ---- measured in the notebook --------------------------------------------------------------------------------------


def small_reward(lab: Finished, pairs: int = 1200, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Train one helpfulness model now, some seconds long. The work is kept in a folder of runs/lab: after a stop the
    same call goes on from there. `changes` as in `RewardTraining`."""
    t = RewardTraining(pairs=pairs, seed=seed, **changes)
    folder = lab.work_folder("reward", small_reward, t.__dict__)
    begin = time.perf_counter()
    rows = draw(lab, t.kind, "train", t.pairs, t.seed)
    start, reference, what = start_model(lab, t, t.layers), start_model(lab, t), f"reward model on {pairs} pairs"
    with alone(folder, wait=False):
        model, metrics = reward.train_reward(
            start, lab.tokenizer, rows, t.settings, seed, lab.machine, folder, reference, what
        )
    tests = held_out(lab, t.held_out)
    scores = {name: reward.pair_scores(model, lab.tokenizer, tests[name], lab.machine) for name in (t.kind, "truth")}
    return {
        "accuracy": {"all": reward.accuracy(scores[t.kind]), **reward.accuracy_by_grade(tests[t.kind], scores[t.kind])},
        "truth": reward.accuracy(scores["truth"]),
        "loss": metrics["loss"],
        "likelihood_weight": metrics.get("likelihood_weight"),
        "seconds": time.perf_counter() - begin,
    }


def pair_table(lab: Finished) -> list[tuple[str, int, float, float, float]]:
    """The report's Table 6 for this run: kind, comparisons (all rounds, training), and the means of turns, tokens in
    the dialogue before the answer, and tokens in an answer."""
    table = []
    for kind in KINDS:
        rows = draw(lab, kind, "train", 10**6, 0)
        some = rows[:400]
        asked, answers = (
            [len(ids) for ids in lab.tokenizer(texts)["input_ids"]]
            for texts in (
                [" ".join(m["content"] for m in row["prompt"]) for row in some],
                [row[side][0]["content"] for row in some for side in ("chosen", "rejected")],
            )
        )
        turns = [sum(m["role"] == "user" for m in row["prompt"]) for row in some]
        means = [sum(x) / len(x) for x in (turns, asked, answers)]
        table.append((kind, len(rows), means[0], means[1], means[2]))
    return table


def gate_quality(lab: Finished, n: int = 600, at: float = THRESHOLD) -> dict[str, Any]:
    """How well the safety model's probability tells unsafe answers from safe ones, by threshold, on held-out answers
    whose safety the annotators gave: `precision` and `recall` of "unsafe, because R_s is under the threshold"."""
    rows = [row for row in draw(lab, "safety", "test", n, 1) if row["safety"] in SAFE]
    scores = reward.pair_scores(lab.reward("reward-safety-v5"), lab.tokenizer, rows, lab.machine)
    answers = [
        (sigmoid(r), not safe)
        for row, pair in zip(rows, scores, strict=True)
        for r, safe in zip(pair, SAFE[row["safety"]], strict=True)
    ]
    curve = []
    for threshold in sorted({at, *(k / 20 for k in range(1, 20))}):
        precision = stats.rate([unsafe for p, unsafe in answers if p < threshold])
        recall = stats.rate([p < threshold for p, unsafe in answers if unsafe])
        curve.append({"threshold": threshold, "precision": precision, "recall": recall})
    return {
        "curve": curve,
        "answers": len(answers),
        "unsafe": sum(unsafe for _, unsafe in answers),
        "at": next(row for row in curve if row["threshold"] == at),
        "under": stats.rate([p < at for p, _ in answers]),
    }


def both_rewards(
    lab: Finished,
    conversations: Sequence[Sequence[dict]],
    answers: Sequence[str],
) -> tuple[list[float], list[float]]:
    """Helpfulness and safety of an answer to each conversation, before the sigmoid, by the run's last models."""
    h, s = (lab.score_answers(f"reward-{kind}-v5", conversations, answers) for kind in KINDS)
    return h, s


def conflict(lab: Finished, stage: str = "rlhf-v1", n: int = 240) -> list[dict[str, Any]]:
    """Both rewards of the run's own answers to held-out prompts, `n` helpful and borderline ones and all unsafe ones
    up to `n`, with what the oracle says of each: the report's Figure 32."""
    rows = lab.rows(stage, "answers.jsonl")
    picked = [r for kinds in (("helpful", "borderline"), ("unsafe",)) for r in rows if r["kind"] in kinds]
    harmless = [r for r in picked if r["kind"] != "unsafe"]
    picked = random.Random(0).sample(harmless, min(n, len(harmless))) + [r for r in picked if r["kind"] == "unsafe"][:n]
    h, s = both_rewards(lab, [r["messages"] for r in picked], [r["answer"] for r in picked])
    told = []
    for row, x, y in zip(picked, h, s, strict=True):
        v = lab.oracle.judge(prompts_by_id(lab)[row["prompt_id"]], row["answer"])
        words = (
            "complies with an unsafe prompt"
            if v.violation
            else "refuses a harmless prompt"
            if v.false_refusal
            else "unsafe prompt, harmless answer"
            if row["kind"] == "unsafe"
            else "right answer"
            if v.correct
            else "wrong answer"
        )
        told.append({"helpfulness": x, "safety": y, "verdict": words, "answer": row["answer"]})
    return told
