"""GQA and cache calculator: what sharing KV heads saves, at Llama 2's sizes (sections 2.2 and A.2.1)."""

from __future__ import annotations

from typing import Any

import ipywidgets as w

from llama2lab.lab.explorer import Explorer, dropdown, steps, wide
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
        self.size = dropdown("model", list(SIZES), "70b")
        self.kv = steps("KV heads of GQA", self._divisors(), 8)
        self.context = steps("tokens each", [2**n for n in range(8, 17)], 4096)
        self.batch = steps("sequences", [2**n for n in range(13)], 32)
        self.bytes = dropdown("a number takes", [("32 bit", 4), ("16 bit", 2), ("8 bit", 1)], 2)
        self.gpus = steps("GPUs", [1, 2, 4, 8], 8)
        self.memory = w.BoundedFloatText(GPU_GIB, min=1, max=1000, description="memory of each, GiB", **wide())
        self.matched = w.Checkbox(True, indent=False, description="feed-forward widened to equal parameters", **wide())
        self.size.observe(self._pick, "value")
        factors = (self.size, self.kv, self.context, self.batch, self.bytes, self.gpus, self.memory, self.matched)
        super().__init__("GQA and cache calculator", factors)

    def _divisors(self) -> list[int]:
        heads = SIZES[self.size.value].n_heads
        return [n for n in range(1, heads + 1) if heads % n == 0]

    def _pick(self, _: Any) -> None:
        self.kv.options = self._divisors()
        self.kv.value = SIZES[self.size.value].n_kv_heads

    def draw(self) -> str:
        tokens, batch, wide, gpus = self.context.value, self.batch.value, self.bytes.value, self.gpus.value
        models = variants(SIZES[self.size.value], self.kv.value, self.matched.value)
        total, largest = gpus * self.memory.value * GIB, max(parameters(c) * wide for c in models.values())
        rows, values = [], []
        for kind, c in models.items():
            weights, cache = parameters(c) * wide, cache_bytes(c, tokens, batch, wide, gpus)
            most = largest_batch(c, tokens, wide, gpus, self.memory.value)
            values.append((f"{kind}, {c.n_kv_heads} KV head" + "s" * (c.n_kv_heads > 1), cache / GIB))
            sizes = (size_in_words(n) for n in (weights, cache_bytes(c, 1, 1, wide, gpus), cache))
            fits = "fits" if weights + cache <= total else "out of memory"
            rows.append((kind, f"{parameters(c) / 1e9:.3g} B", f"{c.ffn_dim:,}", *sizes, f"{most:,}", fits))
        values.append(("room beside weights", max(0.0, total - largest) / GIB))
        words = "size of the KV cache for MHA, GQA and MQA, and the room there is"
        return (
            f"<p>KV cache of {batch:,} sequences of {tokens:,} tokens, in GiB</p>"
            + bars(values, words, colours=[*KINDS.values(), GREY])
            + table(("", "parameters", "FFN", "weights", "cache a token", "cache", "largest batch", "here"), rows)
        )
