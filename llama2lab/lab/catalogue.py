"""All exercises, in the order of the notebooks: for a table of the whole lab, and for graders."""

from __future__ import annotations

from llama2lab.lab import (
    nb00_start,
    nb01_tokenizer,
    nb02_transformer,
    nb03_pretraining,
    nb04_sft,
    nb05_preferences,
    nb06_rewards,
    nb07_rejection,
    nb08_ppo,
    nb09_gatt,
    nb10_rounds,
    nb11_evaluation,
)
from llama2lab.lab.checking import Exercise

MODULES = (nb00_start, nb01_tokenizer, nb02_transformer, nb03_pretraining, nb04_sft, nb05_preferences, nb06_rewards,
           nb07_rejection, nb08_ppo, nb09_gatt, nb10_rounds, nb11_evaluation)


def all_exercises() -> list[Exercise]:
    """Every exercise of every notebook."""
    return [exercise for module in MODULES for exercise in module.EXERCISES]
