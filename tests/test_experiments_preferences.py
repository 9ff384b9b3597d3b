"""Experiments on preferences: what they give in a tiny size, and that the simulated people do what is assumed."""

import numpy as np
import pytest

from llama2lab.annotation.store import queue
from llama2lab.lab import shown
from llama2lab.lessons.n05_preferences import experiments as preferences
from llama2lab.lessons.n05_preferences.exercises import PAIRED_BOOTSTRAP
from llama2lab.lessons.n05_preferences.experiments import (
    WAYS,
    Effort,
    agreement_by_prevalence,
    beside_simulated,
    learnt,
    logistic_weights,
    own_labels,
    own_store,
    pull,
    vendor_labels,
)
from llama2lab.lessons.n05_preferences.pairs import draw, prompts_by_id, real_pairs, true_gap, truth_rows
from llama2lab.stages.evaluate import TIE
from llama2lab.town.annotators import VENDORS


def test_pairs_are_the_runs_and_their_order_says_nothing(lab):
    pairs = real_pairs(lab, 40)
    assert len(pairs) == 40 and pairs == real_pairs(lab, 40) != real_pairs(lab, 40, seed=1)
    chosen = {row["chosen"][0]["content"] for row in draw(lab, "helpfulness", "train", 40, 0)}
    assert 5 < sum(one in chosen for _, one, _ in pairs) < 35
    rows = truth_rows(lab, 40)
    asked = prompts_by_id(lab)
    assert rows and all(
        true_gap(lab, (asked[r["prompt_id"]], r["chosen"][0]["content"], r["rejected"][0]["content"])) > TIE
        for r in rows
    )


def test_own_labels_begin_with_a_stand_in_and_are_then_ones_own(lab):
    store = own_store(lab, n=8, gold=2)
    said, people = own_labels(lab, store, n=8)
    assert not people and len(said) == 8 and store.labels() == []
    figures = beside_simulated(lab, said)
    assert 0 <= figures["same"]["mean"] <= 1 and figures["seconds"] is None
    me = store.annotator("me")
    while (task := queue.next_task(store, me, seed=0)) is not None:
        queue.submit(store, me, task.item_id, "left", "better", seconds=4.0)
    said, people = own_labels(lab, own_store(lab, n=8, gold=2), n=8)
    assert people and len(said) == 10
    figures = beside_simulated(lab, said)
    assert figures["seconds"] == 4.0 and figures["gold"]["n"] == 2 and figures["truth"]["n"] <= 8
    store.close()


def test_agreement_by_prevalence():
    both, neither = agreement_by_prevalence(shares=(0.5, 0.95), n=1000).values()
    assert neither[0.95]["percent"] == pytest.approx(0.905, abs=0.002)
    assert abs(neither[0.95]["alpha"]) < 0.02 < 0.8 < neither[0.95]["AC1"]
    assert both[0.95]["alpha"] < both[0.5]["alpha"] and both[0.95]["AC1"] > both[0.5]["AC1"]


def test_vendors_judge_the_same_pairs(lab):
    items, said = vendor_labels(lab, 300)  # of 60 pairs, chance alone can put the hasty first
    assert len(said) == len(items) * len(VENDORS)
    right = {name: preferences.against_truth(lab, items, [x for x in said if x["vendor"] == name]) for name in VENDORS}
    assert right["careful"]["all"]["mean"] > right["hasty"]["all"]["mean"]
    by_grade = preferences.second_opinion(said, "careful", "typical")
    assert sum(f["n"] for f in by_grade.values()) == len(items)


def test_a_reward_model_leaves_the_shared_chat_model_as_it_was(lab):
    """All experiments of a process share it: frozen, it could be trained in none of the next."""
    preferences.reward_on(lab, draw(lab, "helpfulness", "train", 16, 0), 0)
    assert all(p.requires_grad for p in lab.model("sft").parameters())


def test_a_pull_is_measured_against_the_truth():
    rows = [
        {"chosen": [{"content": "a b c"}], "rejected": [{"content": "a"}]},
        {"chosen": [{"content": "a"}], "rejected": [{"content": "a b c"}]},
    ]
    assert pull(rows, [(1, 0), (1, 0)], "longer")["mean"] == 0
    assert pull(rows, [(1, 0), (0, 1)], "longer")["mean"] == 0.5
    assert pull(rows, [(0, 1), (1, 0)], "longer")["mean"] == -0.5
    assert pull(rows, [(1, 1), (2, 2)], "longer")["mean"] == 0  # a tie is half for either, as in the truth here


def test_people_label_as_long_as_they_may():
    effort = Effort(seconds_choice=20, seconds_grade=4, seconds_score=20)
    assert [effort.pairs(way, 1) for way in WAYS] == [180, 150, 90]
    rng = np.random.default_rng(1)
    parts = {}
    for name, n in (("train", 300), ("test", 100)):
        x = rng.normal(size=(2 * n, 4))
        parts[name] = {"x": x.tolist(), "worth": (x @ [1.0, -1.0, 0.5, 0.0]).tolist()}
    few, many = learnt(parts, effort, 0.05, 0), learnt(parts, effort, 2.0, 0)
    assert all(many[way] > 0.8 for way in WAYS) and few["choice"] < many["choice"]
    strict = [
        np.mean([learnt(parts, Effort(strictness=s), 0.3, seed)["two scores"] for seed in range(6)]) for s in (0.0, 3.0)
    ]
    assert strict[0] > strict[1]


def test_logistic_weights_find_the_direction():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    w = logistic_weights(x, x @ [1.0, -2.0] + rng.logistic(size=400) > 0)
    assert w[0] > 0 > w[1] and abs(w[1] / w[0] + 2) < 0.8


def test_the_choice_experiment_in_a_tiny_size(lab):
    result = preferences.choice_against_scores(lab, (0.1, 0.2), 2, (0.0,), pairs=20, held_out=16, dims=3)
    assert set(result["accuracy"]["0"]) == set(WAYS) and "less two scores" in repr(shown.verdicts(result["claims"]))


@pytest.mark.slow
def test_vendors_in_a_tiny_size(lab):
    result = preferences.vendors(lab, pairs=24, held_out=16, seeds=(0,), names=("careful", "hasty"))
    assert set(result["models"]) == set(result["labels"]) == {"truth", "careful", "hasty"}
    assert result["labels"]["truth"]["mean"] == 1.0 and len(result["claims"]) == 1


def test_two_vendors_on_the_same_pairs(lab):
    items, said = vendor_labels(lab, 200)
    careful, hasty = preferences.right_or_wrong(lab, items, said, ("careful", "hasty"))
    assert len(careful) == len(hasty) and set(careful) | set(hasty) == {0.0, 1.0}
    of_careful = [x for x in said if x["vendor"] == "careful"]
    truth = preferences.against_truth(lab, items, of_careful)["all"]
    assert (careful.mean(), len(careful)) == (pytest.approx(truth["mean"]), truth["n"])
    (how, same), (_, others) = preferences.apart(careful, hasty, lambda a, b: (0, 1)).items()
    assert "the library's" in how and same["mean"] == pytest.approx(others["mean"])
    assert same["low"] < same["mean"] < same["high"]
    assert "yours" in next(iter(preferences.apart(careful, hasty, PAIRED_BOOTSTRAP.solution)))
