"""All exercises and all experiments, in the order of the notebooks: for the command line, graders, and a table of the
whole lab."""

from __future__ import annotations

from llama2lab.lab.checking import Exercise
from llama2lab.lab.finished import Experiment
from llama2lab.lessons.n00_start import exercises as n00
from llama2lab.lessons.n01_tokenizer import exercises as n01
from llama2lab.lessons.n02_transformer import exercises as n02
from llama2lab.lessons.n02_transformer import experiments as x02
from llama2lab.lessons.n03_pretraining import exercises as n03
from llama2lab.lessons.n03_pretraining import experiments as x03
from llama2lab.lessons.n04_sft import exercises as n04
from llama2lab.lessons.n04_sft import experiments as x04
from llama2lab.lessons.n05_preferences import exercises as n05
from llama2lab.lessons.n05_preferences import experiments as x05
from llama2lab.lessons.n06_rewards import exercises as n06
from llama2lab.lessons.n06_rewards import experiments as x06
from llama2lab.lessons.n07_rejection import exercises as n07
from llama2lab.lessons.n07_rejection import experiments as x07
from llama2lab.lessons.n08_ppo import exercises as n08
from llama2lab.lessons.n08_ppo import experiments as x08
from llama2lab.lessons.n08_ppo.gae_by_hand import five_tokens
from llama2lab.lessons.n09_gatt import exercises as n09
from llama2lab.lessons.n09_gatt import experiments as x09
from llama2lab.lessons.n10_rounds import exercises as n10
from llama2lab.lessons.n10_rounds import experiments as x10
from llama2lab.lessons.n11_evaluation import exercises as n11
from llama2lab.lessons.n11_evaluation import experiments as x11
from llama2lab.lessons.n12_safety import exercises as n12
from llama2lab.lessons.n12_safety import experiments as x12

MODULES = (n00, n01, n02, n03, n04, n05, n06, n07, n08, n09, n10, n11, n12)


def all_exercises() -> list[Exercise]:
    """Every exercise of every notebook."""
    return [exercise for module in MODULES for exercise in module.EXERCISES]


def all_experiments() -> dict[str, Experiment]:
    """Every experiment that is kept with a full run, by its name."""
    modules = (x02, x03, x04, x05, x06, x07, x08, x09, x10, x11, x12)
    return {f.__name__: f for f in (*(f for module in modules for f in module.EXPERIMENTS), five_tokens)}
