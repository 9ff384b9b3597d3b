"""The run's own pairs of answers, with the prompts that the oracle needs to judge them. Pairs closer than a tie have no
truth."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

from llama2lab.lab.finished import Finished
from llama2lab.stages.evaluate import TIE
from llama2lab.stages.rounds import ROUNDS
from llama2lab.town.annotators import Annotator, label_pairs
from llama2lab.town.items import Prompt
from llama2lab.town.prompts import every_prompt

Pair = tuple[Prompt, str, str]
TRUTH = Annotator("truth", "truth", noise=0.0, safety_error=0.0)


@cache
def _rows(lab: Finished, kind: str, part: str) -> list[dict]:
    return [row for v in ROUNDS for row in lab.rows(f"preferences-v{v}", f"{kind}.{part}.jsonl")]


def draw(lab: Finished, kind: str, part: str, n: int, seed: int) -> list[dict]:
    """At most `n` preference rows of all rounds, part "train" or "test" (held-out prompts), in a random order."""
    rows = _rows(lab, kind, part)
    return random.Random(f"{kind} {part} {seed}").sample(rows, min(n, len(rows)))


@cache
def prompts_by_id(lab: Finished, part: str = "test") -> dict[str, Prompt]:
    """The prompts that RLHF asked ("train") or the held-out ones ("test"): the oracle needs them to judge an answer."""
    splits = ("rlhf",) if part == "train" else ("test", "dev")
    return {p.id: p for split in splits for p in every_prompt(lab.town, split)}


def real_pairs(lab: Finished, n: int, part: str = "train", seed: int = 0) -> list[Pair]:
    """At most `n` helpfulness pairs of all rounds, their order drawn anew: it says nothing of who was chosen."""
    known = prompts_by_id(lab, part)
    rng = random.Random(f"pairs {part} {seed}")
    pairs = []
    for row in draw(lab, "helpfulness", part, n, seed):
        one, two = (row[side][0]["content"] for side in rng.sample(("chosen", "rejected"), 2))
        if row["prompt_id"] in known:
            pairs.append((known[row["prompt_id"]], one, two))
    return pairs


def items_of(pairs: Sequence[Pair]) -> dict[str, Pair]:
    return {str(i): pair for i, pair in enumerate(pairs)}


def true_gap(lab: Finished, pair: Pair) -> float:
    """How much better the pair's first answer is, in true helpfulness."""
    one, two = (lab.oracle.judge(pair[0], answer).helpfulness for answer in pair[1:])
    return one - two


def truth_rows(lab: Finished, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Held-out pairs of the run as preference rows labelled by the truth; ties are left out."""
    pairs = [p for p in real_pairs(lab, n, "test", seed) if abs(true_gap(lab, p)) > TIE]
    return label_pairs([TRUTH], lab.oracle, pairs, "helpfulness")
