"""Simulated feedback where nobody knows the truth: reward models that learnt from people's other pairs label fresh
answers. AlpacaFarm (Dubois et al. 2023) simulates annotators by models, too, and makes them as unsure as people are."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from llama2lab.engine.scale import GRADES, Kind
from llama2lab.engine.stagefiles import fingerprint_of
from llama2lab.stages.preferences import Pair
from llama2lab.stages.reward import score_answers
from llama2lab.stages.rounds import Workshop

# The least probabilities of the choice from which it is called significantly better, better, slightly better.
SURE = (0.9, 0.75, 0.6)


def drawn(first: float, second: float, rng: random.Random) -> tuple[int, str]:
    """(0 or 1, the grade): a choice between two answers with these scores, by the Bradley-Terry model that reward
    models are trained as: the first is chosen with probability sigmoid(first - second). The grade says how likely the
    choice was; an unlikely one is "negligibly" better."""
    likely = 1 / (1 + math.exp(-max(-50.0, min(50.0, first - second))))
    choice = 0 if rng.random() < likely else 1
    p = likely if choice == 0 else 1 - likely
    return choice, next((grade for grade, least in zip(GRADES, SURE, strict=False) if p >= least), GRADES[-1])


class RewardAnnotator:
    """Labels pairs of answers by the reward model of their kind, {kind: stage}."""

    def __init__(self, shop: Workshop, stages: Mapping[Kind, str]):
        self.shop, self.stages = shop, dict(stages)

    @property
    def description(self) -> dict[str, Any]:
        """Changes with the models and with the rule: part of what preferences are recorded by."""
        models = {kind: fingerprint_of(self.shop.run.folder(stage)) for kind, stage in self.stages.items()}
        return {"models": models, "sure": SURE}

    def label(self, pairs: Sequence[Pair], kind: Kind) -> list[dict]:
        """A preference row for each (prompt, answer, answer). Of safety it knows no bin, only the order."""
        shop, model = self.shop, self.shop.reward(self.stages[kind])
        asked = [p.messages for p, _, _ in pairs] * 2
        said = [*(first for _, first, _ in pairs), *(second for _, _, second in pairs)]
        scores = score_answers(model, shop.tokenizer, asked, said, shop.machine)
        rows = []
        for (prompt, *answers), first, second in zip(pairs, scores[: len(pairs)], scores[len(pairs) :], strict=True):
            choice, grade = drawn(first, second, random.Random(f"{shop.seed} {kind} {prompt.id} {answers}"))
            rows.append(
                {
                    "prompt": [dict(m) for m in prompt.messages],
                    "chosen": [{"role": "assistant", "content": answers[choice]}],
                    "rejected": [{"role": "assistant", "content": answers[1 - choice]}],
                    "grade": grade,
                    "safety": "",
                    "kind": kind,
                    "prompt_id": prompt.id,
                    "annotator": self.stages[kind],
                    "vendor": "reward model",
                }
            )
        return rows
