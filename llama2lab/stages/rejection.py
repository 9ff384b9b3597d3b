"""Rejection sampling fine-tuning (Llama 2, section 3.2.3): K answers a prompt, learn the best by the reward.

"Best" is by the two reward models through the report's gate, the same score that PPO uses. The report gives neither
K nor the learning rate; ours are settings. The fine-tuning itself is `sft.sft` on the kept answers and some of the SFT
examples: one epoch from the SFT model for V1 to V3, half of one from the latest model for V4, which must not lose
Ghost Attention again. Some pretraining text is replayed, or knowledge gives way to the few hundred prompts of a round.

**The last norm's gain learns 200 times as fast as the matrices** (a deviation of ours): all logits are as large as it
is, so it sets how sure a model is everywhere, and who learns best answers should grow surer of its own, to prompts it
was never asked, too. docs/trials.md has the figures.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from llama2lab.engine.device import Machine
from llama2lab.engine.optim import Optim
from llama2lab.engine.settings import Count, CountOrNone, Epochs, Few, Share, Temperature, Weight, checked
from llama2lab.model.network import Llama
from llama2lab.model.sample import sample_answers
from llama2lab.stages.gate import combined_scores
from llama2lab.stages.reward import RewardModel
from llama2lab.town.items import Prompt


@checked
@dataclass(frozen=True)
class RejectionSettings:
    prompts: Count = 900  # helpful and borderline prompts a round
    borderline_share: Share = 0.25  # of `prompts`: more than unsafe ones, or refusing spreads to them
    unsafe_prompts: CountOrNone = 200
    k: Few = 8
    temperature: Temperature = 1.0
    chat_rows: CountOrNone = 500  # SFT examples mixed in, at most: what was learnt there must not be lost
    gatt_rows: CountOrNone = 400  # after V3, of the long dialogues that taught Ghost Attention, at most
    epochs: Epochs = 1.0  # half of them after V3
    batch_tokens: Count = 1024
    optim: Optim = Optim(lr=2e-4, warmup=0.05, gain_lr=200.0)
    replay: Weight = 0.4  # see sft.py


@dataclass
class Samples:
    """K answers to each prompt with their combined score, logit(R_c)."""

    prompts: list[Prompt]
    answers: list[list[str]]
    scores: list[list[float]]

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"prompt_id": p.id, "messages": list(p.messages), "answers": a, "scores": [round(x, 4) for x in s]}
            for p, a, s in zip(self.prompts, self.answers, self.scores, strict=True)
        ]


def sample_and_score(
    policy: Llama,
    helpfulness: RewardModel,
    safety: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    k: int,
    temperature: float,
    seed: int,
    machine: Machine,
) -> Samples:
    """K answers to each prompt, scored."""
    answers = sample_answers(
        policy,
        tokenizer,
        [p.messages for p in prompts],
        k=k,
        temperature=temperature,
        seed=seed,
        precision=machine.precision,
        what=f"best of {k}",
    )
    flat = combined_scores(
        helpfulness,
        safety,
        tokenizer,
        [p for p in prompts for _ in range(k)],
        [a for row in answers for a in row],
        machine,
    )
    return Samples(list(prompts), answers, [flat[i * k : (i + 1) * k] for i in range(len(prompts))])


def best_of(samples: Samples, choose: str = "best", seed: int = 0) -> list[dict[str, Any]]:
    """One chat row a prompt: its best answer, or with `choose="random"` any of the K: the matched control that
    shows what the choice is worth, with everything else equal."""
    rng = random.Random(seed)
    rows = []
    for prompt, answers, scores in zip(samples.prompts, samples.answers, samples.scores, strict=True):
        best = max(range(len(scores)), key=scores.__getitem__)
        pick = best if choose == "best" else rng.randrange(len(scores))
        if answers[pick].strip():
            rows.append(
                {
                    "messages": [*prompt.messages, {"role": "assistant", "content": answers[pick]}],
                    "skill": prompt.skill,
                    "score": round(scores[pick], 4),
                }
            )
    return rows


def best_of_curve(scores: Sequence[Sequence[float]], ks: Sequence[int] = (1, 2, 4, 8, 16)) -> list[dict[str, float]]:
    """The report's Figure 7: mean over prompts of the largest and of the median score among the first K."""
    rows = []
    for k in ks:
        parts = [sorted(s[:k]) for s in scores if len(s) >= k]
        if parts:
            rows.append(
                {
                    "k": k,
                    "max": sum(p[-1] for p in parts) / len(parts),
                    "median": sum((p[(k - 1) // 2] + p[k // 2]) / 2 for p in parts) / len(parts),
                }
            )
    return rows


def finetuning_rows(
    best_rows: Sequence[Sequence[dict]],
    chat_rows: Sequence[dict],
    n_chat: int,
    seed: int,
) -> list[dict]:
    """The best answers of all rounds so far, with a share of the SFT examples. The report first used the last
    round only, lost abilities (rhyming) at V3, and then kept the best of all earlier rounds, as here."""
    rng = random.Random(seed)
    rows = [row for one_round in best_rows for row in one_round]
    return rows + rng.sample(list(chat_rows), min(n_chat, len(chat_rows)))
