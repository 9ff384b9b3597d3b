"""Llama 2's network (section 2.2): pre-norm RMSNorm, SwiGLU, rotary positions, grouped-query attention.

Shapes are written (batch, seq, ...). Rotary pairs are the two halves of a head (the layout of transformers),
not neighbours (the layout of Meta's release): see checkpoint.py for what that means for files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama2lab.engine.errors import LabError
from llama2lab.model.rope import rope_frequencies, rope_kind, rope_tables, rotate

# Added to the score of what a query may not see. Finite, so that a row that sees nothing (padding) is
# meaningless but never NaN; far below any real score, so that exp() of it is exactly 0.
HIDDEN = -1e4
LONG_CONTEXT = 2**15  # tokens, up to which the tables of rotary angles are made at once
ROWS = 256  # queries that attend together, see `attend`: fewer work less in vain, more are fewer calls of torch


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
            raise LabError(f"model config: dim {self.dim} is not divisible by n_heads {self.n_heads}; "
                           "change one of them or give head_dim")
        if self.n_heads % self.n_kv_heads:
            raise LabError(f"model config: n_heads {self.n_heads} is not divisible by n_kv_heads "
                           f"{self.n_kv_heads}; every KV head serves the same number of query heads")
        if self.head_size < 2 or self.head_size % 2:
            raise LabError(f"model config: head_dim {self.head_size} is odd or below 2; rotary positions "
                           "turn pairs, give an even head_dim")
        if self.rope_theta <= 0 or self.norm_eps < 0:
            raise LabError(f"model config: rope_theta {self.rope_theta} must be positive and norm_eps "
                           f"{self.norm_eps} not negative")
        try:
            turns, loudness = rope_frequencies(self.head_size, self.rope_theta, self.max_seq_len, self.rope_scaling)
            possible = bool(turns.isfinite().all()) and math.isfinite(loudness)
        except (ArithmeticError, ValueError):  # a logarithm of 0, a division by 0
            possible = False
        if not possible:
            raise LabError(f"model config: rope_theta {self.rope_theta} and rope scaling {self.rope_scaling} give "
                           "angles that are no numbers; take those that the model was trained with")

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
    "mini": ModelConfig(1024, 128, 4, 4, 2, 384, max_seq_len=1024),
    "nano": ModelConfig(512, 32, 2, 4, 2, 64, max_seq_len=256),
}


def causal_mask(q_len: int, k_len: int, device: torch.device | str = "cpu") -> Tensor:
    """(1, 1, q_len, k_len), True = may look; the queries are the last q_len of k_len positions."""
    return torch.ones(q_len, k_len, dtype=torch.bool, device=device).tril(k_len - q_len)[None, None]


def document_mask(segments: Tensor) -> Tensor:
    """Packed documents do not see each other: causal within a segment. segments (batch, seq) numbers each
    token's document from 1, with 0 for padding -> (batch, 1, seq, seq)."""
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
    return same.tril()[:, None]


def document_positions(segments: Tensor) -> Tensor:
    """Positions that start again at 0 in each run of equal segments. (batch, seq) -> (batch, seq)."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - (index * starts).cummax(1).values


def left_padding_mask(padding: Tensor, q_len: int, k_len: int) -> Tensor:
    """Causal, and blind to the first padding[i] positions of row i. padding (batch,) counts of tokens
    -> (batch, 1, q_len, k_len); the queries are the last q_len of k_len positions."""
    real = torch.arange(k_len, device=padding.device) >= padding[:, None]  # (batch, k_len)
    return causal_mask(q_len, k_len, padding.device) & real[:, None, None, :]


def score_bias(mask: Tensor, config: ModelConfig, dtype: torch.dtype) -> list[tuple[int, Tensor]]:
    """What `attend` adds to scores: 0 where mask (batch or 1, 1, seq, k_len) is True, else HIDDEN.

    For each block of ROWS queries the first key that any of them may see, and a tensor (batch * n_kv_heads or 1,
    group * rows, keys) from that key to the block's own last position: no query looks ahead, and in packed short
    documents most keys belong to documents that ended before the block.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, HIDDEN)
    batch, _, seq, k_len = mask.shape
    blocks = []
    for start in range(0, seq, ROWS):
        end = min(start + ROWS, seq)
        # 0 if nothing is to be seen at all, and for one query, whose keys are few. Rounded down: a product of a new
        # shape is compiled first, and a batch's blocks would bring new ones all the time.
        first = int(mask[:, 0, start:end].any(0).any(0).int().argmax()) // 64 * 64 if seq > 1 else 0
        block = bias[:, :, None, start:end, first:k_len - seq + end]  # (batch, 1, 1, rows, keys)
        block = block.expand(-1, config.n_kv_heads if batch > 1 else 1, config.group, -1, -1)
        blocks.append((first, block.reshape(-1, config.group * (end - start), block.shape[-1])))
    return blocks


def attend(q: Tensor, k: Tensor, v: Tensor, bias: list[tuple[int, Tensor]]) -> Tensor:
    """softmax(q k' / sqrt(head_dim) + bias) v, in blocks of queries small enough for the processor's cache.

    q (batch, n_heads, seq, head_dim), k and v (batch, n_kv_heads, k_len, head_dim) -> the shape of q. The
    query heads of a KV head become further rows of its product, so that no key or value is repeated. Training
    on a CPU, this takes about half the time of scaled_dot_product_attention.
    """
    batch, n_kv_heads, k_len, size = k.shape
    seq = q.shape[2]
    q = q.reshape(batch * n_kv_heads, -1, seq, size)  # (batch * n_kv_heads, group, seq, head_dim)
    k, v = k.reshape(-1, k_len, size).transpose(1, 2), v.reshape(-1, k_len, size)
    outputs = []
    for i, (first, block) in enumerate(bias):
        rows = q[:, :, i * ROWS:(i + 1) * ROWS]
        end = first + block.shape[2]
        scores = torch.baddbmm(block, rows.reshape(q.shape[0], -1, size), k[:, :, first:end], alpha=size ** -0.5)
        outputs.append((scores.softmax(-1) @ v[:, first:end]).view(rows.shape))
    whole = torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]
    return whole.view(batch, -1, seq, size)


def no_row(token: int, vocab_size: int) -> LabError:
    return LabError(f"the text holds token {token}, the model has rows for {vocab_size} only: tokenizer and model do "
                    "not belong together; open the model with the tokenizer that it was saved with")


class KVCache:
    """Keys and values of the tokens seen so far, in memory reserved for `max_len` tokens a row."""

    def __init__(self, config: ModelConfig, batch: int, max_len: int, dtype: torch.dtype = torch.float32,
                 device: torch.device | str = "cpu"):
        shape = (config.n_layers, batch, config.n_kv_heads, max_len, config.head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def max_len(self) -> int:
        return self.keys.shape[3]

    def append(self, layer: int, k: Tensor, v: Tensor, k_len: int) -> tuple[Tensor, Tensor]:
        """Store k and v (batch, n_kv_heads, seq, head_dim) of new tokens; return the first k_len of all.

        `length` moves on in Llama.hidden, once for all layers. Raises LabError when the cache is full.
        """
        end = self.length + k.shape[2]
        if end > self.max_len:
            raise LabError(f"KV cache: {end} tokens do not fit into the {self.max_len} reserved; "
                           "reserve more with max_len")
        self.keys[layer, :, :, self.length:end] = k
        self.values[layer, :, :, self.length:end] = v
        return self.keys[layer, :, :, :k_len], self.values[layer, :, :, :k_len]

    def keep_rows(self, rows: Tensor) -> None:
        """Drop the other rows of the batch. rows (n,) are indices."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def grow(self, n: int) -> None:
        """Reserve memory for n more tokens a row."""
        self.keys, self.values = F.pad(self.keys, (0, 0, 0, n)), F.pad(self.values, (0, 0, 0, n))


class Linear(nn.Linear):
    """Without bias, and without weights of its own: Llama.init_weights draws them all from one seed."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)

    def reset_parameters(self) -> None:
        pass


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_size
        # One product gives queries, keys and values, in this order of heads.
        self.qkv = Linear(config.dim, (self.n_heads + 2 * self.n_kv_heads) * self.head_dim)
        self.out = Linear(self.n_heads * self.head_dim, config.dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: list[tuple[int, Tensor]], cache: KVCache | None,
                layer: int) -> Tensor:
        """x (batch, seq, dim) -> the same shape. `bias` is of `score_bias`."""
        batch, seq, _ = x.shape
        # (batch, n_heads + 2 n_kv_heads, seq, head_dim)
        heads = self.qkv(x).view(batch, seq, -1, self.head_dim).transpose(1, 2)
        turned = rotate(heads[:, :self.n_heads + self.n_kv_heads], cos, sin)
        q, k = turned.split([self.n_heads, self.n_kv_heads], 1)
        v = heads[:, self.n_heads + self.n_kv_heads:]
        if cache is not None:
            k, v = cache.append(layer, k, v, bias[-1][0] + bias[-1][1].shape[2])
        y = attend(q, k, v, bias).transpose(1, 2).reshape(batch, seq, -1)
        return self.out(y)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, dim: int, ffn_dim: int):
        super().__init__()
        self.gate, self.up, self.down = Linear(dim, ffn_dim), Linear(dim, ffn_dim), Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each normalised before and added to what came in."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config.dim, config.ffn_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: list[tuple[int, Tensor]], cache: KVCache | None,
                layer: int) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, bias, cache, layer)
        return x + self.ffn(self.ffn_norm(x))


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

    def hidden(self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None,
               cache: KVCache | None = None) -> Tensor:
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
                raise LabError(f"the model reads at most {self.config.context} tokens, here are {k_len}; "
                               "shorten the text or choose a model with a longer context (max_seq_len)")
            positions = torch.arange(past, k_len, device=tokens.device)[None]
        if mask is None:
            mask = causal_mask(tokens.shape[1], k_len, tokens.device)
        highest = int(tokens.max()) if tokens.device.type == "cpu" and tokens.numel() else 0  # a GPU would wait for it
        if highest >= self.config.vocab_size:
            raise no_row(highest, self.config.vocab_size)
        x = self.embed(tokens)  # (batch, seq, dim)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        cos, sin = (table.to(dtype) for table in self.rope_at(positions))
        bias = score_bias(mask, self.config, dtype)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, bias, cache, i)
        if cache is not None:
            cache.length = k_len
        return self.norm(x)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:
        """Logits of each next token. tokens (batch, seq) -> (batch, seq, vocab); see `hidden`."""
        return self.lm_head(self.hidden(tokens, positions, mask, cache))
