"""Exercises of notebook 00: the tour (Llama 2, section 1 and figure 4)."""

from __future__ import annotations

from llama2lab.lab.checking import Exercise, Level
from llama2lab.lab.predictions import Choice, Guess, Order, Prediction

RECIPE = Exercise(
    "00.recipe",
    "The recipe in order",
    "Bring the stages into the order in which the report trains them.",
    Level(difficulty=1, minutes=3, points=1),
    "1, figure 4",
    ("What does a reward model need before it can be trained?",),
    Order(
        {
            "pre": "pretraining",
            "sft": "supervised fine-tuning",
            "pref": "preferences are collected",
            "rm": "reward models",
            "rlhf": "rejection sampling and PPO",
        },
        ("pre", "sft", "pref", "rm", "rlhf"),
        {
            ("pre", "sft"): "Fine-tuning starts from a pretrained model: language and facts come first.",
            ("pref", "rm"): "Reward models learn from preferences; these must be there first.",
            ("rm", "rlhf"): "RLHF climbs a reward, so the reward models come first.",
            ("sft", "pref"): "People compare answers of a chat model; it must be able to answer first.",
        },
    ),
    lesson="The figure has a loop: a better model writes other answers, on which the old reward models were not "
    "trained. So each round collects new preferences and trains the reward models again.",
)

COSTS = Exercise(
    "00.costs",
    "What is it that took 3.3 million GPU hours?",
    "The report's table 2 counts 3,311,616 GPU hours and 539 t CO2. What do they pay for?",
    Level(difficulty=1, minutes=2, points=1),
    "2.2.1, table 2",
    ("Read the caption of table 2.",),
    Choice(
        a=("RLHF of the 70B", "Table 2 is about pretraining; fine-tuning sees a tiny part of those tokens."),
        b="pretraining of the whole family",
        c=("collecting the preferences", "Preferences cost people's time, not GPU hours."),
    ),
    lesson="All that follows is cheap because it starts from there. To release the weights spares everybody else that "
    "first cost, as the report argues in the same section.",
)

FIRST_TALK = Prediction(
    "00.first_talk",
    "Ask the finished model",
    "You will ask the last model twenty questions about the town. Predict the share of right answers.",
    Level(difficulty=1, minutes=2, points=1),
    "4",
    ("It has a million parameters, and it has read the town's book many times.",),
    Guess(
        0.0,
        1.0,
        "It knows more than you thought: what stands often enough in the corpus is learnt, even by a small model.",
        "It knows less than you thought: sampling at temperature 1 also draws unlikely answers.",
        absolute=0.1,
    ),
    lesson="Twenty answers are few: the share of right ones among them is uncertain by up to twenty points either way. "
    "Notebook 11 is about such error bars.",
)

EXERCISES = (RECIPE, COSTS, FIRST_TALK)
