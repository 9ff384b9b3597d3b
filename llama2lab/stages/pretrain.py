"""Pretraining: next-token prediction on packed documents (Llama 2, section 2).

As in the report: AdamW (0.9, 0.95), warmup, cosine to 10 %, weight decay 0.1, clipping 1.0. Packed documents do
not see each other here (a choice of ours: the report does not say). What differs is the size: millions of tokens
instead of trillions, and a learning rate ten times larger, as small models want.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from typing_extensions import TypedDict

from llama2lab.engine import stats
from llama2lab.engine.device import Machine, check_memory, matmul_ceiling, most_memory_gb, on_device
from llama2lab.engine.errors import LabError
from llama2lab.engine.loop import fit
from llama2lab.engine.optim import TRAINED_BYTES, Optim
from llama2lab.engine.packing import Packed, epoch_batches, pack
from llama2lab.engine.settings import Clash, Count, Epochs, Limit, Weight, checked
from llama2lab.model.attention import document_mask, document_positions
from llama2lab.model.fused import token_nll
from llama2lab.model.generate import generate
from llama2lab.model.logprobs import answer_loglikelihoods
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import SMALLEST, encode_texts

SeqLen = Annotated[int, Field(ge=8, le=10**6)]  # tokens in a packed row


class RopeScaling(TypedDict, total=False):
    """See model/rope.py."""

    rope_type: Literal["default", "linear", "dynamic", "llama3", "yarn"]
    type: Literal["default", "linear", "dynamic", "llama3", "yarn"]
    factor: Annotated[float, Field(ge=1, le=10_000)]
    original_max_position_embeddings: Count
    low_freq_factor: Limit
    high_freq_factor: Limit
    beta_fast: Limit
    beta_slow: Limit
    mscale: Weight
    mscale_all_dim: Weight
    attention_factor: Limit
    truncate: bool


class Sizes(TypedDict, total=False):
    """The fields of ModelConfig, as a recipe may give them."""

    vocab_size: Annotated[int, Field(ge=SMALLEST, le=10**9)]
    dim: Count
    n_layers: Annotated[int, Field(ge=1, le=1000)]
    n_heads: Count
    n_kv_heads: Count
    ffn_dim: Count
    max_seq_len: Annotated[int, Field(ge=8, le=10**7)]
    rope_theta: Annotated[float, Field(ge=2, le=1e12)]
    rope_scaling: RopeScaling | None
    norm_eps: Annotated[float, Field(ge=1e-20, le=1)]
    tie_embeddings: bool
    head_dim: Count | None


@checked
@dataclass(frozen=True)
class PretrainSettings:
    model: Sizes = field(default_factory=Sizes)  # of ModelConfig; all that it needs, or none
    words: Count = 2_500_000  # of corpus
    epochs: Epochs = 1.0
    seq_len: SeqLen = 512
    batch_tokens: Count = 4096
    optim: Optim = Optim(lr=4e-3)
    sample_every: Count = 200  # steps between samples written to the log

    @property
    def config(self) -> ModelConfig:
        """The model's shape. LabError for sizes that no model can have."""
        return ModelConfig(**cast(dict[str, Any], self.model))

    def __post_init__(self) -> None:
        if not self.model:
            return
        for name in ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim"):
            if name not in self.model:
                raise Clash(f"is missing; give all sizes of the model, {name} too", f"model.{name}", "model")
        needed, there = training_bytes(self.model, self.seq_len, self.batch_tokens) / 1e9, most_memory_gb()
        if needed > there > 0:
            sizes = {name: n for name, n in self.model.items() if isinstance(n, int)}
            largest = max(sizes, key=sizes.__getitem__)  # the likeliest mistake
            raise Clash(
                f"is {sizes[largest]}: such a model takes {needed:,.1f} GB to train, with rows of "
                f"{self.seq_len} tokens, and this machine has {there:,.1f}; give smaller sizes",
                f"model.{largest}",
            )
        try:
            context = self.config.context
        except (LabError, ValueError, ArithmeticError) as e:  # the latter two: what rope scaling divides by
            why = str(e).removeprefix("model config: ")
            concerned = [f"model.{name}" for name in self.model if name in why]
            raise Clash(f"cannot be so: {why}", *(concerned or ["model"])) from None
        if self.seq_len > context:
            raise Clash(
                f"must be at most the model's context (max_seq_len, {context}), not {self.seq_len}",
                "seq_len",
                "model.max_seq_len",
            )


def training_bytes(sizes: Sizes, seq_len: int, batch_tokens: int) -> int:
    """What training such a model takes at the least: weights, gradients and Adam's two moments in float32, the rotary
    tables, and of one step the mask with its float32 form and the logits with their gradient."""
    dim, heads, vocab = sizes["dim"], sizes["n_heads"], sizes["vocab_size"]
    head = sizes.get("head_dim") or max(1, dim // heads)
    layer = dim * head * (2 * heads + 2 * sizes["n_kv_heads"]) + 3 * dim * sizes["ffn_dim"]
    parameters = sizes["n_layers"] * layer + dim * vocab * (1 if sizes.get("tie_embeddings") else 2)
    tokens = max(batch_tokens, seq_len)
    return (
        TRAINED_BYTES * parameters
        + 24 * sizes.get("max_seq_len", 4096) * head
        + 5 * tokens * seq_len
        + 8 * tokens * vocab
    )


def encode_documents(
    tokenizer: PreTrainedTokenizerFast,
    documents: Iterable[str],
) -> Iterator[tuple[list[int], list[int]]]:
    """`<s> text </s>` for each document, every token to be predicted. Control strings in the text stay text."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = iter(documents)
    while some := list(itertools.islice(texts, 1000)):
        for ids in encode_texts(tokenizer, some):
            yield [bos, *ids, eos], [1] * (len(ids) + 2)


def pretrain(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainSettings,
    seed: int,
    machine: Machine,
    folder: Path | None = None,
) -> tuple[Llama, dict[str, Any]]:
    """Train a new model on `documents`. Returns it with metrics: `loss` (the curve), `tokens`,
    `tokens_per_second`, `share_of_ceiling` (of this machine's measured matrix product), `samples`."""
    needed = training_bytes(settings.model, settings.seq_len, settings.batch_tokens)
    check_memory(needed, "pretraining: weights, gradients, Adam's moments and a step", machine.device)
    model = Llama(settings.config, seed).to(machine.device)
    # As arrays: lists of millions of Python numbers would be the largest thing in memory.
    encoded = [(np.array(ids, np.int32), np.array(mask, bool)) for ids, mask in encode_documents(tokenizer, documents)]
    data = pack(encoded, settings.seq_len, seed, tokenizer.pad_token_id)
    del encoded
    samples: list[dict[str, Any]] = []

    def sample(step: int) -> None:
        if (step + 1) % settings.sample_every == 0:
            model.eval()
            tokens = generate(
                model,
                [[tokenizer.bos_token_id]],
                30,
                temperature=0.7,
                seed=step,
                eos_id=tokenizer.eos_token_id,
                pad_id=tokenizer.pad_token_id,
            )[0].tokens
            samples.append({"step": step + 1, "text": tokenizer.decode(tokens, skip_special_tokens=True)})
            model.train()

    log = fit_packed(
        model,
        data,
        settings.epochs,
        settings.batch_tokens,
        settings.optim,
        seed,
        machine,
        folder,
        "pretraining",
        sample,
    )
    tokens = sum(entry["tokens"] for entry in log)
    speed = tokens / sum(entry["seconds"] for entry in log)
    flops = training_flops_per_token(model.config, settings.seq_len) * speed
    dtype = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    return model, {
        "loss": curve(log),
        "tokens": int(tokens),
        "steps": len(log),
        "parameters": parameter_count(model),
        "tokens_per_second": round(speed),
        "share_of_ceiling": round(flops / matmul_ceiling(machine.device, dtype), 4),
        "padding": round(float((data.segments == 0).float().mean()), 4),
        "samples": samples,
    }


def bits_per_byte(
    model: Llama, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], machine: Machine, max_tokens: int = 512
) -> stats.Figure:
    """Bits per byte of held-out documents, mean over documents: comparable between tokenizers, as loss is not."""
    encoded = [(ids[:max_tokens], mask[:max_tokens]) for ids, mask in encode_documents(tokenizer, texts)]
    nats = answer_loglikelihoods(model, encoded, tokenizer.pad_token_id, machine, batch=32)
    read = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids, _ in encoded]
    return stats.mean(bits_of([-x for x in nats], read))


def bits_of(nats: Sequence[float], texts: Sequence[str]) -> list[float]:
    """Bits a byte (of UTF-8) of each text that is not empty, from the nats of all its tokens together."""
    sizes = [len(text.encode()) for text in texts]
    return [x / math.log(2) / size for x, size in zip(nats, sizes, strict=True) if size]


def parameter_count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def training_flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Operations of a trained token, forward and backward: 6 for each weight that multiplies (all but the embedding's
    look-up and the norms), and 6 layers x seq x heads x head size for causal attention (PaLM, appendix B, halved:
    nothing is owed for scores above the diagonal)."""
    heads = config.n_heads * config.head_size
    attention = config.dim * (2 * heads + 2 * config.n_kv_heads * config.head_size)
    weights = config.n_layers * (attention + 3 * config.dim * config.ffn_dim) + config.dim * config.vocab_size
    return 6.0 * weights + 6.0 * config.n_layers * seq_len * heads


def curve(log: list[dict[str, float]], points: int = 150) -> list[dict[str, float]]:
    """A training log thinned to about `points` rows for the report, each the mean of its stretch."""
    width = max(1, math.ceil(len(log) / points))
    rows = []
    for start in range(0, len(log), width):
        part = log[start : start + width]
        rows.append({"step": start + len(part), **{k: sum(e[k] for e in part) / len(part) for k in part[0]}})
    return rows


def packed_lm_loss(
    model: Llama, tokens: Tensor, segments: Tensor, loss_mask: Tensor, *, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats of the tokens that `loss_mask` marks, and their number.

    The first token of a document is predicted from nothing, so it never counts; the logits are computed only
    where a prediction is asked for. `device` is the model's, where that is another one than the rows'.
    """
    device = device or tokens.device
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    wanted = (same & loss_mask[:, 1:]).nonzero(as_tuple=True)  # rows and columns, worked out where nobody waits
    targets = on_device(tokens[:, 1:][wanted], device)  # (wanted,)
    tokens, segments = on_device(tokens, device), on_device(segments, device)
    hidden = model.hidden(tokens, document_positions(segments), document_mask(segments))  # (batch, seq, dim)
    states = hidden[:, :-1][tuple(on_device(at, device) for at in wanted)]  # (wanted, dim)
    count = torch.tensor(len(targets))
    if len(targets) == 0:
        return hidden.sum() * 0.0, count
    return token_nll(states, model.lm_head.weight, targets).mean(), count


def rows_loss(model: Llama, data: Packed, rows: Sequence[int], machine: Machine) -> tuple[Tensor, Tensor]:
    """`packed_lm_loss` of some rows of `data`, on the model's device."""
    return packed_lm_loss(model, data.tokens[rows], data.segments[rows], data.loss_mask[rows], device=machine.device)


def fit_packed(
    model: Llama,
    data: Packed,
    epochs: float,
    batch_tokens: int,
    optim: Optim,
    seed: int,
    machine: Machine,
    folder: Path | None = None,
    what: str = "training",
    on_step: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Language-model training on packed rows, `batch_tokens` (padding counted) a step."""
    batch = max(1, batch_tokens // data.tokens.shape[1])
    steps = max(1, round(epochs * math.ceil(len(data) / batch)))
    rows = epoch_batches(len(data), batch, seed)

    def loss_of(r: Sequence[int]) -> tuple[Tensor, float, dict[str, float]]:
        loss, count = rows_loss(model, data, r, machine)
        return loss, float(count), {}

    log = fit(model, rows, loss_of, steps, optim, machine, folder, what, on_step)
    sizes = (data.segments > 0).sum(1)  # (rows,)
    return [{**entry, "tokens": float(sizes[rows(step)].sum())} for step, entry in enumerate(log)]
