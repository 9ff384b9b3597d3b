"""GQA and cache calculator: what sharing KV heads saves, at Llama 2's sizes (sections 2.2 and A.2.1)."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from llama2lab.lab.explorer import Explorer, wide
from llama2lab.lab.pictures import bars, table
from llama2lab.lessons.n02_transformer.sizes import (
    GIB,
    GPU_GIB,
    cache_bytes,
    largest_batch,
    parameters,
    size_in_words,
    variants,
)
from llama2lab.model.network import SIZES
from llama2lab.report.look import BLUE, GREEN, GREY, ORANGE

KINDS = {"MHA": BLUE, "GQA": ORANGE, "MQA": GREEN}


class CacheCalculator(Explorer):
    """Sliders for every factor of the cache; MHA, GQA and MQA beside each other."""

    def __init__(self) -> None:
        self.size = w.Dropdown(options=list(SIZES), value="70b", description="model", **wide())
        self.kv = w.SelectionSlider(options=self._divisors(), value=8, description="KV heads of GQA", **wide())
        self.context = w.SelectionSlider(
            options=[2**n for n in range(8, 17)], value=4096, description="tokens each", **wide()
        )
        self.batch = w.SelectionSlider(options=[2**n for n in range(13)], value=32, description="sequences", **wide())
        self.bytes = w.Dropdown(
            options=[("32 bit", 4), ("16 bit", 2), ("8 bit", 1)], value=2, description="a number takes", **wide()
        )
        self.gpus = w.SelectionSlider(options=[1, 2, 4, 8], value=8, description="GPUs", **wide())
        self.memory = w.BoundedFloatText(GPU_GIB, min=1, max=1000, description="memory of each, GiB", **wide())
        self.matched = w.Checkbox(True, indent=False, description="feed-forward widened to equal parameters", **wide())
        self.size.observe(self._pick, "value")
        super().__init__(
            "GQA and cache calculator",
            [self.size, self.kv, self.context, self.batch, self.bytes, self.gpus, self.memory, self.matched],
            self._draw,
        )

    def _divisors(self) -> list[int]:
        heads = SIZES[self.size.value].n_heads
        return [n for n in range(1, heads + 1) if heads % n == 0]

    def _pick(self, _: Any) -> None:
        self.kv.options = self._divisors()
        self.kv.value = SIZES[self.size.value].n_kv_heads

    def _draw(self) -> str:
        tokens, batch, wide, gpus = self.context.value, self.batch.value, self.bytes.value, self.gpus.value
        total = gpus * self.memory.value * GIB
        rows, values = [], []
        for kind, c in variants(SIZES[self.size.value], self.kv.value, self.matched.value).items():
            weights, cache = parameters(c) * wide, cache_bytes(c, tokens, batch, wide, gpus)
            most = largest_batch(c, tokens, wide, gpus, self.memory.value)
            values.append((f"{kind}, {c.n_kv_heads} KV head" + "s" * (c.n_kv_heads > 1), cache / GIB))
            rows.append(
                (
                    kind,
                    f"{parameters(c) / 1e9:.3g} B",
                    f"{c.ffn_dim:,}",
                    size_in_words(weights),
                    size_in_words(cache_bytes(c, 1, 1, wide, gpus)),
                    size_in_words(cache),
                    f"{most:,}",
                    "fits" if weights + cache <= total else "out of memory",
                )
            )
        room = (
            max(
                0.0,
                total
                - max(
                    parameters(c) * wide
                    for c in variants(SIZES[self.size.value], self.kv.value, self.matched.value).values()
                ),
            )
            / GIB
        )
        values.append(("room beside weights", room))
        return (
            f"<p>KV cache of {batch:,} sequences of {tokens:,} tokens, in GiB</p>"
            + bars(
                values,
                "size of the KV cache for MHA, GQA and MQA, and the room there is",
                top=None,
                colours=[*KINDS.values(), GREY],
            )
            + table(("", "parameters", "FFN", "weights", "cache a token", "cache", "largest batch", "here"), rows)
        )
