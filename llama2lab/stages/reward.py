"""Reward models (Llama 2, section 3.2.2): one for helpfulness, one for safety.

Each starts from the chat model, whose language-model head is replaced by one linear output per answer, read at the
answer's last token. The loss is -log sigmoid(r_chosen - r_rejected - m(grade)) (equation 2); the safety model has
an auxiliary loss that teaches it safe from unsafe (the report gives no formula; binary cross-entropy on the
annotators' safety label is our reading).

**A deviation of ours, marked wherever it is used: head = "likelihood".** A last-token head this small hardly sees
whether an answer is true: the same sentence with the right and the wrong fact gets nearly the same score. Yet the
chat model knows: the right answer is the likelier one, and the language-model head, which the recipe throws away,
is what computes that. The likelihood head keeps one number of it:

    r(x, y) = linear(last hidden state) + a * (mean of log p_chat over the three least likely tokens of y)

with the chat model frozen and `a` learnt from 0 by the same ranking loss. head = "linear" is the report's. Why three
tokens: an answer is as wrong as its worst words, and neither its length nor a friendly sentence more may hide them
(docs/trials.md compares them with sum, mean and others).
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, FiniteFloat
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from llama2lab.engine import distributed, stats
from llama2lab.engine.bar import bar
from llama2lab.engine.device import Machine, on_device
from llama2lab.engine.errors import LabError
from llama2lab.engine.loop import fit
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import epoch_batches
from llama2lab.engine.parallel import Figure, batches_of, figure, in_parallel
from llama2lab.engine.scale import GRADES, MARGINS
from llama2lab.engine.settings import Count, Epochs, ShareBelowOne, Weight, checked, one_of
from llama2lab.engine.validation import validated
from llama2lab.model.chat import encode_chats
from llama2lab.model.checkpoint import link_model, load_model, load_reward_parts, save_model, save_reward_model
from llama2lab.model.logprobs import answer_token_logprobs, pad_right
from llama2lab.model.network import Llama
from llama2lab.stages.pretrain import curve

HEADS = ("linear", "likelihood")
LEAST_LIKELY = 3  # tokens of an answer that the likelihood head looks at
Encoded = tuple[list[int], list[int]]  # ids, answer mask


@checked
@dataclass(frozen=True)
class RewardSettings:
    head: Annotated[str, one_of(HEADS)] = "likelihood"  # "linear" is the report's
    margin: Annotated[str, one_of(MARGINS)] = "small"  # "none", "small", "large": Table 27
    safety_loss: Weight = 0.0  # weight of the auxiliary loss, on rows with a safety bin: 1 for the safety model. In the
    # helpfulness model it would reward every refusal, on harmless prompts too.
    epochs: Epochs = 1.0  # more overfits, says the report
    batch_pairs: Count = 32  # the report: 512, with a thousand times the pairs
    other_share: ShareBelowOne = 0.5  # share of the other kind's rows in the mix: 50/50 helpfulness, 90/10 safety
    optim: Optim = Optim(lr=1e-3, warmup=0.03)
    # From round 2 on a model goes on from the last round's, on the new pairs and this many times as many earlier ones.
    # None: the report's way, from the chat model on all pairs so far.
    earlier: Weight | None = None


class RewardModel(nn.Module):
    """A decoder with a scalar head. `reference` is the frozen chat model of the likelihood head, or None.

    `offset` is subtracted from every score: pairs leave it arbitrary, so it is set after training such that the
    mean score of the training answers is 0.
    """

    def __init__(self, backbone: Llama, reference: Llama | None = None, seed: int = 0):
        super().__init__()
        self.backbone = backbone
        self.backbone.lm_head.requires_grad_(False)  # not used: the scalar head stands in its place
        self.score = nn.Linear(backbone.config.dim, 1, bias=False)
        nn.init.normal_(
            self.score.weight, std=1 / math.sqrt(backbone.config.dim + 1), generator=torch.Generator().manual_seed(seed)
        )
        self.a = nn.Parameter(torch.zeros(())) if reference is not None else None
        self.reference = reference
        if reference is not None:
            reference.requires_grad_(False)
        self.offset: Tensor
        self.register_buffer("offset", torch.zeros(()))

    @property
    def head(self) -> str:
        return "linear" if self.a is None else "likelihood"

    def forward(self, tokens: Tensor, lengths: Tensor, loglikelihood: Tensor | None = None) -> Tensor:
        """Scores, (batch,), of right-padded conversations `tokens` (batch, seq).

        `loglikelihood` (batch,) is what `worst_loglikelihoods` says of the answers; the likelihood head needs it.
        """
        hidden = self.backbone.hidden(tokens)  # (batch, seq, dim)
        scores = last_token_scores(hidden, lengths, self.score.weight) - self.offset
        if self.a is not None:
            if loglikelihood is None:
                raise ValueError("the likelihood head needs the answer's log-likelihood under the reference")
            scores = scores + self.a * loglikelihood
        return scores


def last_token_scores(hidden: Tensor, lengths: Tensor, weight: Tensor) -> Tensor:
    """The linear head's scores, (batch,), read at the last token of each right-padded row.

    Args:
        hidden: (batch, seq, dim), the last hidden states; behind a row's end they are those of padding.
        lengths: (batch,), each row's number of tokens without its padding.
        weight: (dim,) or (1, dim).
    """
    last = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]  # (batch, dim)
    # In float32 even under autocast: in bfloat16 many answers would get the same score.
    return (last.float() * weight).sum(-1)


def ranking_loss(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    """Equation 2: mean of -log sigmoid(r_chosen - r_rejected - m). All three are (batch,): a (batch, 1) margin
    would broadcast to (batch, batch) in silence, so shapes are checked.

    Raises:
        ValueError: the shapes differ.
    """
    if not chosen.shape == rejected.shape == margin.shape:
        raise ValueError(
            f"shapes differ: chosen {tuple(chosen.shape)}, rejected {tuple(rejected.shape)}, "
            f"margin {tuple(margin.shape)}"
        )
    return -F.logsigmoid(chosen - rejected - margin).mean()


def safety_auxiliary_loss(scores: Tensor, safe: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(score) against the safety label. (batch,) both; a label of -1 is unknown and
    does not count. It also gives the score its zero: sigmoid(r) becomes a probability of being safe, which is what
    makes the report's threshold of 0.15 meaningful. Labels may lie on the CPU while scores do not."""
    known = (safe >= 0).nonzero()[:, 0]
    if not len(known):
        return scores.sum() * 0.0
    labels = on_device(safe[known].float(), scores.device)
    return F.binary_cross_entropy_with_logits(scores[on_device(known, scores.device)], labels)


def pairs_so_far(rounds: Sequence[Sequence[dict]], earlier: float | None, seed: int) -> list[dict]:
    """The rows of all rounds; or the last round's and `earlier` times as many (at most all) from the rounds before."""
    before, new = [row for one_round in rounds[:-1] for row in one_round], list(rounds[-1])
    if earlier is None:
        return before + new
    return new + random.Random(seed).sample(before, min(len(before), round(earlier * len(new))))


def mix(own: Sequence[dict], other: Sequence[dict], other_share: float, seed: int) -> list[dict]:
    """All rows of one's own kind, and so many of the other kind, drawn evenly, that they make `other_share` of the
    whole (or all of them, if there are fewer): the report's 50/50 for helpfulness and 90/10 for safety."""
    wanted = round(len(own) * other_share / (1 - other_share))
    rng = random.Random(seed)
    rows = list(own) + rng.sample(list(other), min(wanted, len(other)))
    rng.shuffle(rows)
    return rows


def mix_people(simulated: Sequence[dict], people: Sequence[dict], share: float | None, seed: int) -> list[dict]:
    """As many rows as there are such that `share` of them are people's, drawn by seed; None takes all of both.

    0 gives the simulated rows alone and 1 people's alone. LabError for a share outside that, or for a share of people's
    rows where there are none.
    """
    if share is None:
        return [*simulated, *people]
    if not 0 <= share <= 1:
        raise LabError(f"the share of people's rows is a number from 0 to 1, not {share}")
    if share > 0 and not people:
        raise LabError("there is no row of people's labels to mix in; label some pairs, or set the share to 0")
    whole = min(
        len(people) / share if share else float("inf"), len(simulated) / (1 - share) if share < 1 else float("inf")
    )
    rng = random.Random(seed)
    mine = rng.sample(list(people), min(len(people), round(whole * share)))
    theirs = rng.sample(list(simulated), min(len(simulated), round(whole * (1 - share))))
    return [*theirs, *mine]


def encode_answers(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Sequence[dict]], answers: Sequence[str]
) -> list[Encoded]:
    """Each conversation with its answer, as ids and a mask of the answer's tokens with the closing `</s>`."""
    messages = [[*m, {"role": "assistant", "content": a}] for m, a in zip(conversations, answers, strict=True)]
    return encode_chats(tokenizer, messages, mask_turns="last")


def worst_loglikelihoods(
    reference: Llama | None,
    encoded: Sequence[Encoded],
    pad: int,
    machine: Machine,
) -> list[float]:
    """Mean log-likelihood in nats of the LEAST_LIKELY least likely tokens of each answer (its `</s>` is one of them)
    under the reference; of all tokens where there are fewer, and zeros without a reference."""
    if reference is None:
        return [0.0] * len(encoded)
    tokens = answer_token_logprobs(reference, encoded, pad, machine)  # each (answer tokens,)
    return [t.topk(min(LEAST_LIKELY, len(t)), largest=False).values.mean().item() if len(t) else 0.0 for t in tokens]


def pair_loglikelihoods(
    reference: Llama | None, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict], machine: Machine
) -> list[tuple[float, float]]:
    """`worst_loglikelihoods` of the (chosen, rejected) answer of each preference row."""
    conversations = [row["prompt"] for row in rows]
    chosen, rejected = (
        worst_loglikelihoods(
            reference,
            encode_answers(tokenizer, conversations, [row[side][0]["content"] for row in rows]),
            tokenizer.pad_token_id,
            machine,
        )
        for side in ("chosen", "rejected")
    )
    return list(zip(chosen, rejected, strict=True))


def score_encoded(
    model: RewardModel,
    encoded: Sequence[Encoded],
    pad: int,
    machine: Machine,
    batch: int = 128,
    loglikelihoods: Sequence[float] | None = None,
) -> list[float]:
    """r(x, y) of each encoded answer, before any sigmoid. `loglikelihoods` are what `worst_loglikelihoods` says of
    them, where the caller knows that already. Several processes share the answers out, and all get every score.
    LabError where a score is not finite."""
    model.eval()
    order = distributed.shared(sorted(range(len(encoded)), key=lambda i: len(encoded[i][0])))
    loglik = worst_loglikelihoods(model.reference, encoded, pad, machine) if loglikelihoods is None else loglikelihoods
    found: dict[int, float] = {}
    with bar(len(order), "scoring", "answer") as progress:

        def score(rows: Sequence[int]) -> None:
            tokens, lengths = pad_right([encoded[i][0] for i in rows], pad)
            with torch.inference_mode(), machine.autocast():
                ll = torch.tensor([loglik[i] for i in rows])
                scores = model(*(on_device(x, machine.device) for x in (tokens, lengths, ll)))
            for i, value in zip(rows, scores.tolist(), strict=True):
                found[i] = value
            progress.update(len(rows))

        in_parallel(score, batches_of(order, batch, machine.device), machine.device)
    found = distributed.merged(found)
    result = [found[i] for i in range(len(encoded))]
    odd = [i for i, value in enumerate(result) if not math.isfinite(value)]
    if odd:
        raise LabError(
            f"the reward model gives {len(odd)} of {len(result)} answers a score that is not finite, "
            f"the first to answer {odd[0]} ({result[odd[0]]}): its weights are damaged; train it again"
        )
    return result


def score_answers(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Sequence[dict]],
    answers: Sequence[str],
    machine: Machine,
) -> list[float]:
    """The reward r(x, y) of each answer, before any sigmoid."""
    return score_encoded(model, encode_answers(tokenizer, conversations, answers), tokenizer.pad_token_id, machine)


def _safety_labels(row: dict) -> tuple[int, int]:
    """(chosen, rejected): 1 safe, 0 unsafe, -1 unknown, from the report's bins."""
    return {"chosen_safe": (1, 0), "both_safe": (1, 1), "both_unsafe": (0, 0)}.get(row.get("safety", ""), (-1, -1))


def train_reward(
    start: Llama | RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[dict],
    settings: RewardSettings,
    seed: int,
    machine: Machine,
    folder: Path | None = None,
    reference: Llama | None = None,
    what: str = "reward model",
    known: Sequence[Sequence[float] | None] = (),
) -> tuple[RewardModel, dict[str, Any]]:
    """Train a reward model on preference rows, starting from `start`, a chat model or a reward model to go on from
    (which is changed: pass a fresh copy).

    `reference` is the frozen chat model of the likelihood head, the same in all rounds; it is ignored by the
    linear head. The reward model keeps a copy of it, so that the caller's can still be trained, or, where no weight of
    it asks for gradients, itself. `known` gives the rows' `pair_loglikelihoods` under this reference, None for a row
    whose are not known; without it, none are.
    """
    frozen = reference if settings.head == "likelihood" else None
    if frozen is not None and any(p.requires_grad for p in frozen.parameters()):
        frozen = copy.deepcopy(frozen)
    backbone = start.backbone if isinstance(start, RewardModel) else start
    model = RewardModel(backbone, frozen, seed).to(machine.device)
    if isinstance(start, RewardModel):
        model.score.load_state_dict(start.score.state_dict())
        if model.a is not None and start.a is not None:
            model.a.data.copy_(start.a.data)
    pad = tokenizer.pad_token_id
    conversations = [row["prompt"] for row in rows]
    sides = [
        encode_answers(tokenizer, conversations, [row[side][0]["content"] for row in rows])
        for side in ("chosen", "rejected")
    ]
    known = known or [None] * len(rows)
    read = [i for i, values in enumerate(known) if values is None]
    loglik = [[values[s] if values else 0.0 for values in known] for s in (0, 1)]  # (chosen, rejected), each (rows,)
    for side, values in zip(sides, loglik, strict=True):
        found = worst_loglikelihoods(model.reference, [side[i] for i in read], pad, machine)
        for i, value in zip(read, found, strict=True):
            values[i] = value
    margins = [MARGINS[settings.margin][row["grade"]] for row in rows]
    steps = max(1, round(settings.epochs * math.ceil(len(rows) / settings.batch_pairs)))
    longest = [max(len(sides[s][i][0]) for s in (0, 1)) for i in range(len(rows))]
    batches = epoch_batches(len(rows), settings.batch_pairs, seed, longest)
    warmup = max(settings.optim.warmup, 5 / steps)  # the report: 3 % of the steps, at least 5
    optim = Optim(**{**vars(settings.optim), "warmup": min(0.5, warmup)})

    def loss_of(picked: Sequence[int]) -> tuple[Tensor, Figure, dict[str, Figure]]:
        tokens, lengths = pad_right([sides[s][i][0] for s in (0, 1) for i in picked], pad)
        ll = torch.tensor([loglik[s][i] for s in (0, 1) for i in picked])
        scores = model(*(on_device(x, machine.device) for x in (tokens, lengths, ll)))
        chosen, rejected = scores.chunk(2)
        loss = ranking_loss(chosen, rejected, on_device(torch.tensor([margins[i] for i in picked]), machine.device))
        safe = torch.tensor([_safety_labels(rows[i])[s] for s in (0, 1) for i in picked])
        total = loss + settings.safety_loss * safety_auxiliary_loss(scores, safe)
        right = ((chosen > rejected) + 0.5 * (chosen == rejected)).mean()
        return total, len(picked), {"ranking_loss": figure(loss), "accuracy": figure(right)}

    log = fit(model, batches, loss_of, steps, optim, machine, folder, what)
    if settings.safety_loss == 0:  # else the auxiliary loss has set the zero
        sample = random.Random(seed).sample(range(len(rows)), min(400, len(rows)))
        scores = score_encoded(model, [sides[s][i] for s in (0, 1) for i in sample], pad, machine)
        model.offset.fill_(sum(scores) / len(scores))
    metrics = {
        "loss": curve(log),
        "pairs": len(rows),
        "steps": len(log),
        "head": model.head,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if model.a is not None:
        metrics["likelihood_weight"] = round(model.a.item(), 4)
    return model, metrics


def pair_scores(
    model: RewardModel, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict], machine: Machine
) -> list[tuple[float, float]]:
    """(r_chosen, r_rejected) of each row."""
    conversations = [row["prompt"] for row in rows]
    scores = score_answers(
        model,
        tokenizer,
        conversations * 2,
        [row[side][0]["content"] for side in ("chosen", "rejected") for row in rows],
        machine,
    )
    return list(zip(scores[: len(rows)], scores[len(rows) :], strict=True))


def judged_well(chosen: float, rejected: float) -> float:
    """1 where the chosen answer scores higher, a half where both score alike, else 0."""
    return 0.5 if chosen == rejected else float(chosen > rejected)


def accuracy(pairs: Sequence[tuple[float, float]]) -> stats.Figure:
    """Share of pairs in which the chosen answer scores higher; a tie counts as half."""
    return stats.rate([judged_well(c, r) for c, r in pairs])


def accuracy_by_grade(rows: Sequence[dict], pairs: Sequence[tuple[float, float]]) -> dict[str, stats.Figure]:
    """The report's Table 8: clear preferences are judged well, unclear ones near chance."""
    return {g: accuracy([p for row, p in zip(rows, pairs, strict=True) if row["grade"] == g]) for g in GRADES}


def calibration(pairs: Sequence[tuple[float, float]], bins: int = 5) -> list[dict[str, float]]:
    """Predicted against real agreement: pairs sorted by sigmoid |r_chosen - r_rejected|, in equal bins, each with
    the mean `predicted` probability that the higher score is the chosen one, the `real` share (a tie counts as half),
    and `n`."""
    sure = sorted((1 / (1 + math.exp(-min(abs(c - r), 50.0))), judged_well(c, r)) for c, r in pairs)
    rows = []
    for b in range(bins):
        part = sure[b * len(sure) // bins : (b + 1) * len(sure) // bins]
        if part:
            n = len(part)
            rows.append({"predicted": sum(p for p, _ in part) / n, "real": sum(ok for _, ok in part) / n, "n": n})
    return rows


# ---- checkpoints -------------------------------------------------------------------------------------------


def save_reward(
    path: Path, model: RewardModel, tokenizer: PreTrainedTokenizerFast, reference: Path | None = None
) -> None:
    """A transformers folder that AutoModelForSequenceClassification opens (it gives the linear part, before the
    offset); for the likelihood head, `a`, the offset and LEAST_LIKELY are in its config.json and the chat model in
    reference/. Where that chat model is a folder already, `reference`, its files are linked, not written again."""
    extra = {"head": model.head, "a": model.a.item() if model.a is not None else 0.0, "offset": model.offset.item()}
    if model.a is not None:
        extra["least_likely"] = LEAST_LIKELY
    save_reward_model(path, model.backbone, model.score, tokenizer, extra)
    if model.reference is not None and reference is not None:
        link_model(reference, path / "reference")
    elif model.reference is not None:
        save_model(path / "reference", model.reference, tokenizer)


class HeadJson(BaseModel):
    """What config.json says of the head."""

    model_config = ConfigDict(strict=True, extra="allow")
    head: Literal["linear", "likelihood"]
    a: FiniteFloat
    offset: FiniteFloat
    least_likely: int | None = None


def load_reward(path: Path) -> RewardModel:
    """A reward model as `save_reward` left it. LabError also for a likelihood head that was trained with another
    formula: it would score wrongly in silence."""
    backbone, score, extra = load_reward_parts(path)
    if extra:
        validated(HeadJson, extra, f"{path / 'config.json'}: llama2lab", "train it again")
    likelihood = bool(extra) and extra.get("head") == "likelihood"
    if likelihood and extra.get("least_likely") != LEAST_LIKELY:
        raise LabError(
            f"{path}: its likelihood head looks at other tokens than the {LEAST_LIKELY} least likely ones; "
            "it is of another version of llama2lab: train it again"
        )
    reference = load_model(path / "reference") if likelihood else None
    model = RewardModel(backbone, reference)
    model.score = score
    if extra:
        model.offset.fill_(extra["offset"])
        if model.a is not None:
            model.a.data.fill_(extra["a"])
    return model.eval()
