"""Preference collection (Llama 2, section 3.2.1): two answers, a forced choice, a degree, a safety bin.

"Two answers from two model variants at different temperatures" is what this module samples. The label is given by
whoever annotates: simulated annotators, or people. This module does not know which; it knows no oracle.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from llama2lab.engine.scale import GRADES, Kind
from llama2lab.model.network import Llama
from llama2lab.model.sample import sample_answers
from llama2lab.town.items import Prompt

Pair = tuple[Prompt, str, str]
Annotate = Callable[[Sequence[Pair], Kind], list[dict]]  # preference rows


@dataclass(frozen=True)
class Variant:
    """A model that answers annotators' prompts, and the temperatures it answers at."""

    model: Llama
    name: str
    temperatures: tuple[float, ...] = (0.8, 1.0, 1.2)


def sample_pairs(
    variants: Sequence[Variant],
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    *,
    seed: int,
    precision: str = "fp32",
    max_new_tokens: int = 48,
    names: list[tuple[str, str]] | None = None,
) -> list[Pair]:
    """For each prompt two answers, from two draws of (variant, temperature). Equal answers are left out: nothing
    can be learnt from them. `names`, if given, is filled with the two variants' names of each pair, as
    "rlhf-v5 at T 0.8"."""
    rng = random.Random(seed)
    options = [(v, t) for v in variants for t in v.temperatures]
    drawn = [tuple(rng.sample(options, 2)) if len(options) > 1 else (options[0], options[0]) for _ in prompts]
    answers: dict[tuple[int, int], str] = {}
    for number, (variant, temperature) in enumerate(options):
        asked = [
            (i, side)
            for i, pair in enumerate(drawn)
            for side in (0, 1)
            if pair[side][0] is variant and pair[side][1] == temperature
        ]
        texts = sample_answers(
            variant.model,
            tokenizer,
            [prompts[i].messages for i, _ in asked],
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed * 1000 + number,
            precision=precision,
            what=f"{variant.name} answers at T {temperature}",
        )
        answers.update({at: text[0] for at, text in zip(asked, texts, strict=True)})
    pairs = [(p, answers[i, 0], answers[i, 1]) for i, p in enumerate(prompts)]
    if names is not None:
        names += [
            (f"{a[0].name} at T {a[1]}", f"{b[0].name} at T {b[1]}")
            for (a, b), pair in zip(drawn, pairs, strict=True)
            if pair[1] != pair[2]
        ]
    return [pair for pair in pairs if pair[1] != pair[2]]


def collect(
    variants: Sequence[Variant],
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    annotate: Annotate,
    kind: Kind,
    *,
    seed: int,
    precision: str = "fp32",
) -> list[dict[str, Any]]:
    """One batch of preference rows of one kind, "helpfulness" or "safety"."""
    return annotate(sample_pairs(variants, tokenizer, prompts, seed=seed, precision=precision), kind)


def grade_shares(rows: Sequence[dict]) -> dict[str, float]:
    """Share of each grade: the report saw 'negligibly better or unsure' grow as its models improved."""
    return {g: round(sum(r["grade"] == g for r in rows) / max(1, len(rows)), 4) for g in GRADES}
