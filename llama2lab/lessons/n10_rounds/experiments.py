"""Five rounds of RLHF (Llama 2, sections 3.2.1, 3.2.3 and 3.4.1): preferences that grow stale, the best answers of all
rounds, and the ceiling of the demonstrations."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

from llama2lab.engine import stats
from llama2lab.engine.optim import Optim
from llama2lab.lab.finished import Finished
from llama2lab.lab.seeds import less
from llama2lab.lessons.n07_rejection.experiments import sampled, score_rows
from llama2lab.report.summary import short_name
from llama2lab.stages import evaluate, reward
from llama2lab.stages.rounds import ROUNDS
from llama2lab.stages.sft import SFTSettings, sft
from llama2lab.town.corpus import pretraining_corpus
from llama2lab.town.demonstrations import answer_for, clean_style
from llama2lab.town.items import Prompt

OLD, NEW = "reward-helpfulness-v1", "reward-helpfulness-v5"
FORGOTTEN = "stories"  # the skill that the last round does not ask for, in `last_round_only`


# ---- live, in notebook 10 ------------------------------------------------------------------------------------------


def old_reward_on_new_pairs(lab: Finished, pairs: int = 250) -> dict[str, Any]:
    """Claim 15: the first and the last reward model on each round's pairs of held-out prompts, which that round's
    policies wrote. `gap`: new less old on the same pairs. About 8 s."""
    rounds = []
    for number in ROUNDS:
        rows = lab.rows(f"preferences-v{number}", "helpfulness.test.jsonl")[:pairs]
        right = {}
        for name, stage in (("old", OLD), ("new", NEW)):
            scores = reward.pair_scores(lab.reward(stage), lab.tokenizer, rows, lab.machine)
            right[name] = [reward.judged_well(chosen, rejected) for chosen, rejected in scores]
        gap = stats.mean([b - a for a, b in zip(right["old"], right["new"], strict=True)])
        clear = sum(row["grade"] == "significantly" for row in rows) / max(1, len(rows))
        both = {name: stats.rate(judged) for name, judged in right.items()}
        rounds.append({"round": number, **both, "gap": gap, "clear": clear})
    return {"rounds": rounds}


def by_old_and_new(
    lab: Finished, policy: str, prompts: int, k: int
) -> tuple[list[Prompt], list[list[str]], dict[str, list[list[float]]]]:
    """Held-out prompts, K answers of a policy to each, and their scores by the first and by the last reward model."""
    asked = lab.prompts(helpful=prompts, seed=41)
    answers = lab.sample_answers(policy, [p.messages for p in asked], k=k, seed=4, what=f"best of {k}")
    judges = {"old": OLD, "new": NEW}
    return asked, answers, {name: score_rows(lab, lab.reward(stage), asked, answers) for name, stage in judges.items()}


def optimise_against_old(lab: Finished, policy: str = "rlhf-v4", prompts: int = 80, k: int = 16) -> dict[str, Any]:
    """Claim 15: best of K answers of a late policy by the first and by the last reward model, judged by the oracle.
    About 8 s."""
    asked, answers, scores = by_old_and_new(lab, policy, prompts, k)
    best = {name: evaluate.true_best_of(lab.oracle, asked, answers, by) for name, by in scores.items()}
    return {"policy": policy, "k": k, **best}


def ceiling(lab: Finished, prompts: int = 120, k: int = 16) -> dict[str, Any]:
    """Claim 19: the writers of the demonstrations, SFT, V5 and the best of K of V5 by its reward model, on the same
    held-out prompts. `all`: true helpfulness; `right`: of right answers only, which is how well they are written.
    `gap`: less the demonstrations, prompt by prompt. About 10 s."""
    asked = lab.prompts(helpful=prompts, seed=51)
    rng = random.Random("ceiling")
    written = {"demonstrations": [answer_for(lab.town, p, clean_style(p, rng), rng) for p in asked]}
    for stage in ("sft", "rlhf-v5"):
        model, precision = lab.model(stage), lab.machine.precision
        written[short_name(stage)] = evaluate.answer_prompts(model, lab.tokenizer, asked, 1.0, 5, precision)
    best = sampled(lab, "rlhf-v5", asked, k, 1.0, 6)
    written[f"V5, best of {k}"] = [
        row[max(range(k), key=scores.__getitem__)] for row, scores in zip(best.answers, best.scores, strict=True)
    ]
    contents, result = [p.content for p in asked], {}
    first: list[evaluate.Verdict] = []
    for name, answers in written.items():  # the demonstrations come first
        verdicts = evaluate.judge_all(lab.oracle, asked, answers)
        first = first or verdicts
        right = [(v.helpfulness, c) for v, c in zip(verdicts, contents, strict=True) if v.correct]
        gaps = [v.helpfulness - w.helpfulness for v, w in zip(verdicts, first, strict=True)]
        result[name] = {
            "all": stats.mean([v.helpfulness for v in verdicts], contents),
            "right": stats.mean([worth for worth, _ in right], [content for _, content in right]),
            "correct": stats.rate([v.correct for v in verdicts], contents),
            "gap": stats.mean(gaps, contents),
            "example": {"question": asked[0].question, "answer": answers[0], "truth": verdicts[0].helpfulness},
        }
    return result


# ---- measured with the full run ------------------------------------------------------------------------------------


def stale_rewards(lab: Finished, policy: str = "rlhf-v4", prompts: int = 400, k: int = 16) -> dict[str, Any]:
    """Claim 15 on all there is: every held-out pair of every round, and best of K of a late policy by the first and by
    the last reward model, prompt by prompt. `claims`: the last less the first. About 60 s on two cores."""
    by_round = old_reward_on_new_pairs(lab, 10**6)["rounds"]
    asked, answers, scores = by_old_and_new(lab, policy, prompts, k)
    worth: dict[str, list[float]] = {}
    for name, by in scores.items():
        picks = [row[max(range(k), key=s.__getitem__)] for row, s in zip(answers, by, strict=True)]
        worth[name] = [v.helpfulness for v in evaluate.judge_all(lab.oracle, asked, picks)]
    gap = [new - old for old, new in zip(worth["old"], worth["new"], strict=True)]
    contents, last = [p.content for p in asked], by_round[-1]
    return {
        "rounds": by_round,
        "picks": {name: stats.mean(values, contents) for name, values in worth.items()},
        "claims": {
            f"accuracy on round {last['round']}'s pairs: last reward model less first": last["gap"],
            f"true helpfulness of the best of {k} of {short_name(policy)}: last reward model less first": stats.mean(
                gap, contents
            ),
        },
    }


def last_round_only(
    lab: Finished, rows: int = 1200, helpful: int = 900, words: int = 60_000, seeds: int = 3
) -> dict[str, Any]:
    """Claim 17: keep the best of all earlier rounds, or abilities are lost. The base model is fine-tuned on best
    answers alone (no SFT examples, which would protect it), for the same number of steps: of the last round (V4's); of
    all four; of a last round that does not ask for stories; and of all four of which only the last leaves them out.
    `choices`: true helpfulness over all and by skill; `gaps`: all rounds less the last one. Each prompt's score is the
    mean over the seeds; `each` are the seeds. The report's V3 saw only the last round and rhymed worse (section 3.2.3).
    About 200 s on two cores."""
    best = [lab.rows(f"samples-v{v}", "best.jsonl") for v in ROUNDS[:4]]
    narrow = [row for row in best[-1] if row["skill"] != FORGOTTEN]
    documents = pretraining_corpus(lab.town, words, 1)
    tested = lab.prompts(helpful=helpful, seed=61)
    choices = {
        "last round": best[-1],
        "all rounds": [row for part in best for row in part],
        f"last round, without {FORGOTTEN}": narrow,
        f"all rounds, the last without {FORGOTTEN}": [row for part in (*best[:-1], narrow) for row in part],
    }
    settings = SFTSettings(epochs=2.0, batch_tokens=1024, optim=Optim(lr=1e-3, warmup=0.05))
    each = min(rows, *map(len, choices.values()))

    def tuned(name: str, seed: int) -> list[float]:
        chosen = random.Random(seed).sample(choices[name], each)
        model = copy.deepcopy(lab.model("base"))
        sft(model, lab.tokenizer, chosen, settings, seed, lab.machine, what=name, documents=documents)
        answers = evaluate.answer_prompts(model, lab.tokenizer, tested, 1.0, 7, lab.machine.precision)
        return [v.helpfulness for v in evaluate.judge_all(lab.oracle, tested, answers)]

    scores = {name: [tuned(name, seed) for seed in range(seeds)] for name in choices}
    last, every, last_narrow, every_narrow = scores
    gaps: dict[str, stats.Figure] = {}
    narrowed = f"the last without {FORGOTTEN}"
    for which, alone, many in (("as the rounds were", last, every), (narrowed, last_narrow, every_narrow)):
        found = by_skill(less(scores[many], scores[alone]), tested)
        for skill in ("all", FORGOTTEN):
            if skill in found:
                gaps[f"all rounds less the last one ({which}), {skill}"] = found[skill]
    return {"rows": each, "choices": {name: by_skill(s, tested) for name, s in scores.items()}, "gaps": gaps}


def by_skill(scores: Sequence[Sequence[float]], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Figures over all prompts and by skill; `scores` has one list of a score a prompt for each seed."""
    result = {}
    for skill in ("all", *sorted({p.skill for p in prompts})):
        at = [i for i, p in enumerate(prompts) if skill in ("all", p.skill)]
        mean = stats.mean([sum(s[i] for s in scores) / len(scores) for i in at], [prompts[i].content for i in at])
        result[skill] = {**mean, "each": [sum(s[i] for i in at) / len(at) for s in scores]}
    return result


EXPERIMENTS = (stale_rewards, last_round_only, ceiling)
