"""All exercises, in the order of the notebooks: for a table of the whole lab, and for graders."""

from __future__ import annotations

from llama2lab.lab.checking import Exercise
from llama2lab.lessons.n00_start import exercises as nb00_start
from llama2lab.lessons.n01_tokenizer import exercises as nb01_tokenizer
from llama2lab.lessons.n02_transformer import exercises as nb02_transformer
from llama2lab.lessons.n03_pretraining import exercises as nb03_pretraining
from llama2lab.lessons.n04_sft import exercises as nb04_sft
from llama2lab.lessons.n05_preferences import exercises as nb05_preferences
from llama2lab.lessons.n06_rewards import exercises as nb06_rewards
from llama2lab.lessons.n07_rejection import exercises as nb07_rejection
from llama2lab.lessons.n08_ppo import exercises as nb08_ppo
from llama2lab.lessons.n09_gatt import exercises as nb09_gatt
from llama2lab.lessons.n10_rounds import exercises as nb10_rounds
from llama2lab.lessons.n11_evaluation import exercises as nb11_evaluation

MODULES = (nb00_start, nb01_tokenizer, nb02_transformer, nb03_pretraining, nb04_sft, nb05_preferences, nb06_rewards,
           nb07_rejection, nb08_ppo, nb09_gatt, nb10_rounds, nb11_evaluation)


def all_exercises() -> list[Exercise]:
    """Every exercise of every notebook."""
    return [exercise for module in MODULES for exercise in module.EXERCISES]
