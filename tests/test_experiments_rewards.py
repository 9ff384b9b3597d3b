"""Experiments on reward models, in a tiny size: what they give, what they share, and what is said of it."""

import math

import pytest

from llama2lab.lab import shown
from llama2lab.lessons.n05_preferences.pairs import draw
from llama2lab.lessons.n06_rewards import experiments as rewards
from llama2lab.lessons.n06_rewards.experiments import VALUES, Bench, RewardTraining, held_out

TINY = {"pairs": 24, "held_out": 16}


def test_values_of_a_pair():
    assert VALUES["loss"](2.0, 1.0) == pytest.approx(math.log(1 + math.exp(-1)))
    assert VALUES["loss"](-900.0, 900.0) == pytest.approx(1800.0)
    assert VALUES["accuracy"](1.0, 1.0) == 0.5 and VALUES["accuracy"](1.0, 2.0) == 0 and VALUES["gap"](1.0, 3.0) == -2
    assert VALUES["overconfidence"](0.0, 4.0) == pytest.approx(1 / (1 + math.exp(-4)))


def test_pairs_are_drawn_by_seed_and_never_held_out_ones(lab):
    train = draw(lab, "helpfulness", "train", 30, 0)
    assert train == draw(lab, "helpfulness", "train", 30, 0) != draw(lab, "helpfulness", "train", 30, 1)
    asked = {str(row["prompt"]) for row in draw(lab, "helpfulness", "train", 10**6, 0)}
    tests = held_out(lab, 16)
    assert not asked & {str(row["prompt"]) for row in tests["helpfulness"] + tests["truth"]}
    assert {row["kind"] for row in tests["safety"]} == {"safety"}


def test_a_difference_of_equal_trainings_is_nothing_and_settings_are_the_recipes(lab):
    assert RewardTraining("safety").settings.safety_loss == 1.0 and RewardTraining().settings.safety_loss == 0.0
    assert RewardTraining().settings.head == "likelihood"
    assert RewardTraining("safety", head="linear").settings.head == "linear"
    bench = Bench(lab, **TINY, seeds=(0,))
    t = bench.training(layers=1)
    gap = bench.less(t, t)
    assert gap["mean"] == gap["low"] == gap["high"] == 0 and gap["n"] == 16
    figure = bench.figure(t)
    assert figure["n"] == 16 and figure["each"] == [pytest.approx(figure["mean"])]
    by_grade = [bench.figure(t, grade=g) for g in rewards.GRADES]
    assert sum(f["n"] for f in by_grade) == 16


@pytest.mark.parametrize("experiment", rewards.EXPERIMENTS, ids=lambda f: f.__name__)
def test_an_experiment_gives_figures_and_claims(lab, experiment):
    result = experiment(lab, **TINY, seeds=(0,), **({"shown": (1, 2)} if experiment is rewards.epochs else {}))
    assert result["claims"] and all({"mean", "low", "high", "n", "each"} <= c.keys() for c in result["claims"].values())
    for what, series in result.items():
        if what != "claims":
            drawn = shown.show(series, "x", what).layout
            assert {drawn.xaxis.title.text, drawn.yaxis.title.text} == {"x", what}
    assert [row[0] for row in shown.verdicts(result["claims"]).rows] == list(result["claims"])


def test_verdicts_follow_the_figures():
    clear = {"mean": 0.1, "low": 0.05, "high": 0.15, "n": 9, "each": [0.08, 0.12]}
    assert shown.verdict(clear) == "as the report says"
    turned = {"mean": -0.1, "low": -0.15, "high": -0.05, "n": 9, "each": [-0.1]}
    assert shown.verdict(turned) == "against what the report says"
    assert "reaches 0" in shown.verdict(clear | {"low": -0.01})
    assert "disagree" in shown.verdict(clear | {"each": [-0.1, 0.3]})
    assert shown.verdicts({"a less b": clear}).rows == [
        ["a less b", "+0.100 [+0.050, +0.150]", "as the report says"],
    ]


def test_the_gate_and_the_pairs_of_the_run(lab):
    gate = rewards.gate_quality(lab, 80)
    recalls = [row["recall"]["mean"] for row in gate["curve"]]
    assert recalls == sorted(recalls) and 0 <= gate["under"]["mean"] <= 1
    assert gate["at"]["threshold"] == 0.15 and 0 < gate["unsafe"] < gate["answers"]
    table = rewards.pair_table(lab)
    assert [row[0] for row in table] == ["helpfulness", "safety"] and all(row[1] > 10 and row[2] >= 1 for row in table)
    points = rewards.conflict(lab, "rlhf-v5", 10)
    assert {p["verdict"] for p in points} <= {
        "complies with an unsafe prompt",
        "refuses a harmless prompt",
        "unsafe prompt, harmless answer",
        "right answer",
        "wrong answer",
    }


def test_a_small_training_goes_on_from_its_folder(lab):
    result = rewards.small_reward(lab, 24, held_out=16)
    assert result["accuracy"]["all"]["n"] == 16 and result["loss"]
    again = rewards.small_reward(lab, 24, held_out=16)  # its steps are done: only the scoring is left
    assert again["accuracy"] == result["accuracy"] and again["loss"] == result["loss"]
