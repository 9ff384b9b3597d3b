"""What every part of a model takes and gives while it reads one sequence: recorded from the library's own forward pass
by hooks, for the pictures of notebook 02. Nothing is computed twice but what lies between two parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llama2lab.lab.finished import Finished
from llama2lab.lessons.n02_transformer.attention import blocks
from llama2lab.model.attention import attend, causal_mask, score_bias
from llama2lab.model.chat import encode_chat
from llama2lab.model.network import Llama
from llama2lab.model.rope import rotate


@dataclass(frozen=True)
class Layer:
    """One layer's tensors, rows in the order of the tokens. A row never depends on later ones."""

    x: Tensor  # (seq, dim), the residual stream that comes in
    normal: Tensor  # (seq, dim), normalised for attention
    q: Tensor  # (n_heads, seq, head_dim)
    k: Tensor  # (n_kv_heads, seq, head_dim)
    v: Tensor  # (n_kv_heads, seq, head_dim)
    q_turned: Tensor  # of the shape of q
    k_turned: Tensor  # of the shape of k, as the cache keeps it
    scores: Tensor  # (n_heads, seq, seq), before the mask
    weights: Tensor  # (n_heads, seq, seq)
    mixed: Tensor  # (n_heads, seq, head_dim)
    attended: Tensor  # (seq, dim), what attention adds
    middle: Tensor  # (seq, dim), the residual stream after attention
    ffn_normal: Tensor  # (seq, dim)
    gate: Tensor  # (seq, ffn_dim), before the silu
    up: Tensor  # (seq, ffn_dim)
    gated: Tensor  # (seq, ffn_dim), silu(gate) * up
    fed: Tensor  # (seq, dim), what the feed-forward adds
    y: Tensor  # (seq, dim), the residual stream that goes on


@dataclass(frozen=True)
class Seen:
    """One pass: `embedded` and `normal` (seq, dim), before the first layer and after the last norm; `logits`
    (seq, vocab)."""

    embedded: Tensor
    layers: list[Layer]
    normal: Tensor
    logits: Tensor


@torch.no_grad()
def see(model: Llama, ids: Sequence[int]) -> Seen:
    """Read `ids` with the model and keep what its parts took and gave, on the CPU.

    Raises LabError for a sequence that is longer than the context, and for a token that the model does not have.
    """
    took: dict[str, Tensor] = {}
    gave: dict[str, Tensor] = {}

    def record(name: str):
        def hook(_, args, output):
            took[name], gave[name] = args[0][0].float().cpu(), output[0].float().cpu()

        return hook

    c, seq, weight = model.config, len(ids), model.embed.weight
    tokens = torch.tensor([list(ids)], device=weight.device)
    cache = model.new_cache(1, seq)
    hooks = [part.register_forward_hook(record(name)) for name, part in model.named_modules() if name]
    try:
        logits = model(tokens, cache=cache)[0].float().cpu()
    finally:
        for hook in hooks:
            hook.remove()

    cos, sin = (table[0].float().cpu() for table in model.rope_at(torch.arange(seq, device=weight.device)[None]))
    mask = causal_mask(seq, seq)
    layers = []
    for i, _ in enumerate(blocks(model)):
        at = f"layers.{i}."
        heads = gave[at + "attention.qkv"].view(seq, -1, c.head_size).transpose(0, 1)
        q, k, v = heads.split([c.n_heads, c.n_kv_heads, c.n_kv_heads])
        q_turned, k_turned = rotate(q, cos, sin), cache.keys[i, 0].float().cpu()
        weights: list[Tensor] = []
        attend(q_turned[None], k_turned[None], v[None], score_bias(mask, c.n_heads, c.n_kv_heads, q.dtype), weights)
        layers.append(
            Layer(
                x=took[at + "attention_norm"],
                normal=gave[at + "attention_norm"],
                q=q,
                k=k,
                v=v,
                q_turned=q_turned,
                k_turned=k_turned,
                scores=q_turned @ k_turned.repeat_interleave(c.group, 0).transpose(1, 2) / c.head_size**0.5,
                weights=torch.cat([block.view(c.n_heads, -1, seq) for block in weights], 1),
                mixed=took[at + "attention.out"].view(seq, c.n_heads, c.head_size).transpose(0, 1),
                attended=gave[at + "attention.out"],
                middle=took[at + "ffn_norm"],
                ffn_normal=gave[at + "ffn_norm"],
                gate=gave[at + "ffn.gate"],
                up=gave[at + "ffn.up"],
                gated=took[at + "ffn.down"],
                fed=gave[at + "ffn.down"],
                y=gave[f"layers.{i}"],
            )
        )
    return Seen(gave["embed"], layers, gave["norm"], logits)


def short_question(lab: Finished, stage: str = "rlhf-v5") -> tuple[str, list[int]]:
    """A held-out question of the town and its tokens, as the chat model of `stage` reads it. The rule: of those that
    it answered rightly, a question for a fact rather than another; the one of fewest tokens; of several, the one that
    the oracle scored highest; then the first."""

    def ids_of(row: dict) -> list[int]:
        return encode_chat(lab.tokenizer, row["messages"], add_generation_prompt=True)[0]

    # Texts of many letters are no candidates: encoding all of them would take seconds.
    rows = sorted(
        (row for row in lab.rows(stage, "answers.jsonl") if len(row["messages"]) == 1),
        key=lambda row: (not row["correct"], row["skill"] != "facts", len(row["messages"][0]["content"])),
    )[:40]
    best = min(rows, key=lambda r: (not r["correct"], r["skill"] != "facts", len(ids_of(r)), -r["score"]))
    return best["messages"][0]["content"], ids_of(best)
