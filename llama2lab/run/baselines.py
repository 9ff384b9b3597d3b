"""What a reward model must be held against: judges of the same pairs that learnt nothing from preferences.

- "longer": the answer with more characters;
- "likelihood": the answer that the untouched checkpoint finds likelier, all of it (the sum of the log-probabilities of
  its tokens with the closing `</s>`), and by the token (their mean);
- "random": the untouched checkpoint with random heads at the last token, drawn as reward models begin.

All judge by one rule (`reward.judged_well`): 1 where the chosen answer has more, a half where both have alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llama2lab.engine import stats
from llama2lab.engine.bar import bar
from llama2lab.engine.device import Machine
from llama2lab.engine.parallel import batches_of, in_parallel
from llama2lab.engine.stats import Figure
from llama2lab.model.fused import token_nll
from llama2lab.model.logprobs import pad_right
from llama2lab.model.network import Llama
from llama2lab.stages.reward import Encoded, encode_answers, judged_well, last_token_scores

HEADS = 8  # random heads
ALIKE = 0.1  # lengths that differ by less than this share of the longer are alike
Points = list[float]  # one a pair: 1 right, 0.5 both alike, 0 wrong


@dataclass(frozen=True)
class Reading:
    """What the untouched checkpoint says of one answer."""

    total: float  # log-likelihood in nats of all its tokens
    mean: float  # of one token
    heads: tuple[float, ...]  # scores of random heads


def random_heads(dim: int, n: int = HEADS) -> Tensor:
    """(n, dim): heads as reward models begin with them (`reward.RewardModel`)."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, dim, generator=draw) / math.sqrt(dim + 1)


def read_answers(
    model: Llama, encoded: Sequence[Encoded], pad: int, machine: Machine, batch: int = 32
) -> list[Reading]:
    """A `Reading` of each (ids, mask), in one pass over the texts."""
    model.eval()
    heads = random_heads(model.config.dim).to(machine.device)  # (heads, dim)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))
    result = [Reading(0.0, 0.0, ())] * len(encoded)
    with bar(len(order), "baselines", "answer") as progress:

        def read(rows: Sequence[int]) -> None:
            tokens, lengths = pad_right([encoded[i][0] for i in rows], pad)
            wanted = pad_right([encoded[i][1] for i in rows], 0)[0].bool()[:, 1:]
            tokens, lengths, ask = (x.to(machine.device) for x in (tokens, lengths, wanted))
            with torch.inference_mode(), machine.autocast():
                hidden = model.hidden(tokens)  # (batch, seq, dim)
                nll = token_nll(hidden[:, :-1][ask], model.lm_head.weight, tokens[:, 1:][ask])  # (asked,)
                scores = torch.stack([last_token_scores(hidden, lengths, head) for head in heads], 1)  # (batch, heads)
            logprobs = torch.zeros(ask.shape, device=machine.device)
            logprobs[ask] = -nll.float()
            counts = ask.sum(1).clamp(min=1).tolist()
            for i, total, count, of_heads in zip(rows, logprobs.sum(1).tolist(), counts, scores.tolist(), strict=True):
                result[i] = Reading(total, total / count, tuple(of_heads))
            progress.update(len(rows))

        in_parallel(read, batches_of(order, batch, machine.device), machine.device)
    return result


def read_pairs(
    model: Llama, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Mapping[str, Any]], machine: Machine
) -> list[tuple[Reading, Reading]]:
    """What the untouched checkpoint says of the (chosen, rejected) answer of each preference row."""
    said = [row[side][0]["content"] for side in ("chosen", "rejected") for row in rows]
    encoded = encode_answers(tokenizer, [row["prompt"] for row in rows] * 2, said)
    both = read_answers(model, encoded, tokenizer.pad_token_id, machine)
    return list(zip(both[: len(rows)], both[len(rows) :], strict=True))


def judged(pairs: Sequence[tuple[float, float]]) -> Points:
    """One point a (chosen, rejected) pair of whatever a judge goes by."""
    return [judged_well(c, r) for c, r in pairs]


def by_reading(readings: Sequence[tuple[Reading, Reading]]) -> dict[str, Points | list[Points]]:
    """Points of the judges that need no training: "likelihood_sum", "likelihood_mean" and, for each head, "random"."""
    return {
        "likelihood_sum": judged([(c.total, r.total) for c, r in readings]),
        "likelihood_mean": judged([(c.mean, r.mean) for c, r in readings]),
        "random": [judged([(c.heads[h], r.heads[h]) for c, r in readings]) for h in range(len(readings[0][0].heads))]
        if readings
        else [],
    }


def lengths_of(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Characters of the (chosen, rejected) answer of each row."""
    return [(len(row["chosen"][0]["content"]), len(row["rejected"][0]["content"])) for row in rows]


def alike(lengths: Sequence[tuple[int, int]]) -> list[int]:
    """The places of the pairs whose lengths differ by less than a tenth of the longer one."""
    return [i for i, (c, r) in enumerate(lengths) if abs(c - r) < ALIKE * max(c, r)]


def over_heads(points: Sequence[Points]) -> Figure:
    """The mean over random heads: n pairs, and an interval no narrower than Student's over the heads."""
    of_pairs = stats.mean([sum(column) / len(points) for column in zip(*points, strict=True)])
    of_heads = stats.mean([sum(row) / len(row) for row in points if row])
    ends = (min(of_pairs["low"], of_heads["low"]), max(of_pairs["high"], of_heads["high"]))
    return {"mean": of_pairs["mean"], "low": max(0.0, ends[0]), "high": min(1.0, ends[1]), "n": of_pairs["n"]}


def held_against(
    model: Sequence[tuple[float, float]],
    rows: Sequence[Mapping[str, Any]],
    readings: Sequence[tuple[Reading, Reading]] | None,
) -> dict[str, Any]:
    """A reward model's figures on preference rows beside the baselines'.

    Args:
        model: its (chosen, rejected) scores of each row.
        readings: `read_pairs` of the same rows; None: the longer answer alone.

    Returns:
        {"baselines": {judge: figure}, "less_longer": the model less the longer answer, pair by pair, "equal_length":
        the same figures, with "model" and "less_longer" among them, of pairs of like lengths; n is 0 without any}.
    """
    lengths, points = lengths_of(rows), judged(model)
    others: dict[str, Any] = {"longer": judged(lengths), **(by_reading(readings) if readings is not None else {})}

    def figures(at: Sequence[int]) -> dict[str, Any]:
        found: dict[str, Any] = {"model": stats.rate([points[i] for i in at])}
        for name, of in others.items():
            if name == "random":
                found[name] = over_heads([[head[i] for i in at] for head in of]) if at else stats.rate([])
            else:
                found[name] = stats.rate([of[i] for i in at])
        found["less_longer"] = stats.paired_bootstrap([points[i] for i in at], [others["longer"][i] for i in at])
        return found

    whole, same = figures(range(len(rows))), figures(alike(lengths))
    less = whole.pop("less_longer")
    whole.pop("model")
    return {"baselines": whole, "less_longer": less, "equal_length": same}


def truth_by_likelihood(
    model: Llama, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[Any, str, str]], machine: Machine
) -> dict[str, Figure]:
    """Share of pairs (messages, right answer, wrong answer) whose right answer the untouched checkpoint finds likelier,
    as a whole and by the token: what it knows, and so the most that a reward model can be hoped to keep."""
    rows = [
        {"prompt": list(m), "chosen": [{"content": right}], "rejected": [{"content": wrong}]}
        for m, right, wrong in pairs
    ]
    points = by_reading(read_pairs(model, tokenizer, rows, machine))
    return {name: stats.rate(points[name]) for name in ("likelihood_sum", "likelihood_mean")}  # type: ignore[arg-type]
