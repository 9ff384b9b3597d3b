"""Evaluation: claim 25 (RLHF narrows factual answers more than creative ones), and who may judge (Llama 2, sections 3.4
and 5.1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from llama2lab.engine import stats
from llama2lab.lab.finished import Finished
from llama2lab.report.summary import difference
from llama2lab.stages.evaluate import TIE
from llama2lab.town.prompts import make_prompts

# ---- claim 25 ------------------------------------------------------------------------------------------------------


def bleu(words: Sequence[str], others: Sequence[Sequence[str]], longest: int = 4) -> float:
    """BLEU (Papineni et al. 2002) of one text against others: the geometric mean of the shares of its 1- to 4-grams
    that one of the others holds (each counted as often as in the other that has most of it), times a penalty for being
    shorter than the other that is nearest in length. One is added to both counts of 2-grams and longer, so that a
    missing 4-gram does not make it 0 (Lin and Och 2004)."""
    if not words or not others:
        return 0.0
    logs = []
    for n in range(1, longest + 1):
        mine = ngrams(words, n)
        best: Counter[tuple[str, ...]] = Counter()
        for other in others:
            best |= ngrams(other, n)
        met, all_of = sum((mine & best).values()), sum(mine.values())
        if n == 1 and met == 0:
            return 0.0
        logs.append(math.log((met + (n > 1)) / (all_of + (n > 1))))
    nearest = min((abs(len(o) - len(words)), len(o)) for o in others)[1]
    return math.exp(sum(logs) / longest + min(0.0, 1 - nearest / len(words)))


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def self_bleu(texts: Sequence[str], longest: int = 4) -> float:
    """Self-BLEU (Zhu et al. 2018): the mean BLEU of each text against all others: 1 where all say the same, low where
    they differ. Words in lower case, punctuation apart."""
    split = [
        "".join(c if c.isalnum() or c.isspace() or c == "'" else f" {c} " for c in t.lower()).split() for t in texts
    ]
    return sum(bleu(s, split[:i] + split[i + 1 :], longest) for i, s in enumerate(split)) / max(1, len(split))


def diversity(
    lab: Finished,
    stages: Sequence[str] = ("sft", "rlhf-v5"),
    prompts: int = 8,
    samples: int = 20,
    temperatures: Sequence[float] = (0.3, 0.6, 0.9, 1.2, 1.5),
    seed: int = 0,
) -> dict[str, Any]:
    """Claim 25, figure 21: Self-BLEU of many answers to one prompt by temperature, for prompts that have one true
    answer and for stories: {stage: {"factual": [figures by temperature], "creative": [...]}}. The report: ten prompts
    of each, 25 samples, temperatures 0.1 to 1.5. About 15 seconds."""
    asked = {
        "factual": make_prompts(lab.town, "test", prompts, seed, skills=("facts", "two_step", "arithmetic")),
        "creative": make_prompts(lab.town, "test", prompts, seed, skills=("stories",)),
    }
    both = [p for group in asked.values() for p in group]
    found: dict[str, Any] = {"temperatures": list(temperatures)}
    for stage in stages:
        by_kind: dict[str, list[stats.Figure]] = {kind: [] for kind in asked}
        for t in temperatures:
            answers = lab.sample_answers(stage, [p.messages for p in both], k=samples, temperature=t, seed=seed)
            values = [self_bleu(row) for row in answers]
            by_kind["factual"].append(stats.mean(values[:prompts]))
            by_kind["creative"].append(stats.mean(values[prompts:]))
        found[stage] = by_kind
    return found


def narrowing(lab: Finished, prompts: int = 80, samples: int = 16, temperature: float = 1.0) -> dict[str, Any]:
    """Claim 25 at one temperature on ten times the report's prompts: how much more alike V5's answers to one prompt are
    than SFT's, by Self-BLEU, to factual prompts and to those for stories; and the difference of the two. About 60
    seconds."""
    found: dict[str, Any] = {}
    for kind, skills in (("factual", ("facts", "two_step", "arithmetic")), ("creative", ("stories",))):
        asked = make_prompts(lab.town, "test", prompts, 0, skills=skills)
        chats, values = [p.messages for p in asked], []
        for stage in ("sft", "rlhf-v5"):
            answers = lab.sample_answers(stage, chats, k=samples, temperature=temperature, seed=0)
            values.append([self_bleu(row) for row in answers])
        (before, after), groups = values, [p.content for p in asked]
        found[kind] = {
            "sft": stats.mean(before, groups),
            "rlhf-v5": stats.mean(after, groups),
            "rise": stats.mean([b - a for a, b in zip(before, after, strict=True)], groups),
        }
    words = "rise of Self-BLEU from SFT to V5: factual prompts less creative ones"
    return {**found, "claims": {words: difference(found["factual"]["rise"], found["creative"]["rise"])}}


# ---- judges (sections 3.4 and 4.3) ---------------------------------------------------------------------------------


def judges(lab: Finished, stage: str = "rlhf-v5", against: str = "sft", n: int = 300) -> dict[str, Any]:
    """The same answers by both judges: the share of wins (a tie is half) of one stage over another by the oracle and by
    the helpfulness reward model, and how often the two judges agree on a pair. About 5 seconds."""
    pairs = [(a, b) for a, b in lab.answers(stage, against) if a["kind"] == "helpful"][:n]
    gaps = [a["score"] - b["score"] for a, b in pairs]
    scores = [
        lab.score_answers("reward-helpfulness-v5", [r["messages"] for r in rows], [r["answer"] for r in rows])
        for rows in zip(*pairs, strict=True)
    ]
    seen = [x - y for x, y in zip(*scores, strict=True)]
    oracle = [0.5 if abs(gap) <= TIE else float(gap > 0) for gap in gaps]
    model = [0.5 if gap == 0 else float(gap > 0) for gap in seen]
    agree = [o == r for o, r in zip(oracle, model, strict=True) if o != 0.5 and r != 0.5]
    return {"oracle": stats.mean(oracle), "reward": stats.mean(model), "agree": stats.rate(agree)}


EXPERIMENTS = (narrowing,)
