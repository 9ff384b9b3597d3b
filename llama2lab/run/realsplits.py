"""The real recipe's rows, divided into parts, cut to length, and as prompts."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import write_rows
from llama2lab.engine.runs import Run
from llama2lab.model.chat import encode_chats
from llama2lab.run.presets import RealRecipe
from llama2lab.run.realdata import SourceSettings, Tally, load_role
from llama2lab.stages.rounds import Workshop, preference_rows
from llama2lab.town.items import Instruction, Prompt

# Shares of the dialogues. "judge" is as large as "train", for its models judge those of "train"; choices are made on
# "dev"; nothing is trained or chosen on "test".
PARTS = {"train": 0.4, "judge": 0.4, "dev": 0.1, "test": 0.1}
# With more rounds than one, fresh answers want an annotator, and a policy that learnt its taste may not be judged by
# it: half of the judges' part is the annotator's.
PARTS_OF_ROUNDS = {"train": 0.4, "annotator": 0.2, "judge": 0.2, "dev": 0.1, "test": 0.1}
ROLES = {"helpfulness": "helpful", "safety": "harmless"}  # reward model -> role of its pairs


def place_of(text: str) -> float:
    """A number in [0, 1) that depends on the text's words alone."""
    return int(hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:12], 16) / 16**12


def parts_of(rounds: int) -> dict[str, float]:
    """The parts of a recipe with so many rounds, and their shares."""
    return PARTS if rounds == 1 else PARTS_OF_ROUNDS


def opening(messages: Sequence[dict]) -> str:
    """The user's first message."""
    return next((m["content"] for m in messages if m["role"] == "user"), "")


def part_of(messages: Sequence[dict], parts: Mapping[str, float] = PARTS) -> str:
    """The part ("train", "judge", "dev" or "test") of a dialogue. It depends on the user's first message alone, so
    that no prompt, and no two dialogues that begin alike, are in two parts."""
    place = place_of(opening(messages))
    return next((part for part, edge in zip(parts, accumulate(parts.values()), strict=True) if place < edge), "test")


@dataclass
class Texts:
    """What the recipe's data sets hold, with the parts that are held out."""

    stories: list[str]
    heldout_stories: list[str]
    demonstrations: list[dict]
    pairs: dict[str, list[dict]]  # "helpfulness", "safety"
    probes: list[dict]
    tallies: dict[str, Tally]

    @property
    def fingerprint(self) -> str:
        """Changes when any text does."""
        whole = json.dumps([self.stories, self.heldout_stories, self.demonstrations, self.pairs, self.probes])
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    @cached_property
    def read_again(self) -> list[str]:
        """Held-out texts on which every chat stage is compared with the one before it."""
        rows = [row for rows in self.pairs.values() for row in rows if row["part"] == "test"]
        dialogues = [m["content"] for row in rows for m in [*row["prompt"], *row["chosen"]]]
        return sorted(set(self.heldout_stories or dialogues), key=place_of)[:64]

    def is_held_out(self, prompt: Sequence[dict]) -> bool:
        """Whether a prompt may train no policy: it, or what is left of it without its first turns, is one of another
        part's dialogues, or a refusal probe."""
        return place_of(opening(prompt)) in self._held_out

    @cached_property
    def _held_out(self) -> set[float]:
        rows = [row for rows in self.pairs.values() for row in rows if row["part"] != "train"]
        asked = [m["content"] for row in rows for m in row["prompt"] if m["role"] == "user"]
        return {place_of(text) for text in [*asked, *(row["prompt"] for row in self.probes)]}


def load_texts(recipe: RealRecipe, folder: Path | None, seed: int) -> Texts:
    """All rows of all roles; LabError as `load_role`."""
    rows: dict[str, list[dict]] = {}
    tallies = {}
    for role in ("pretrain", "sft", "helpful", "harmless", "refusals"):
        source, rows[role] = getattr(recipe.data, role), []
        if source.given:
            rows[role], tallies[role] = load_role(role, source, folder, recipe.data.max_malformed, seed)
    stories = sorted({r["text"] for r in rows["pretrain"]}, key=place_of)  # equal texts once: none is in both parts
    held = min(recipe.evaluate.stories, len(stories) // 10)
    for role in ROLES.values():
        for row in rows[role]:
            row["part"] = part_of(row["prompt"], parts_of(recipe.rounds))
    return Texts(
        stories[held:], stories[:held], rows["sft"], {k: rows[r] for k, r in ROLES.items()}, rows["refusals"], tallies
    )


def margins_amiss(recipe: RealRecipe, texts: Texts) -> list[str]:
    """Where a recipe's margins and its pairs' grades do not go together: one line each."""
    said = []
    for kind, role in ROLES.items():
        margin, grades = getattr(recipe, kind).margin, {row["grade"] for row in texts.pairs[kind]}
        if margin == "none" and len(grades) > 1:
            said.append(f"{role}: the pairs have grades, and {kind}.margin is none: set it to small to train by them")
        if margin != "none" and len(grades) == 1:
            cure = f"name their grades in data.{role}.columns, or set {kind}.margin to none"
            said.append(f"{role}: all pairs have one grade, so that {kind}.margin {margin} tells none apart; {cure}")
    return said


def fit_pairs(tokenizer: Any, rows: Sequence[dict], max_tokens: int) -> tuple[list[dict], Counter[str]]:
    """Pairs of at most `max_tokens` on both sides. A long dialogue loses its first turns, two messages at a time; a
    pair whose last question and answer do not fit is left out. Also the counts of both."""
    kept: list[dict] = []
    counts: Counter[str] = Counter(left_out=0, shortened=0)
    waiting, rounds = list(rows), 0
    while waiting:
        sizes = [
            [len(ids) for ids, _ in encode_chats(tokenizer, [[*r["prompt"], *r[side]] for r in waiting])]
            for side in ("chosen", "rejected")
        ]
        longer = []
        for row, chosen, rejected in zip(waiting, *sizes, strict=True):
            start = 1 if row["prompt"][0]["role"] == "system" else 0
            if max(chosen, rejected) <= max_tokens:
                kept.append(row)
                counts["shortened"] += rounds > 0
            elif len(row["prompt"]) > start + 1:
                longer.append({**row, "prompt": row["prompt"][:start] + row["prompt"][start + 2 :]})
            else:
                counts["left_out"] += 1
        waiting, rounds = longer, rounds + 1
    return kept, counts


def pairs_stage(shop: Workshop, recipe: RealRecipe, texts: Texts) -> None:
    """The pairs of both kinds and all parts, cut to length: people's preferences, in the place of round 1's."""

    def build(folder: Path) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for kind, role in ROLES.items():
            rows, counts = fit_pairs(shop.tokenizer, texts.pairs[kind], getattr(recipe.data, role).max_tokens)
            parts: dict[str, list[dict]] = {part: [] for part in parts_of(recipe.rounds)}
            for row in rows:
                parts[row["part"]].append({k: v for k, v in row.items() if k != "part"} | {"round": 1})
            for part, some in parts.items():
                if not some:
                    raise LabError(f"{role}: too few pairs, none is left for the part {part!r}; give more rows")
                write_rows(folder / f"{kind}.{part}.jsonl", some)
            metrics[kind] = {**{part: len(some) for part, some in parts.items()}, **counts}
        return metrics

    limits = [getattr(recipe.data, role).max_tokens for role in ROLES.values()]
    shop.run.stage("preferences-v1", build, limits, ["tokenizer"])


def fit_demonstrations(tokenizer: Any, rows: Sequence[dict], source: SourceSettings, n: int, seed: int) -> list[dict]:
    """`n` demonstrations that fit, drawn by the seed. A cut answer would teach to stop in the middle."""
    encoded = encode_chats(tokenizer, [r["messages"] for r in rows], mask_turns="last")
    most = source.max_answer_tokens or source.max_tokens
    pairs = zip(rows, encoded, strict=True)
    kept = [row for row, (ids, mask) in pairs if len(ids) <= source.max_tokens and sum(mask) <= most]
    if not kept:
        fits = f"fits in {source.max_tokens} tokens with an answer of {most}"
        raise LabError(f"sft: none of {len(rows)} demonstrations {fits}; raise data.sft.max_tokens")
    return random.Random(seed).sample(kept, min(n, len(kept)))


class PairPrompts:
    """The prompts of the pairs, as the stages ask for them (rounds.Source)."""

    def __init__(self, run: Run, tokenizer: Any, max_tokens: int):
        self.pools: dict[tuple[str, str], list[Prompt]] = {}
        for reward_kind, kind in (("helpfulness", "helpful"), ("safety", "unsafe")):
            for part in ("train", "dev", "test"):
                rows = preference_rows(run, 1, reward_kind, part)
                encoded = encode_chats(tokenizer, [r["prompt"] for r in rows], add_generation_prompt=True)
                self.pools[kind, part] = [
                    Prompt(f"{ROLES[reward_kind]}/{part}/{i}", tuple(row["prompt"]), "real", kind, "", part)
                    for i, (row, (ids, _)) in enumerate(zip(rows, encoded, strict=True))
                    if len(ids) <= max_tokens
                ]

    def prompts(self, kind: str, n: int, seed: int, split: str = "train") -> list[Prompt]:
        """`n` prompts; where the pool is smaller, some more than once. Real pairs have no borderline prompts: helpful
        ones take their place."""
        kind = "helpful" if kind == "borderline" else kind
        pool = self.pools[kind, split]
        if not pool:
            wrong = f"the pairs have no {kind} prompt in the part {split!r} that fits in prompt_tokens"
            raise LabError(f"{wrong}; give more rows or raise prompt_tokens")
        rng = random.Random(f"{seed} {kind} {split}")
        return rng.sample(pool, n) if n <= len(pool) else rng.choices(pool, k=n)

    def dialogues(
        self, n: int, turns: int, seed: int, split: str = "train"
    ) -> tuple[list[list[str]], list[Instruction]]:
        raise LabError("the recipe on real text has no Ghost Attention: its dialogues need the town")
