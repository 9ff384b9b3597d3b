"""Llama 2's network (section 2.2): pre-norm RMSNorm and SwiGLU around the attention of attention.py.

Shapes are written (batch, seq, ...). Rotary pairs are the two halves of a head (the layout of transformers),
not neighbours (the layout of Meta's release): see checkpoint.py for what that means for files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from llama2lab.engine.errors import LabError
from llama2lab.model.attention import Attention, Blocks, KVCache, Linear, causal_mask, score_bias
from llama2lab.model.fused import RMSNormed, SwiGLU
from llama2lab.model.rope import rope_frequencies, rope_kind, rope_tables

LONG_CONTEXT = 2**15  # tokens, up to which the tables of rotary angles are made at once


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama. `n_kv_heads < n_heads` is grouped-query attention, `n_kv_heads = 1` multi-query.

    `rope_scaling` is transformers' dictionary, e.g. {"rope_type": "linear", "factor": 2.0}.
    Raises LabError for sizes that no model can have.
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    max_seq_len: int = 4096
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    head_dim: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise LabError(f"model config: {name} is {value!r}; give a whole number of at least 1")
        if self.head_dim is None and self.dim % self.n_heads:
            raise LabError(
                f"model config: dim {self.dim} is not divisible by n_heads {self.n_heads}; "
                "change one of them or give head_dim"
            )
        if self.n_heads % self.n_kv_heads:
            raise LabError(
                f"model config: n_heads {self.n_heads} is not divisible by n_kv_heads "
                f"{self.n_kv_heads}; every KV head serves the same number of query heads"
            )
        if self.head_size < 2 or self.head_size % 2:
            raise LabError(
                f"model config: head_dim {self.head_size} is odd or below 2; rotary positions "
                "turn pairs, give an even head_dim"
            )
        if self.rope_theta <= 0 or self.norm_eps < 0:
            raise LabError(
                f"model config: rope_theta {self.rope_theta} must be positive and norm_eps {self.norm_eps} not negative"
            )
        try:
            turns, loudness = rope_frequencies(self.head_size, self.rope_theta, self.max_seq_len, self.rope_scaling)
            possible = bool(turns.isfinite().all()) and math.isfinite(loudness)
        except (ArithmeticError, ValueError):  # a logarithm of 0, a division by 0
            possible = False
        if not possible:
            raise LabError(
                f"model config: rope_theta {self.rope_theta} and rope scaling {self.rope_scaling} give "
                "angles that are no numbers; take those that the model was trained with"
            )

    @property
    def head_size(self) -> int:
        return self.head_dim or self.dim // self.n_heads

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads

    @property
    def context(self) -> int:
        """The longest sequence in tokens; dynamic scaling stretches it beyond max_seq_len."""
        scaling = self.rope_scaling or {}
        stretch = scaling["factor"] if rope_kind(scaling) == "dynamic" else 1
        return int(self.max_seq_len * stretch)


# Llama 2's sizes (table 1; the 34B was not released, its shape is Code Llama's) and two for a laptop.
SIZES: dict[str, ModelConfig] = {
    "7b": ModelConfig(32000, 4096, 32, 32, 32, 11008),
    "13b": ModelConfig(32000, 5120, 40, 40, 40, 13824),
    "34b": ModelConfig(32000, 8192, 48, 64, 8, 22016),
    "70b": ModelConfig(32000, 8192, 80, 64, 8, 28672),
    "mini": ModelConfig(1024, 160, 4, 4, 2, 448, max_seq_len=1024),
    "nano": ModelConfig(512, 32, 2, 4, 2, 64, max_seq_len=256),
}


def no_row(token: int, vocab_size: int) -> LabError:
    return LabError(
        f"the text holds token {token}, the model has rows for {vocab_size} only: tokenizer and model do "
        "not belong together; open the model with the tokenizer that it was saved with"
    )


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return RMSNormed.apply(x, self.weight, self.eps)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__()
        self.gate, self.up, self.down = Linear(dim, ffn_dim), Linear(dim, ffn_dim), Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(SwiGLU.apply(self.gate(x), self.up(x)))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each normalised before and added to what came in."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config.dim, config.n_heads, config.n_kv_heads, config.head_size)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config.dim, config.ffn_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Blocks, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, bias, cache, layer)
        return x + self.ffn(self.ffn_norm(x))


class LowerStates(Protocol):
    """What gives the states after the first `layers` layers, kept from an earlier reading: lower.Lower."""

    layers: int

    def states(self, tokens: Tensor, positions: Tensor | None, dtype: torch.dtype) -> Tensor: ...


class Llama(nn.Module):
    """The language model. Its weights are a function of (config, seed) alone."""

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        sizes = config.vocab_size, config.dim
        self.embed = nn.Embedding(*sizes, _weight=torch.empty(sizes))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = Linear(config.dim, config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed.weight
        # Not a buffer: it stays in float32 when the weights become bfloat16, and no file holds it.
        self._rope: tuple[Tensor, Tensor] | None = None
        self.lower: LowerStates | None = None  # set by lower.train_upper, where the lower layers are frozen
        if not self.embed.weight.is_meta:
            self.init_weights(seed)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal with standard deviation 0.02; what writes into the residual stream is scaled by
        1/sqrt(2 n_layers) (GPT-2, section 2.3), so that the stream does not grow with depth."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                weight.fill_(1.0)
                continue
            std = 0.02
            if name.endswith(("out.weight", "down.weight")):
                std /= math.sqrt(2 * self.config.n_layers)
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for this model, of its weights' type and on their device."""
        c, weight = self.config, self.embed.weight
        return KVCache(c.n_layers, c.n_kv_heads, c.head_size, batch, max_len, weight.dtype, weight.device)

    def rope_at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions (batch or 1, seq), each (batch or 1, 1, seq, head_dim)."""
        wanted = self.config.max_seq_len
        if wanted > LONG_CONTEXT:  # tables for a context of millions would be larger than the model
            wanted = min(wanted, LONG_CONTEXT * math.ceil((int(positions.max()) + 1) / LONG_CONTEXT))
        tables = self._rope
        if tables is None or tables[0].device != positions.device or len(tables[0]) < wanted:
            tables = self._rope = self.rope_tables(wanted, positions.device)
        cos, sin = tables
        if rope_kind(self.config.rope_scaling) == "dynamic":  # the angles depend on the longest position
            longest = int(positions.max()) + 1
            if longest > self.config.max_seq_len:
                cos, sin = self.rope_tables(longest, positions.device)
        return cos[positions][:, None], sin[positions][:, None]

    def rope_tables(self, seq_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
        c = self.config
        cos, sin = rope_tables(c.head_size, c.rope_theta, c.max_seq_len, c.rope_scaling, seq_len)
        return cos.to(device), sin.to(device)

    def hidden(
        self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """States after the final norm. tokens (batch, seq) -> (batch, seq, dim).

        `positions` (batch or 1, seq) count from 0; by default the tokens follow those in the cache. `mask` is
        bool (batch or 1, 1, seq, k_len), True = may look, k_len counting the cache too (and what is still
        empty of it, if the mask is so wide and False there); None is causal. A mask may not let a token look
        ahead. Raises LabError when the sequence is longer than the context.
        """
        past = cache.length if cache is not None else 0
        k_len = past + tokens.shape[1]
        if positions is None:
            if k_len > self.config.context:
                raise LabError(
                    f"the model reads at most {self.config.context} tokens, here are {k_len}; "
                    "shorten the text or choose a model with a longer context (max_seq_len)"
                )
            positions = torch.arange(past, k_len, device=tokens.device)[None]
        if mask is None:
            mask = causal_mask(tokens.shape[1], k_len, tokens.device)
        highest = int(tokens.max()) if tokens.device.type == "cpu" and tokens.numel() else 0  # a GPU would wait for it
        if highest >= self.config.vocab_size:
            raise no_row(highest, self.config.vocab_size)
        kind, dtype = tokens.device.type, self.embed.weight.dtype
        if kind != "meta" and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        cos, sin = (table.to(dtype) for table in self.rope_at(positions))
        bias = score_bias(mask, self.config.n_heads, self.config.n_kv_heads, dtype)
        begin = self.lower.layers if self.lower is not None and cache is None else 0
        if begin and self.lower is not None:
            x = self.lower.states(tokens, positions, dtype)  # (batch, seq, dim)
        else:
            x = self.embed(tokens).to(dtype)  # (batch, seq, dim)
        for i in range(begin, self.config.n_layers):
            x = self.layers[i](x, cos, sin, bias, cache, i)
        if cache is not None:
            cache.length = k_len
        return self.norm(x)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Logits of each next token. tokens (batch, seq) -> (batch, seq, vocab); see `hidden`."""
        return self.lm_head(self.hidden(tokens, positions, mask, cache))
