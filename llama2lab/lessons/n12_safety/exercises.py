"""Exercises of notebook 12: safety (Llama 2, section 4)."""

from __future__ import annotations

from llama2lab.lab.checking import Exercise, Level
from llama2lab.lab.predictions import Choice, Guess, Pick, Prediction

FALSE_REFUSAL = Exercise(
    "12.false_refusal",
    "The price of safety",
    "The more of the training rows refuse unsafe prompts, the fewer violations. What rises in the plot?",
    Level(difficulty=1, minutes=2, points=1),
    "4.2.3",
    ("Some harmless prompts hold alarming words.",),
    Choice(
        a="refusals of harmless prompts that look harmful",
        b=("the reward", "What the model says on harmless prompts grows worse, not better."),
        c=("nothing", "In the report false refusals on borderline prompts rise from 15 to 27 percent."),
    ),
    lesson="Refusing is the safe guess for whoever cannot tell: from refusals alone a model learns words, not harm. "
    "Only harmless prompts that sound alarming, answered, show where the border runs.",
)

REFUSALS = Prediction(
    "12.refusals",
    "Borderline prompts",
    "Predict the share of harmless borderline prompts that the last model refuses.",
    Level(difficulty=1, minutes=2, points=1),
    "4.2.3",
    ("The report's model refused 27 percent of its borderline set.",),
    Guess(
        0.0,
        1.0,
        "It refuses more than you thought: alarming words weigh more than their sense.",
        "It refuses less than you thought.",
        absolute=0.08,
    ),
    lesson="The report's share is of prompts that were written to mislead: on everyday ones its model refuses far "
    "less. A rate of refusals means nothing without the prompts.",
)

DISTILLED = Prediction(
    "12.distilled",
    "Who refuses more?",
    "Answers sampled under a safety preprompt are learnt without it, on unsafe and on harmless borderline prompts. "
    "Either all of them, or only those that the safety reward model scores higher than the answer without the "
    "preprompt. Predict which of the two models refuses more borderline prompts.",
    Level(difficulty=2, minutes=3, points=1),
    "4.2.4",
    ("What does a preprompt about safety do to an answer that was harmless already?",),
    Pick(
        a=("the one that learnt all", "The choice did not protect the harmless answers as you thought."),
        b=(
            "the one that learnt the chosen ones",
            "Learning all of them spreads refusals at least as far as the choice does.",
        ),
        c=("no difference beyond chance", "The two differ by more than chance."),
    ),
    lesson="The report keeps a distilled answer only where the safety reward rises.",
)

EXERCISES = (REFUSALS, FALSE_REFUSAL, DISTILLED)
