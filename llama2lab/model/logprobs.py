"""Log-probabilities of given tokens: what PPO's ratio, the KL and the likelihood head are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llama2lab.engine import distributed
from llama2lab.engine.bar import bar
from llama2lab.engine.device import Machine, on_device
from llama2lab.engine.errors import LabError
from llama2lab.engine.parallel import batches_of, in_parallel
from llama2lab.model.fused import token_nll
from llama2lab.model.generate import COLDEST
from llama2lab.model.network import Llama

# Sampling and scoring round differently (a cache, other shapes, in bf16 other casts). Rounding goes both ways, a
# sampler that cuts does not; docs/trials.md has what was measured of both.
ROUNDING = {"fp32": 3e-4, "bf16": 0.15}  # the most that the gap's root mean square may be
SAMPLING_KL = 0.003  # the most that `sampling_kl` may be, with three standard errors


def pad_right(sequences: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(batch, longest) ids padded on the right, and (batch,) lengths. With a causal model the padding needs no
    mask: no real token looks to its right."""
    lengths = torch.tensor([len(s) for s in sequences])
    width = int(lengths.max())
    return torch.tensor([list(s) + [pad] * (width - len(s)) for s in sequences]), lengths


def token_logprobs(model: Llama, tokens: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(token t | tokens before t) at every position: (batch, seq), 0 where not `wanted` and at position 0.

    Args:
        tokens: (batch, seq), padded on the right.
        wanted: (batch, seq) bool; logits are computed only for these. It may lie on the CPU while the tokens do not:
            nobody then waits for a GPU to say how many they are.
        temperature: the one the tokens were sampled at, so that the scored distribution is the sampled one; not 0.

    Raises:
        LabError: a temperature at which there is no distribution.
    """
    if not COLDEST <= temperature < math.inf:
        raise LabError(f"log-probabilities at temperature {temperature}; there are none but from {COLDEST:g} up")
    hidden = model.hidden(tokens)[:, :-1]  # (batch, seq - 1, dim)
    ask = tuple(on_device(at, tokens.device) for at in wanted[:, 1:].nonzero(as_tuple=True))  # rows and columns
    picked = -token_nll(hidden[ask], model.lm_head.weight, tokens[:, 1:][ask], temperature)  # (asked,)
    result = torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device)
    result[:, 1:][ask] = picked
    return result


def answer_loglikelihoods(
    model: Llama, encoded: Sequence[tuple[list[int], list[int]]], pad: int, machine: Machine, batch: int = 128
) -> list[float]:
    """Summed log-likelihood in nats of the masked tokens of each (ids, mask) pair."""
    return [tokens.sum().item() for tokens in answer_token_logprobs(model, encoded, pad, machine, batch)]


def answer_token_logprobs(
    model: Llama, encoded: Sequence[tuple[list[int], list[int]]], pad: int, machine: Machine, batch: int = 128
) -> list[Tensor]:
    """Log-likelihoods in nats of the masked tokens of each (ids, mask) pair, each (marked tokens,). Several
    processes share them out, and all get every result."""
    order = distributed.shared(sorted(range(len(encoded)), key=lambda i: len(encoded[i][0])))
    result: dict[int, Tensor] = {}
    with bar(len(order), "log-likelihoods", "text") as progress:

        def score(rows: Sequence[int]) -> None:
            tokens, _ = pad_right([encoded[i][0] for i in rows], pad)
            wanted, _ = pad_right([encoded[i][1] for i in rows], 0)
            marked = wanted.bool()
            with torch.inference_mode(), machine.autocast():
                logprobs = token_logprobs(model, on_device(tokens, machine.device), marked).cpu()
            for i, row, mask in zip(rows, logprobs, marked, strict=True):
                result[i] = row[mask]
            progress.update(len(rows))

        in_parallel(score, batches_of(order, batch, machine.device), machine.device)
    result = distributed.merged(result)
    return [result[i] for i in range(len(encoded))]


def sampling_gap(sampled: Tensor, scored: Tensor) -> dict[str, float]:
    """How far what the sampler said of its own tokens lies from what scoring says of them: `sampling_gap` and
    `sampling_gap_max`, the mean and the largest absolute difference of the log-probabilities, and `sampling_kl`, the
    mean difference, which is the KL of what was sampled from what is scored (k1). Nats a token.

    Args:
        sampled, scored: (tokens,) log-probabilities, `Generation.logprobs` and `token_logprobs`; at least one.
    """
    gap = sampled - scored
    return {
        "sampling_gap": gap.abs().mean().item(),
        "sampling_gap_max": gap.abs().max().item(),
        "sampling_kl": gap.mean().item(),
    }


def only_rounded(sampled: Tensor, scored: Tensor, precision: str) -> bool:
    """Whether the gap between sampling and scoring can be rounding in this precision; see `sampling_gap`."""
    gap = sampled - scored
    noise = 3 * gap.std().item() / len(gap) ** 0.5 if len(gap) > 1 else 0.0
    return gap.square().mean().sqrt().item() <= ROUNDING[precision] and gap.mean().item() <= SAMPLING_KL + noise
