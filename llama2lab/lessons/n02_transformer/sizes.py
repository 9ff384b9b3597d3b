"""How large models and their caches are: what sharing KV heads saves, at Llama 2's sizes (sections 2.2 and A.2.1).

    cache = 2 (keys and values) x layers x KV heads x head size x tokens x sequences x bytes a number

On several GPUs each holds its share of the KV heads, but at least one: with fewer KV heads than GPUs they are copied.
The account knows weights and cache alone; a server also needs room for activations.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from llama2lab.lab.pictures import number
from llama2lab.model.network import SIZES, ModelConfig

GIB = 2**30
GPU_GIB = 80.0  # an A100 of 80 GB
FIGURE_24 = ((256, 1024), (2048, 128))  # context and batch at which MHA ran out of memory: the report's figure 24
FIGURE_24_GPUS, FIGURE_24_NEW = 8, 128  # GPUs, and tokens written


def parameters(c: ModelConfig) -> int:
    """Weights of a model of this shape, embeddings and norms included."""
    attention = c.dim * c.head_size * (2 * c.n_heads + 2 * c.n_kv_heads)
    layer = attention + 3 * c.dim * c.ffn_dim + 2 * c.dim
    return c.n_layers * layer + c.vocab_size * c.dim * (1 if c.tie_embeddings else 2) + c.dim


def with_kv_heads(config: ModelConfig, n_kv_heads: int, matched: bool = True, multiple: int = 8) -> ModelConfig:
    """The same model with another number of KV heads. `matched`: with a feed-forward wider by what that saves (to a
    multiple of 8), so that the parameters stay, as in the report's comparison (A.2.1)."""
    saved = 2 * config.head_size * (config.n_kv_heads - n_kv_heads) / 3  # columns of gate, up and down together
    wider = max(1 - config.ffn_dim, multiple * round(saved / multiple)) if matched else 0
    return dataclasses.replace(config, n_kv_heads=n_kv_heads, ffn_dim=config.ffn_dim + wider)


def parameter_rows(c: ModelConfig) -> list[tuple[str, str, int, int]]:
    """(part, shape, how often it stands in the model, parameters in all): they add up to `parameters`."""
    heads, kv = c.n_heads * c.head_size, c.n_kv_heads * c.head_size
    name = "embedding" + (", also the output" if c.tie_embeddings else "")
    rows = [(name, f"{c.vocab_size} x {c.dim}", 1, c.vocab_size * c.dim)]
    for name, shape, size in (
        ("RMSNorm before attention", f"{c.dim}", c.dim),
        ("queries", f"{c.dim} x {heads}", c.dim * heads),
        ("keys and values", f"2 of {c.dim} x {kv}", 2 * c.dim * kv),
        ("output of attention", f"{heads} x {c.dim}", heads * c.dim),
        ("RMSNorm before feed-forward", f"{c.dim}", c.dim),
        ("feed-forward: gate, up; down", f"2 of {c.dim} x {c.ffn_dim}; {c.ffn_dim} x {c.dim}", 3 * c.dim * c.ffn_dim),
    ):
        rows.append((name, shape, c.n_layers, size * c.n_layers))
    rows.append(("RMSNorm at the end", str(c.dim), 1, c.dim))
    if not c.tie_embeddings:
        rows.append(("output", f"{c.dim} x {c.vocab_size}", 1, c.vocab_size * c.dim))
    return rows


def cache_bytes(config: ModelConfig, tokens: int, batch: int = 1, number_bytes: int = 2, gpus: int = 1) -> int:
    """Bytes of the KV cache of `batch` sequences of `tokens` tokens, on all GPUs together."""
    return 2 * config.n_layers * max(config.n_kv_heads, gpus) * config.head_size * tokens * batch * number_bytes


def largest_batch(
    config: ModelConfig, tokens: int, number_bytes: int = 2, gpus: int = 1, gpu_gib: float = GPU_GIB
) -> int:
    """The most sequences of `tokens` tokens whose cache fits beside the weights; 0 if not even these fit."""
    room = gpus * gpu_gib * GIB - parameters(config) * number_bytes
    return max(0, int(room // cache_bytes(config, tokens, 1, number_bytes, gpus)))


def variants(config: ModelConfig, n_kv_heads: int, matched: bool = True) -> dict[str, ModelConfig]:
    """MHA, GQA with this number of KV heads, and MQA, of one size."""
    heads = {"MHA": config.n_heads, "GQA": n_kv_heads, "MQA": 1}
    return {kind: with_kv_heads(config, n, matched) for kind, n in heads.items()}


def out_of_memory(size: str = "34b") -> list[dict[str, Any]]:
    """The two places of the report's figure 24 where MHA ran out of memory, by this account: weights and cache as a
    share of the memory of its 8 GPUs."""
    rows = []
    for context, batch in FIGURE_24:
        for kind, config in variants(SIZES[size], 8).items():
            used = 2 * parameters(config) + cache_bytes(config, context + FIGURE_24_NEW, batch, 2, FIGURE_24_GPUS)
            share = used / (FIGURE_24_GPUS * GPU_GIB * GIB)
            rows.append({"context": context, "batch": batch, "kind": kind, "gib": used / GIB, "share": share})
    return rows


def size_in_words(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{number(count / unit)} {name}"
    return f"{count:.0f} bytes"
