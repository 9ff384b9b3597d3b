"""Pairs of answers in the town, and labels of them, for the tests of the annotation system."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from llama2lab.annotation.agreement.simulate import Items, by_messages, judged_by, messages_key, simulated_labels
from llama2lab.annotation.store import queue
from llama2lab.annotation.store.store import Store
from llama2lab.engine.scale import Kind
from llama2lab.town.annotators import VENDORS, Annotator
from llama2lab.town.demonstrations import answer_for, clean_style, noisy_style
from llama2lab.town.items import Prompt
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


def labels_of(
    annotators: list[Annotator],
    n: int = 300,
    seed: int = 0,
    kind: Any = "helpfulness",
) -> list[dict[str, Any]]:
    """Labels of the same n pairs by each of the annotators."""
    return simulated_labels(annotators, oracle(), town_items(n, seed, kind), kind, seed)


def label_store(
    store: Store, annotators: Iterable[Annotator], judge: Any, prompts: Iterable[Prompt], seed: int = 0
) -> dict[str, int]:
    """Let simulated annotators work through a store's queue as people would: {name: number of labels}.

    `prompts` are those that the judge knows; items with any other prompt are skipped with that reason.
    """
    known, made = by_messages(prompts), dict[str, int]()
    for annotator in annotators:
        me = store.annotator(annotator.name, kind="simulated", vendor=annotator.vendor)
        made[annotator.name] = 0
        while (task := queue.next_task(store, me, seed=seed)) is not None:
            prompt = known.get(messages_key(task.prompt))
            if prompt is None:
                queue.skip(store, me, task.item_id, "the judge does not know this prompt")
                continue
            answers = (task.left_text, task.right_text)
            verdicts = (judge.judge(prompt, answers[0]), judge.judge(prompt, answers[1]))
            kind: Kind = "safety" if task.kind == "safety" else "helpfulness"
            said = judged_by(annotator, prompt, answers, verdicts, kind, 1)  # the left one counts as answer 1
            if said["skip_reason"]:
                queue.skip(store, me, task.item_id, said["skip_reason"])
            else:
                queue.submit(
                    store,
                    me,
                    task.item_id,
                    "left" if said["choice"] == 1 else "right",
                    said["grade"],
                    said["safe_1"],
                    said["safe_2"],
                )
                made[annotator.name] += 1
    return made
