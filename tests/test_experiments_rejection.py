"""Experiments on rejection sampling, in a tiny size."""

import math
from itertools import combinations

import pytest

from llama2lab.lessons.n07_rejection import experiments as rejection
from llama2lab.lessons.n07_rejection import figures
from llama2lab.lessons.n07_rejection.experiments import by_k, correlation
from llama2lab.lessons.n07_rejection.figures import gain_words, temperature_words
from llama2lab.stages.rejection import best_of_curve


def test_by_k_is_the_librarys_curve_over_all_choices_of_k():
    scores, truths = [[0.0, 2.0, 1.0, 5.0], [3.0, -1.0, 0.0, 1.0]], [[1.0, 0.0, 2.0, -1.0], [0.5, 1.0, 0.0, 0.0]]
    found = by_k(scores, truths, (1, 2, 3, 4, 8))
    for k in (1, 2, 3, 4):
        rows = [best_of_curve([[s[i] for i in places] for s in scores], [k])[0] for places in combinations(range(4), k)]
        for what in ("max", "median"):
            assert found[what][str(k)]["mean"] == pytest.approx(sum(r[what] for r in rows) / len(rows))
    assert "8" not in found["max"]
    assert found["pick"]["4"]["mean"] == pytest.approx(-0.25) and found["ceiling"]["4"]["mean"] == pytest.approx(1.5)
    assert found["pick"]["1"]["mean"] == found["ceiling"]["1"]["mean"] == pytest.approx(3.5 / 8)
    for k in range(1, 33):
        assert rejection.order_weights(32, k, k).sum() == pytest.approx(1)


def test_correlation_and_words():
    assert correlation([1, 2, 3, 4, 5], [2, 4, 6, 8, 11])["low"] > 0.8
    assert math.isnan(correlation([1, 1, 1, 1], [1, 2, 3, 4])["mean"])
    assert temperature_words({"mean": 0.3, "low": 0.1, "high": 0.5, "n": 9}) == "it moves up"
    assert "no move" in temperature_words({"mean": 0.3, "low": 0.0, "high": 0.5, "n": 9})


def test_temperatures_in_a_tiny_size(lab):
    result = rejection.best_of_k_by_temperature(lab, ("sft", "rlhf-v5"), (0.5, 1.5), prompts=4, k=4, resamples=20)
    assert set(result["curves"]["sft"]) == {"0.5", "1.5"} and set(result["best"]["rlhf-v5"]) == {"1", "2", "4"}
    best = result["best"]["sft"]["4"]
    assert best["low"] <= best["mean"] <= best["high"] and best["mean"] in (0.5, 1.5)
    assert len(result["gap"]) == 2 + 1 and "the best" in gain_words(result["gain"]["sft"]["0.5"])
    for curve in result["curves"]["sft"].values():
        values = [f["mean"] for f in curve["max"].values()]
        assert values == sorted(values)


def test_best_against_random_is_the_runs(lab):
    found = rejection.best_against_random(lab)
    assert found["stages"]["V1"]["helpfulness"] == lab.metrics("rlhf-v1")["helpfulness"]
    assert len(found["claims"]) <= 1


def test_so_many_labels_change_sides():
    rows = [{"chosen": i, "rejected": -i} for i in range(1, 11)]
    found = rejection.flipped(rows, 0.4, 0)
    assert sum(row["chosen"] < 0 for row in found) == 4 and [abs(row["chosen"]) for row in found] == list(range(1, 11))
    assert all(row["rejected"] == -row["chosen"] for row in found) and rejection.flipped(rows, 0.0, 0) == rows
    assert len({s.name for s in rejection.SMALL}) == len(rejection.SMALL) == 18  # and the run's own: more than twenty


@pytest.mark.slow
def test_accuracy_predicts_in_a_tiny_size(lab):
    small = (rejection.Small(20, "linear"), rejection.Small(20, "linear", flipped=0.5))
    result = rejection.accuracy_predicts(lab, small, prompts=6, k=3, held_out=20)
    names = [m["name"] for m in result["models"]]
    assert {"v5", "v5, linear", "20 pairs, linear", "20 pairs, linear, 50% flipped"} <= set(names)
    assert result["one"]["mean"] <= result["ceiling"]["mean"]
    assert len(figures.models_figure(result).data) == 4
