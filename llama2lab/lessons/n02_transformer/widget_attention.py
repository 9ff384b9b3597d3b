"""Attention explorer: who looks at whom in a real model, heads grouped by the KV head they share, the cache growing
token by token (Llama 2, section 2.2 and A.2.1)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import lru_cache

import ipywidgets as w
from torch import Tensor

from llama2lab.lab.explorer import Explorer, wide
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
        self.stage = w.Dropdown(options=list(stages), description="model", **wide())
        self.question = w.Text(question, description="question", continuous_update=False, **wide())
        self.layer = w.IntSlider(0, min=0, max=model.config.n_layers - 1, description="layer", **wide())
        self.step = w.IntSlider(LONGEST, min=1, max=LONGEST, description="tokens so far", **wide())
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
            maps = "".join(
                f'<div style="flex: 1 1 280px; max-width: 420px; margin: 4px 12px 4px 0">head {h}'
                + heatmap(
                    visible(weights[layer, h], step),
                    f"attention weights of head {h}, query by key",
                    names,
                    names,
                    colour,
                    cell=14,
                    most=0.7,
                )
                + "</div>"
                for h in heads
            )
            groups += (
                f'<div style="border-left: 5px solid {colour}; padding-left: 8px; margin: 6px 0; color: '
                f'var(--jp-content-font-color1, inherit)">heads that share KV head {g}'
                f'<div style="display: flex; flex-wrap: wrap">{maps}</div></div>'
            )
        newest = weights[layer, :, step - 1, :step].tolist()
        row = heatmap(
            newest,
            "what the newest token looks at, by head",
            [f"head {h}" for h in range(config.n_heads)],
            names[:step],
            cell=17,
            colour=GREY,
            most=0.7,
        )
        wide = self.lab.model(self.stage.value).embed.weight.element_size()
        said = html.escape(tame(self.lab.tokenizer.decode(ids[:step])))
        return (
            f"<p>{step} of {len(ids)} tokens: <code>{said}</code></p>{groups}"
            f"<p>What the newest token, <code>{html.escape(tame(names[step - 1]))}</code>, looks at:</p>{row}"
            f"<p>KV cache so far, bytes ({wide} a number, {config.n_layers} layers):</p>"
            + bars(
                [(name, float(size)) for name, size in grown_cache(config, step, wide)],
                "size of the cache",
                top=float(grown_cache(config, len(ids), wide)[0][1]),
                colours=(SKY, ORANGE, GREEN),
            )
        )
