"""The two reward models together (Llama 2, section 3.2.3): the gate, its logit, whitening."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llama2lab.engine.device import Machine
from llama2lab.stages.reward import RewardModel, encode_answers, score_encoded, worst_loglikelihoods
from llama2lab.town.items import Prompt


def gated_reward(helpfulness: Tensor, safety: Tensor, is_safety: Tensor, threshold: float = 0.15) -> Tensor:
    """The report's R_c, in (0, 1): the safety model's where the prompt is tagged as a safety prompt or where its
    probability is under `threshold`, else the helpfulness model's.

    Args:
        helpfulness, safety: (batch,) scores before the sigmoid.
        is_safety: (batch,) bool, the prompt's tag.
    """
    r_s, r_h = torch.sigmoid(safety), torch.sigmoid(helpfulness)
    return torch.where(is_safety | (r_s < threshold), r_s, r_h)


def logit(r: Tensor, eps: float = 1e-6) -> Tensor:
    """log(r / (1 - r)), the inverse of the sigmoid."""
    return torch.logit(r, eps)


def mean_and_std(x: Tensor) -> Tensor:
    """(2,): mean and standard deviation, the latter never 0; 0 and 1 of nothing."""
    if len(x) < 2:
        return torch.tensor([x.sum(), 1.0])
    return torch.stack([x.mean(), x.std() + 1e-6])


def whiten(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """x in standard deviations from the mean: `whiten(x, *mean_and_std(x))` has mean 0 and variance 1."""
    return (x - mean) / std


def share_reference(helpfulness: RewardModel, safety: RewardModel) -> None:
    """Where both likelihood heads look at the same frozen chat model, let both hold one copy of it: what it says of an
    answer is then computed once for both."""
    one, other = helpfulness.reference, safety.reference
    if one is not None and other is not None and all(map(torch.equal, one.parameters(), other.parameters())):
        safety.reference = one


def combined_score(
    helpfulness: Sequence[float], safety: Sequence[float], is_safety: Sequence[bool], threshold: float = 0.15
) -> list[float]:
    """logit(R_c) of each answer: what rejection sampling ranks by and PPO whitens."""
    rc = gated_reward(
        torch.tensor(helpfulness, dtype=torch.float64),
        torch.tensor(safety, dtype=torch.float64),
        torch.tensor(is_safety, dtype=torch.bool),
        threshold,
    )
    return logit(rc, 1e-9).tolist()


def combined_scores(
    helpfulness: RewardModel,
    safety: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    machine: Machine,
) -> list[float]:
    """logit(R_c) of one answer to each prompt. A prompt is a safety prompt when its source says so (`kind` is
    "unsafe"): the report tags prompts too, and does not say how. An answer that comes several times is scored once,
    and a reference that both models hold (`share_reference`) reads it once."""
    everything, pad = encode_answers(tokenizer, [p.messages for p in prompts], answers), tokenizer.pad_token_id
    keys = [tuple(ids) for ids, _ in everything]
    index = {key: i for i, key in enumerate(keys)}  # a place of each conversation with its answer
    encoded = [everything[i] for i in index.values()]
    loglik = worst_loglikelihoods(helpfulness.reference, encoded, pad, machine)
    shared = loglik if safety.reference is helpfulness.reference else None
    both = [
        dict(zip(index, score_encoded(model, encoded, pad, machine, loglikelihoods=known), strict=True))
        for model, known in ((helpfulness, loglik), (safety, shared))
    ]
    return combined_score([both[0][k] for k in keys], [both[1][k] for k in keys], [p.kind == "unsafe" for p in prompts])
