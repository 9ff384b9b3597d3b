"""Exercises of notebook 10: five rounds of RLHF (Llama 2, sections 3.2.3 and 3.4)."""

from __future__ import annotations

from llama2lab.lab.checking import Exercise, Level
from llama2lab.lab.predictions import Choice, Prediction, Ranking

FRESH = Exercise(
    "10.fresh",
    "Why fresh preferences?",
    "Later pairs may be harder for every reward model. Why does the report expect an old one to fall behind a new one "
    "on them?",
    Level(difficulty=2, minutes=3, points=1),
    "3.2.1",
    ("On which answers was each of them trained?",),
    Choice(
        a=("its weights decay", "Its weights are the same as before; the answers are not."),
        b="later policies write answers unlike those it was trained on",
        c=("people changed their minds", "The annotators judge as before; what they judge has changed."),
    ),
)

FORGOTTEN = Exercise(
    "10.forgotten",
    "What V3 lost",
    "In the report V3 learnt only from the last round's best answers. What happened, and what was the cure?",
    Level(difficulty=2, minutes=3, points=1),
    "3.2.3",
    ("It concerned poems.",),
    Choice(
        a=("it grew unsafe; more safety data", "Safety is not what was lost there."),
        b="it lost abilities such as rhyming; best answers of all rounds were kept",
        c=(
            "nothing; V3 was best at everything",
            "It scored higher on average, and was worse at some things: means hide that.",
        ),
    ),
)

SHARED_SCALE = Exercise(
    "10.shared_scale",
    "Judged by one's own reward",
    "The report's figure 11 judges versions by Meta's reward models and by GPT-4. Why by both?",
    Level(difficulty=2, minutes=3, points=1),
    "3.4.1, figure 11",
    ("Which of the two was trained on?",),
    Choice(
        a=("GPT-4 is cheaper", "Cost is not the reason; the reward models were at hand."),
        b="a policy that climbs a reward model may please it more than people; a second judge shows it",
        c=("reward models cannot judge safety", "One of the two reward models judges nothing else."),
    ),
)

VERSIONS = Prediction(
    "10.versions",
    "The versions in order",
    "Order the versions by true helpfulness, smallest first.",
    Level(difficulty=1, minutes=2, points=1),
    "3.4.1, figure 11",
    ("Each round starts from better preferences.",),
    Ranking(
        {"sft": "SFT", "v1": "RLHF-V1", "v3": "RLHF-V3", "v5": "RLHF-V5 with PPO"},
        {
            ("sft", "v5"): "Five rounds did help: the demonstrations are not the ceiling.",
            ("v3", "v5"): "PPO adds to what rejection sampling has reached.",
        },
    ),
)

EXERCISES = (FRESH, FORGOTTEN, SHARED_SCALE, VERSIONS)
