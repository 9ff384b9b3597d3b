"""Evaluation on held-out prompts, by the oracle (Llama 2, sections 3.4 and 4.4).

Reward models judge training; only the oracle judges results. The answers are sampled at temperature 1 by default:
that is the policy itself, the distribution that RLHF optimises. (At a low temperature the differences between
stages shrink, since sampling then hides an unsure model's mistakes; greedy correctness is reported beside it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerFast

from llama2lab.engine import stats
from llama2lab.engine.device import Machine
from llama2lab.engine.settings import Count, Few, Split, Temperature, checked
from llama2lab.model.generate import generate
from llama2lab.model.network import Llama
from llama2lab.model.sample import sample_answers
from llama2lab.model.tokenizer import encode_text
from llama2lab.stages.gatt import sample_dialogues
from llama2lab.stages.reward import RewardModel, judged_well, score_answers
from llama2lab.town.items import Instruction, Prompt, Verdict
from llama2lab.town.prompts import KINDS

TURNS = (1, 2, 4, 6, 10, 20)
TIE = 0.05  # helpfulness closer than this is a tie


@checked
@dataclass(frozen=True)
class EvaluateSettings:
    helpful: Count = 900
    unsafe: Count = 500
    borderline: Count = 500
    temperature: Temperature = 1.0
    split: Split = "test"  # "dev" for choices: nothing may be chosen on "test"
    dialogues: Count = 48  # for Ghost Attention
    best_of: Few = 16
    best_of_prompts: Count = 160
    truth_pairs: Count = 400
    test_pairs: Count = 500  # on held-out prompts of each kind, over all rounds so far; all where these hold fewer


class Oracle(Protocol):
    """Whoever knows the truth; `town.oracle` in the miniature."""

    def judge(self, prompt: Prompt, answer: str) -> Verdict: ...

    def obeys(self, instruction: Instruction, answer: str) -> bool: ...


def judge_all(oracle: Oracle, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Verdict]:
    return [oracle.judge(p, a) for p, a in zip(prompts, answers, strict=True)]


def overall(verdict: Verdict, prompt: Prompt) -> float:
    """The true score that stages are compared by: safety first on unsafe prompts, helpfulness elsewhere."""
    return verdict.safety if prompt.kind == "unsafe" else verdict.helpfulness


def chat_metrics(prompts: Sequence[Prompt], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The figures of one chat stage from its verdicts on held-out prompts of all kinds. Wordings of one content are one
    group: the intervals are about further contents, not about further wordings of these. `broken_rate` is the share of
    answers, to prompts of all kinds, in which a sentence breaks a rule of the oracle's grammar."""
    of = {kind: [(p, v) for p, v in zip(prompts, verdicts, strict=True) if p.kind == kind] for kind in KINDS}
    helpful = of["helpful"]

    def rate(name: str, rows: Sequence[tuple[Prompt, Verdict]]) -> stats.Figure:
        return stats.rate([getattr(v, name) for _, v in rows], [p.content for p, _ in rows])

    def mean(name: str, rows: Sequence[tuple[Prompt, Verdict]]) -> stats.Figure:
        return stats.mean([getattr(v, name) for _, v in rows], [p.content for p, _ in rows])

    by_skill = {s: [(p, v) for p, v in helpful if p.skill == s] for s in sorted({p.skill for p, _ in helpful})}
    return {
        "helpfulness": mean("helpfulness", helpful),
        "correct": rate("correct", helpful),
        "broken_rate": stats.rate([v.fluent < 1 for v in verdicts], [p.content for p in prompts]),
        "violation_rate": rate("violation", of["unsafe"]),
        "false_refusal_rate": rate("false_refusal", helpful),
        "borderline_refusal_rate": rate("false_refusal", of["borderline"]),
        "borderline_correct": rate("correct", of["borderline"]),
        "safety": mean("safety", of["unsafe"]),
        "correct_single_turn": rate("correct", [(p, v) for p, v in helpful if len(p.messages) == 1]),
        "correct_multi_turn": rate("correct", [(p, v) for p, v in helpful if len(p.messages) > 1]),
        "correct_by_skill": {s: rate("correct", rows) for s, rows in by_skill.items()},
        "helpfulness_by_skill": {s: mean("helpfulness", rows) for s, rows in by_skill.items()},
    }


def win_tie_loss(prompts: Sequence[Prompt], verdicts: Sequence[Verdict], against: Sequence[Verdict]) -> dict[str, Any]:
    """Against another stage's answers to the same prompts, on helpful ones: `win_rate` counts a tie as half."""
    rows = [(p, v, w) for p, v, w in zip(prompts, verdicts, against, strict=True) if p.kind == "helpful"]
    gaps = [v.helpfulness - w.helpfulness for _, v, w in rows]
    points = [1.0 if g > TIE else 0.0 if g < -TIE else 0.5 for g in gaps]
    return {
        "win_rate_vs_sft": stats.mean(points, [p.content for p, _, _ in rows]),
        "wins_vs_sft": stats.rate([x == 1.0 for x in points]),
        "ties_vs_sft": stats.rate([x == 0.5 for x in points]),
        "losses_vs_sft": stats.rate([x == 0.0 for x in points]),
    }


def answer_prompts(
    model: Llama,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    temperature: float,
    seed: int,
    precision: str,
    what: str = "evaluating",
) -> list[str]:
    """One answer to each prompt."""
    answers = sample_answers(
        model,
        tokenizer,
        [p.messages for p in prompts],
        temperature=temperature,
        seed=seed,
        precision=precision,
        what=what,
    )
    return [a[0] for a in answers]


def known_facts(
    model: Llama, tokenizer: PreTrainedTokenizerFast, probes: Sequence[tuple[str, str, Sequence[str]]], precision: str
) -> stats.Figure:
    """Share of the world's facts that the base model completes rightly, greedily, from the words before them."""
    prompts = [[tokenizer.bos_token_id, *encode_text(tokenizer, prefix)] for prefix, _, _ in probes]
    longest = max(len(encode_text(tokenizer, " " + value)) for _, value, _ in probes)
    written = generate(
        model,
        prompts,
        longest + 2,
        temperature=0.0,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        precision=precision,
    )
    said = [str(tokenizer.decode(g.tokens, skip_special_tokens=True)).strip().lower() for g in written]
    right = []
    for text, (_, value, _) in zip(said, probes, strict=True):
        rest = text[len(value) :]
        right.append(text.startswith(value.lower()) and not rest[:1].isalnum())
    return stats.rate(right)


def truth_accuracy(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[Sequence[dict], str, str]],
    machine: Machine,
) -> stats.Figure:
    """Share of held-out pairs that differ only in whether the fact is right, in which the right one scores higher; a
    tie counts as half."""
    conversations = [list(m) for m, _, _ in pairs]
    right = score_answers(model, tokenizer, conversations, [r for _, r, _ in pairs], machine)
    wrong = score_answers(model, tokenizer, conversations, [w for _, _, w in pairs], machine)
    return stats.rate([judged_well(r, w) for r, w in zip(right, wrong, strict=True)])


def retention(
    oracle: Oracle,
    model: Llama,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Sequence[str]],
    instructions: Sequence[Instruction],
    seed: int,
    precision: str,
    temperature: float = 1.0,
) -> tuple[dict[str, stats.Figure], list[list[str]]]:
    """The report's Table 30: how many of the answers at each turn still obey an instruction that was given once,
    before the first question. Also returns the dialogues' answers."""
    answers = sample_dialogues(
        model,
        tokenizer,
        questions,
        [i.text for i in instructions],
        everywhere=False,
        temperature=temperature,
        seed=seed,
        precision=precision,
    )
    turns = [t for t in TURNS if t <= len(questions[0])]
    return {
        str(t): stats.rate([oracle.obeys(i, a[t - 1]) for i, a in zip(instructions, answers, strict=True)])
        for t in turns
    }, answers


def true_best_of(
    oracle: Oracle,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]],
    ks: Sequence[int] = (1, 2, 4, 8, 16),
) -> list[dict[str, Any]]:
    """For each K: the true helpfulness of the answer that the reward prefers among the first K (`pick`), whether it
    is correct (`correct`), and the best there was by the oracle (`ceiling`)."""
    judged = [[oracle.judge(p, a) for a in row] for p, row in zip(prompts, answers, strict=True)]
    result = []
    for k in (k for k in ks if k <= len(answers[0])):
        picks = [row[max(range(k), key=s.__getitem__)] for row, s in zip(judged, scores, strict=True)]
        result.append(
            {
                "k": k,
                "pick": stats.mean([v.helpfulness for v in picks]),
                "correct": stats.rate([v.correct for v in picks]),
                "ceiling": stats.mean([max(v.helpfulness for v in row[:k]) for row in judged]),
            }
        )
    return result
