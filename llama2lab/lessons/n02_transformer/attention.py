"""Attention explorer: who looks at whom in a real model, heads grouped by the KV head they share, the cache growing
token by token (Llama 2, section 2.2 and A.2.1)."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import ipywidgets as w
import torch
from torch import Tensor

from llama2lab.lab.explorer import Explorer
from llama2lab.lab.pictures import COLOURS, bars, heatmap
from llama2lab.lessons.n02_transformer.calculator import cache_bytes
from llama2lab.model.attention import Attention, KVCache, causal_mask, score_bias
from llama2lab.model.chat import encode_chat
from llama2lab.model.generate import generate
from llama2lab.model.network import Block, Llama, ModelConfig
from llama2lab.model.rope import rotate
from llama2lab.report.look import GREEN, GREY, ORANGE, SKY, tame

if TYPE_CHECKING:
    from llama2lab.lab.finished import Finished

LONGEST = 24  # tokens shown: more would be too small to see
LETTERS = 120  # of a typed question


@torch.no_grad()
def attention_weights(model: Llama, ids: Sequence[int]) -> Tensor:
    """The weights by which every head of every layer mixes the values, (n_layers, n_heads, seq, seq): row i is what the
    token at place i looks at, it adds up to 1, and what the mask hides is exactly 0."""
    return attention_parts(model, ids)[0]


@torch.no_grad()
def attention_parts(model: Llama, ids: Sequence[int]) -> tuple[Tensor, KVCache]:
    """`attention_weights`, and the cache that holds the keys and values of the same tokens."""
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
        scores = q @ k.transpose(1, 2) * config.head_size ** -0.5
        layers.append(scores.masked_fill(~mask[0], float("-inf")).softmax(-1))
    cache.length = seq
    return torch.stack(layers), cache


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
    return [(f"{kind}, {n} KV head" + "s" * (n > 1),
             cache_bytes(dataclasses.replace(config, n_kv_heads=n), tokens, 1, number_bytes))
            for kind, n in kinds.items()]


def visible(weights: Tensor, step: int) -> list[list[float | None]]:
    """One head's weights (seq, seq) after `step` tokens: None where the mask hides a key, or where no query is yet."""
    return [[value if j <= i < step else None for j, value in enumerate(row)] for i, row in enumerate(weights.tolist())]


class AttentionExplorer(Explorer):
    """A chat model reads a question and writes its answer; who looked at whom, head by head, step by step."""

    def __init__(self, lab: Finished, question: str = "What is the opposite of hot?",
                 stages: Sequence[str] = ("rlhf-v5", "sft")):
        self.lab = lab
        self._read = lru_cache(maxsize=16)(self._compute)
        wide: dict[str, Any] = {"style": {"description_width": "initial"}, "layout": w.Layout(width="320px")}
        model = lab.model(stages[0])
        self.stage = w.Dropdown(options=list(stages), description="model", **wide)
        self.question = w.Text(question, description="question", continuous_update=False, **wide)
        self.layer = w.IntSlider(0, min=0, max=model.config.n_layers - 1, description="layer", **wide)
        self.step = w.IntSlider(LONGEST, min=1, max=LONGEST, description="tokens so far", **wide)
        super().__init__("Attention explorer", [self.stage, self.question, self.layer, self.step], self._draw)

    def _compute(self, stage: str, question: str) -> tuple[list[int], Tensor]:
        """(ids of the question and the greedy answer, at most LONGEST; their weights)"""
        model, tokenizer = self.lab.model(stage), self.lab.tokenizer
        ids, _ = encode_chat(tokenizer, [{"role": "user", "content": question[:LETTERS]}], add_generation_prompt=True)
        if len(ids) < LONGEST:
            ids = ids + generate(model, [ids], LONGEST - len(ids), temperature=0.0)[0].tokens
        return ids[:LONGEST], attention_weights(model, ids[:LONGEST])

    def _draw(self) -> str:
        ids, weights = self._read(self.stage.value, self.question.value)
        config, names = self.lab.model(self.stage.value).config, words_of(self.lab.tokenizer, ids)
        step, layer = min(self.step.value, len(ids)), self.layer.value
        groups = ""
        for g in range(config.n_kv_heads):
            colour, heads = COLOURS[g % len(COLOURS)], range(g * config.group, (g + 1) * config.group)
            maps = "".join(f'<div style="flex: 1 1 280px; max-width: 420px; margin: 4px 12px 4px 0">head {h}' + heatmap(
                visible(weights[layer, h], step), f"attention weights of head {h}, query by key", names, names,
                colour, cell=14, most=0.7) + "</div>" for h in heads)
            groups += (f'<div style="border-left: 5px solid {colour}; padding-left: 8px; margin: 6px 0; color: '
                       f'var(--jp-content-font-color1, inherit)">heads that share KV head {g}'
                       f'<div style="display: flex; flex-wrap: wrap">{maps}</div></div>')
        newest = weights[layer, :, step - 1, :step].tolist()
        row = heatmap(newest, "what the newest token looks at, by head", [f"head {h}" for h in range(config.n_heads)],
                      names[:step], cell=17, colour=GREY, most=0.7)
        wide = self.lab.model(self.stage.value).embed.weight.element_size()
        said = html.escape(tame(self.lab.tokenizer.decode(ids[:step])))
        return (f"<p>{step} of {len(ids)} tokens: <code>{said}</code></p>{groups}"
                f"<p>What the newest token, <code>{html.escape(tame(names[step - 1]))}</code>, looks at:</p>{row}"
                f"<p>KV cache so far, bytes ({wide} a number, {config.n_layers} layers):</p>"
                + bars([(name, float(size)) for name, size in grown_cache(config, step, wide)],
                       "size of the cache", top=float(grown_cache(config, len(ids), wide)[0][1]),
                       colours=(SKY, ORANGE, GREEN)))
