"""Attention explorer: who looks at whom in a real model, heads grouped by the KV head they share, the cache growing
token by token (Llama 2, section 2.2 and A.2.1)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import lru_cache

import ipywidgets as w
from torch import Tensor

from llama2lab.lab.explorer import Explorer, dropdown, slider, wide
from llama2lab.lab.finished import Finished
from llama2lab.lab.pictures import COLOURS, bars, heatmap
from llama2lab.lessons.n02_transformer.attention import attention_weights, grown_cache, visible, words_of
from llama2lab.model.chat import encode_chat
from llama2lab.model.generate import generate
from llama2lab.report.look import GREEN, GREY, ORANGE, SKY, tame

LONGEST = 24  # tokens shown: more would be too small to see
LETTERS = 120  # of a typed question


class AttentionExplorer(Explorer):
    """A chat model reads a question and writes its answer; who looked at whom, head by head, step by step."""

    def __init__(
        self, lab: Finished, question: str = "What is the opposite of hot?", stages: Sequence[str] = ("rlhf-v5", "sft")
    ):
        self.lab = lab
        self._read = lru_cache(maxsize=16)(self._compute)
        model = lab.model(stages[0])
        self.stage = dropdown("model", stages)
        self.question = w.Text(question, description="question", continuous_update=False, **wide())
        self.layer = slider("layer", 0, 0, model.config.n_layers - 1)
        self.step = slider("tokens so far", LONGEST, 1, LONGEST)
        super().__init__("Attention explorer", [self.stage, self.question, self.layer, self.step])

    def _compute(self, stage: str, question: str) -> tuple[list[int], Tensor]:
        """(ids of the question and the greedy answer, at most LONGEST; their weights)"""
        model, tokenizer = self.lab.model(stage), self.lab.tokenizer
        ids, _ = encode_chat(tokenizer, [{"role": "user", "content": question[:LETTERS]}], add_generation_prompt=True)
        if len(ids) < LONGEST:
            ids = ids + generate(model, [ids], LONGEST - len(ids), temperature=0.0)[0].tokens
        return ids[:LONGEST], attention_weights(model, ids[:LONGEST])

    def draw(self) -> str:
        ids, weights = self._read(self.stage.value, self.question.value)
        config, names = self.lab.model(self.stage.value).config, words_of(self.lab.tokenizer, ids)
        step, layer = min(self.step.value, len(ids)), self.layer.value
        groups = ""
        for g in range(config.n_kv_heads):
            colour, heads = COLOURS[g % len(COLOURS)], range(g * config.group, (g + 1) * config.group)
            maps = ""
            for h in heads:
                seen, words = visible(weights[layer, h], step), f"attention weights of head {h}, query by key"
                maps += (
                    f'<div style="flex: 1 1 400px; max-width: 460px; margin: 4px 12px 4px 0">head {h}'
                    f"{heatmap(seen, words, names, names, colour, cell=14, most=0.7)}</div>"
                )
            groups += (
                f'<div style="border-left: 5px solid {colour}; padding-left: 8px; margin: 6px 0; color: '
                f'var(--jp-content-font-color1, inherit)">heads that share KV head {g}'
                f'<div style="display: flex; flex-wrap: wrap">{maps}</div></div>'
            )
        newest, of = weights[layer, :, step - 1, :step].tolist(), [f"head {h}" for h in range(config.n_heads)]
        words = "what the newest token looks at, by head"
        row = heatmap(newest, words, of, names[:step], cell=17, colour=GREY, most=0.7)
        wide = self.lab.model(self.stage.value).embed.weight.element_size()
        top = grown_cache(config, len(ids), wide)[0][1]
        said = html.escape(tame(self.lab.tokenizer.decode(ids[:step])))
        return (
            f"<p>{step} of {len(ids)} tokens: <code>{said}</code></p>{groups}"
            f"<p>What the newest token, <code>{html.escape(tame(names[step - 1]))}</code>, looks at:</p>{row}"
            f"<p>KV cache so far, bytes ({wide} a number, {config.n_layers} layers):</p>"
            + bars(grown_cache(config, step, wide), "size of the cache", top, (SKY, ORANGE, GREEN))
        )
