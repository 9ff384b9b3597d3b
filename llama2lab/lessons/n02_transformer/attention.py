"""Attention explorer: who looks at whom in a real model, heads grouped by the KV head they share, the cache growing
token by token (Llama 2, section 2.2 and A.2.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from llama2lab.lessons.n02_transformer.sizes import cache_bytes
from llama2lab.model.attention import Attention, causal_mask, score_bias
from llama2lab.model.network import Block, Llama, ModelConfig
from llama2lab.model.rope import rotate


@torch.no_grad()
def attention_weights(model: Llama, ids: Sequence[int]) -> Tensor:
    """The weights by which every head of every layer mixes the values, (n_layers, n_heads, seq, seq): row i is what the
    token at place i looks at, it adds up to 1, and what the mask hides is exactly 0."""
    config, device = model.config, model.embed.weight.device
    tokens = torch.tensor([list(ids)], device=device)  # (1, seq)
    seq = tokens.shape[1]
    x = model.embed(tokens)
    cos, sin = (table.to(x.dtype) for table in model.rope_at(torch.arange(seq, device=device)[None]))
    mask = causal_mask(seq, seq, device)
    bias = score_bias(mask, config.n_heads, config.n_kv_heads, x.dtype)
    cache = model.new_cache(1, seq)
    layers = []
    for i, layer in enumerate(blocks(model)):
        q = queries(layer.attention, layer.attention_norm(x), cos, sin)
        x = layer(x, cos, sin, bias, cache, i)  # the library's own step; it leaves its keys in the cache
        k = cache.keys[i, 0].repeat_interleave(config.group, 0)  # (n_heads, seq, head_dim)
        scores = q @ k.transpose(1, 2) * config.head_size**-0.5
        layers.append(scores.masked_fill(~mask[0], float("-inf")).softmax(-1))
    return torch.stack(layers)


def blocks(model: Llama) -> list[Block]:
    """The layers of a model, as what they are."""
    return [cast(Block, layer) for layer in model.layers]


def queries(attention: Attention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turned queries of a normalised input x (1, seq, dim): (n_heads, seq, head_dim)."""
    size = attention.n_heads * attention.head_dim
    q = (x @ attention.qkv.weight[:size].T).view(1, x.shape[1], -1, attention.head_dim).transpose(1, 2)
    return rotate(q, cos, sin)[0]


def words_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token says, to stand beside a row or a column."""
    return [tokenizer.decode([i]).strip() or "␣" for i in ids]


def grown_cache(config: ModelConfig, tokens: int, number_bytes: int) -> list[tuple[str, int]]:
    """Bytes of the cache of one sequence so far: as this model keeps it, and as others would."""
    kinds = {"MHA": config.n_heads, "this model": config.n_kv_heads, "MQA": 1}
    return [
        (
            f"{kind}, {n} KV head" + "s" * (n > 1),
            cache_bytes(dataclasses.replace(config, n_kv_heads=n), tokens, 1, number_bytes),
        )
        for kind, n in kinds.items()
    ]


def visible(weights: Tensor, step: int) -> list[list[float | None]]:
    """One head's weights (seq, seq) after `step` tokens: None where the mask hides a key, or where no query is yet."""
    return [[value if j <= i < step else None for j, value in enumerate(row)] for i, row in enumerate(weights.tolist())]
