"""Attention (Llama 2, sections 2.2 and A.2.1): grouped queries, rotary positions, masks and the KV cache.

`plain_attention` is to be read; `Attention.forward` gives the same numbers in half of the time, and is what runs.
Shapes are written (batch, seq, ...).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from llama2lab.engine.errors import LabError
from llama2lab.model.rope import rotate

# The score of what a query may not see, or what is added to it. Finite, so that a row that sees nothing (padding) is
# meaningless but never NaN; far below any real score, so that exp() of it is exactly 0.
HIDDEN = -1e4
ROWS = 256  # queries that attend together, see `attend`: fewer work less in vain, more are fewer calls of torch
Blocks = list[tuple[int, Tensor]]  # of `score_bias`
FEW_ROWS, LARGE_MATRIX = 32, 2**19  # rows and numbers of a product that `product` turns round


def plain_attention(
    attention: Attention,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    cache: KVCache | None = None,
    layer: int = 0,
) -> Tensor:
    """Attention as the paper writes it: the same as `attention(x, ...)`, step by step.

    Args:
        x: (batch, seq, dim), normalised.
        cos, sin: (batch or 1, 1, seq, head_dim), of the tokens' positions.
        mask: bool (batch or 1, 1, seq, k_len), True = may look.
        cache: keys and values of the tokens before, of this and the other layers.
    """
    batch, seq, _ = x.shape
    heads, kv_heads, size = attention.n_heads, attention.n_kv_heads, attention.head_dim
    q, k, v = attention.qkv(x).split([heads * size, kv_heads * size, kv_heads * size], -1)
    q = q.view(batch, seq, heads, size).transpose(1, 2)  # (batch, heads, seq, size)
    k = k.view(batch, seq, kv_heads, size).transpose(1, 2)  # (batch, kv_heads, seq, size)
    v = v.view(batch, seq, kv_heads, size).transpose(1, 2)  # (batch, kv_heads, seq, size)

    q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # turned by their positions; values are not
    if cache is not None:
        k, v = cache.append(layer, k, v, mask.shape[-1])  # (batch, kv_heads, k_len, size)

    k = k.repeat_interleave(heads // kv_heads, 1)  # (batch, heads, k_len, size): a group shares one KV head
    v = v.repeat_interleave(heads // kv_heads, 1)
    scores = q @ k.transpose(2, 3) / size**0.5  # (batch, heads, seq, k_len)
    weights = scores.masked_fill(~mask, HIDDEN).softmax(-1)
    mixed = weights @ v  # (batch, heads, seq, size)
    return attention.out(mixed.transpose(1, 2).reshape(batch, seq, heads * size))


# ---- masks: True where a query may look ----------------------------------------------------------------------------


def causal_mask(q_len: int, k_len: int, device: torch.device | str = "cpu") -> Tensor:
    """(1, 1, q_len, k_len); the queries are the last q_len of k_len positions."""
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


# ---- the cache -----------------------------------------------------------------------------------------------------


class KVCache:
    """Keys and values of the tokens seen so far, in memory reserved for `max_len` tokens a row."""

    def __init__(
        self,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        batch: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (n_layers, batch, n_kv_heads, max_len, head_dim)
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
            raise LabError(
                f"KV cache: {end} tokens do not fit into the {self.max_len} reserved; reserve more with max_len"
            )
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :k_len], self.values[layer, :, :, :k_len]

    def keep_rows(self, rows: Tensor) -> None:
        """Drop the other rows of the batch. rows (n,) are indices."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def grow(self, n: int) -> None:
        """Reserve memory for n more tokens a row."""
        self.keys, self.values = F.pad(self.keys, (0, 0, 0, n)), F.pad(self.values, (0, 0, 0, n))


# ---- what runs -----------------------------------------------------------------------------------------------------


def score_bias(mask: Tensor, n_heads: int, n_kv_heads: int, dtype: torch.dtype) -> Blocks:
    """What `attend` adds to scores: 0 where mask (batch or 1, 1, seq, k_len) is True, else HIDDEN.

    For each block of ROWS queries the first key that any of them may see, and a tensor (batch * n_kv_heads or 1,
    group * rows, keys) from that key to the block's own last position: no query looks ahead, and in packed short
    documents most keys belong to documents that ended before the block.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, HIDDEN)
    batch, _, seq, k_len = mask.shape
    group = n_heads // n_kv_heads
    blocks = []
    for start in range(0, seq, ROWS):
        end = min(start + ROWS, seq)
        # 0 if nothing is to be seen at all, and for one query, whose keys are few, and on a GPU, which would be waited
        # for. Rounded down: a product of a new shape is compiled first, and a batch's blocks would bring new ones all
        # the time.
        looked = seq > 1 and mask.device.type == "cpu"
        first = int(mask[:, 0, start:end].any(0).any(0).int().argmax()) // 64 * 64 if looked else 0
        block = bias[:, :, None, start:end, first : k_len - seq + end]  # (batch, 1, 1, rows, keys)
        block = block.expand(-1, n_kv_heads if batch > 1 else 1, group, -1, -1)
        blocks.append((first, block.reshape(-1, group * (end - start), block.shape[-1])))
    return blocks


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Blocks, kept: list[Tensor] | None = None) -> Tensor:
    """softmax(q k' / sqrt(head_dim) + bias) v, in blocks of queries small enough for the processor's cache.

    q (batch, n_heads, seq, head_dim), k and v (batch, n_kv_heads, k_len, head_dim) -> the shape of q. The
    query heads of a KV head become further rows of its product, so that no key or value is repeated. Training
    on a CPU, this takes about half the time of scaled_dot_product_attention. The weights of each block, (batch *
    n_kv_heads, group * rows, keys), are added to `kept`.
    """
    batch, n_kv_heads, k_len, size = k.shape
    queries = grouped(q, n_kv_heads)
    k, v = k.reshape(-1, k_len, size).transpose(1, 2), v.reshape(-1, k_len, size)
    outputs = []
    for i, (first, block) in enumerate(bias):
        rows = queries[:, :, i * ROWS : (i + 1) * ROWS]
        end = first + block.shape[2]
        scores = torch.baddbmm(block, rows.reshape(len(queries), -1, size), k[:, :, first:end], alpha=size**-0.5)
        weights = scores.softmax(-1)
        if kept is not None:
            kept.append(weights)
        outputs.append((weights @ v[:, first:end]).view(rows.shape))
    whole = torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]
    return whole.view(batch, -1, q.shape[2], size)


class Attended(Function):
    """From `qkv`, queries, keys and values side by side, to the mix of the values: all that stands between the two
    products with weights in `plain_attention`, its gradient by hand (see fused.py). No cache.

    qkv (batch, seq, (n_heads + 2 n_kv_heads) * head_dim), cos and sin (batch or 1, 1, seq, head_dim), `bias` of
    `score_bias` -> (batch, seq, n_heads * head_dim).
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, bias: Blocks, n_heads: int, n_kv_heads: int) -> Tensor:
        batch, seq, _ = qkv.shape
        heads = qkv.view(batch, seq, n_heads + 2 * n_kv_heads, -1).transpose(1, 2)  # (batch, heads, seq, size)
        turned = qkv.new_empty(batch, n_heads + n_kv_heads, seq, heads.shape[-1])
        turn(heads[:, :-n_kv_heads], cos, sin, turned)  # values are not
        q, k = turned.split([n_heads, n_kv_heads], 1)
        v = heads[:, -n_kv_heads:].contiguous()
        weights: list[Tensor] = []
        y = attend(q, k, v, bias, weights)  # (batch, n_heads, seq, size)
        ctx.save_for_backward(q, k, v, cos, sin, *weights)
        ctx.firsts = [first for first, _ in bias]
        return y.transpose(1, 2).reshape(batch, seq, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cos, sin, *weights = ctx.saved_tensors
        batch, n_heads, seq, size = q.shape
        n_kv_heads = k.shape[1]
        above = grouped(gradient.view(batch, seq, n_heads, size).transpose(1, 2), n_kv_heads)
        queries, k, v = grouped(q, n_kv_heads), k.flatten(0, 1), v.flatten(0, 1)
        of_q, of_k, of_v = torch.empty_like(queries), torch.zeros_like(k), torch.zeros_like(v)
        for i, (first, p) in enumerate(zip(ctx.firsts, weights, strict=True)):
            rows, keys = slice(i * ROWS, (i + 1) * ROWS), slice(first, first + p.shape[2])
            g, asked = above[:, :, rows].flatten(1, 2), queries[:, :, rows].flatten(1, 2)
            of_v[:, keys] += p.transpose(1, 2) @ g
            of_scores = torch._softmax_backward_data(g @ v[:, keys].transpose(1, 2), p, -1, p.dtype)
            of_q[:, :, rows] = (of_scores @ k[:, keys]).view(len(k), -1, g.shape[1] * n_kv_heads // n_heads, size)
            of_k[:, keys] += of_scores.transpose(1, 2) @ asked
        of_qkv = gradient.new_empty(batch, seq, (n_heads + 2 * n_kv_heads) * size)
        heads = of_qkv.view(batch, seq, -1, size).transpose(1, 2)
        turned = torch.cat([of_q.view(batch, n_heads, seq, size), of_k.view(batch, n_kv_heads, seq, size)], 1)
        turn(turned.mul_(size**-0.5), cos, -sin, heads[:, :-n_kv_heads])  # back by the same angle
        heads[:, -n_kv_heads:] = of_v.view(batch, n_kv_heads, seq, size)
        return of_qkv, None, None, None, None, None


def grouped(q: Tensor, n_kv_heads: int) -> Tensor:
    """(batch, n_heads, seq, head_dim) -> (batch * n_kv_heads, group, seq, head_dim)."""
    return q.reshape(q.shape[0] * n_kv_heads, -1, q.shape[2], q.shape[3])


def turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """rope.rotate(x, cos, sin), written into `out`."""
    torch.mul(x, cos, out=out)
    out.add_(x.roll(x.shape[-1] // 2, -1).mul_(sin))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear(x, weight). x (..., n_in), weight (n_out, n_in) -> (..., n_out).

    A few rows by a large matrix on a CPU, as in writing token by token, are computed the other way round: the library
    beneath is up to a third faster where the matrix is on the left.
    """
    if weight.numel() < LARGE_MATRIX or torch.is_grad_enabled() or x.device.type != "cpu":
        return F.linear(x, weight)
    rows, float32 = x.numel() // x.shape[-1], x.dtype == weight.dtype == torch.float32
    if not 1 < rows <= FEW_ROWS or not float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight)
    return (weight @ x.reshape(rows, -1).T).T.contiguous().view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """Without bias, and without weights of its own: Llama.init_weights draws them all from one seed."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) with rotary positions; `plain_attention` is the same to be read."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, head_dim: int):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        # One product gives queries, keys and values, in this order of heads.
        self.qkv = Linear(dim, (n_heads + 2 * n_kv_heads) * head_dim)
        self.out = Linear(n_heads * head_dim, dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Blocks, cache: KVCache | None, layer: int) -> Tensor:
        """x (batch, seq, dim) -> the same shape. `bias` is of `score_bias`."""
        if cache is None and torch.is_grad_enabled():
            return self.out(Attended.apply(self.qkv(x), cos, sin, bias, self.n_heads, self.n_kv_heads))
        batch, seq, _ = x.shape
        # (batch, n_heads + 2 n_kv_heads, seq, head_dim)
        heads = self.qkv(x).view(batch, seq, -1, self.head_dim).transpose(1, 2)
        turned = rotate(heads[:, : self.n_heads + self.n_kv_heads], cos, sin)
        q, k = turned.split([self.n_heads, self.n_kv_heads], 1)
        v = heads[:, self.n_heads + self.n_kv_heads :]
        if cache is not None:
            k, v = cache.append(layer, k, v, bias[-1][0] + bias[-1][1].shape[2])
        y = attend(q, k, v, bias).transpose(1, 2).reshape(batch, seq, -1)
        return self.out(y)
