"""Pairs of answers in the town, and labels of them, for the tests of the annotation system."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import lru_cache
from typing import Any

from llama2lab.annotation.agreement.simulate import Items, simulated_labels
from llama2lab.town.annotators import VENDORS, Annotator
from llama2lab.town.demonstrations import answer_for, clean_style, noisy_style
from llama2lab.town.oracle import Oracle
from llama2lab.town.prompts import draw_prompts
from llama2lab.town.town import load_town


@lru_cache(maxsize=1)
def oracle() -> Oracle:
    return Oracle(load_town())


@lru_cache(maxsize=8)
def town_items(n: int, seed: int = 0, kind: str = "helpfulness") -> Items:
    """n pairs of two different answers to the town's prompts: careful ones and a crowd's."""
    town, rng = load_town(), random.Random(f"pairs {seed}")
    kinds = ("helpful",) if kind == "helpfulness" else ("unsafe",)
    items: dict[str, Any] = {}
    for prompt in draw_prompts(town, "train", 2 * n, seed, kinds):
        answers = [answer_for(town, prompt, rng.choice((clean_style, noisy_style))(prompt, rng), rng) for _ in "ab"]
        if answers[0] != answers[1] and len(items) < n:
            items[f"{kind}-{len(items):04d}"] = (prompt, *answers)
    return items


def people_of(vendor: str, count: int = 1) -> list[Annotator]:
    """Some people of a vendor, each with a seed of their own."""
    return [replace(VENDORS[vendor], name=f"{vendor}-{i}", seed=i) for i in range(1, count + 1)]


def labels_of(annotators: list[Annotator], n: int = 300, seed: int = 0, kind: Any = "helpfulness",
              ) -> list[dict[str, Any]]:
    """Labels of the same n pairs by each of the annotators."""
    return simulated_labels(annotators, oracle(), town_items(n, seed, kind), kind, seed)
