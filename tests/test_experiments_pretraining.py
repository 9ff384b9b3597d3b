"""Experiments of pretraining, on tiny settings."""

import math

import pytest
from lab_cases_first import step_late

from llama2lab.lessons.n03_pretraining import experiments as p
from llama2lab.stages.pretrain import bits_of
from llama2lab.town.town import load_town


@pytest.fixture(scope="module")
def town():
    return load_town()


def test_corruption_changes_that_share_of_values_and_nothing_else(town):
    person = next(iter(town.people.values()))
    text = f"{person.name} lives on {person.facts['home']}. 3 plus 4 is 7. " * 200
    wrong, half, same = (p.corrupted(town, [text], share)[0] for share in (1.0, 0.5, 0.0))
    assert same == text and person.facts["home"] not in wrong and "3 plus 4 is 7." in wrong
    assert 60 < half.count(person.facts["home"]) < 140
    assert len(wrong.split(" lives on ")) == len(text.split(" lives on "))


def test_a_moved_town_has_other_facts_and_the_same_people(town):
    later = p.moved(town)
    kinds = p.named_values(town)
    assert list(later.people) == list(town.people) and later.values("home") == town.values("home")
    stay = sum(later.people[who].facts[a] == town.people[who].facts[a] for who in town.people for a in kinds)
    assert stay < 0.25 * len(town.people) * len(kinds)
    assert all(later.people[who].facts["friend"] == town.people[who].facts["friend"] for who in town.people)


def test_probes_are_those_that_corruption_can_spoil(town):
    probes = p.people_probes(town)
    values = p.named_values(town)
    assert len(probes) >= len(town.people) * len(values) * 0.9
    assert not any(value.isdigit() for _, value, _ in probes)


def test_the_first_named_value_counts():
    streets = ["Mill Lane", "Oak Street"]
    assert p.first_named("on MILL LANE, not Oak Street", streets) == "Mill Lane"
    assert p.first_named("on Mill", streets) == ""


def test_no_form_gives_the_answer_away(town):
    for attribute in p.named_values(town):
        for who in list(town.people)[:5]:
            value = town.people[who].facts[attribute]
            for name, text in p.forms(town, attribute, who).items():
                if "list" not in name and "before" not in name:
                    assert value.lower() not in text.lower(), (name, text)


def test_experiments_on_tiny_settings(lab):
    before = lab.model("base").embed.weight.clone()
    data = p.data_size_and_quality(lab, (600, 1_200), 1_200)
    assert (lab.model("base").embed.weight == before).all()
    assert [r["corpus"] for r in data["rows"]] == ["clean", "clean", "clean", "noisy"]
    assert data["rows"][0]["tokens"] == 0 and data["rows"][2]["tokens"] > 1.5 * data["rows"][1]["tokens"]
    assert set(p.known_by_tokens(data)) == {"clean", "noisy"} and len(data["claims"]) == 2
    asked = p.prompt_forms(lab, people=2)
    assert len(asked) == 10 and all(form["right"]["n"] == 2 * len(p.named_values(lab.town)) for form in asked.values())


def test_a_model_is_trained_by_ones_own_step(lab):
    log, owner = p.trained_by_hand(lab, 6, schedule=lambda *args: 0.0, training_step=step_late)
    assert owner == {"schedule": "the library's", "training_step": "yours"}
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6] and log[-1]["loss"] < log[0]["loss"]
    assert max(row["rate"] for row in log) <= 3e-3
    again, _ = p.trained_by_hand(lab, 6)
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in log], abs=1e-3)


def test_bits_are_of_bytes():
    assert bits_of([math.log(2) * 10, 5.0, math.log(2) * 3], ["hello", "", "東"]) == pytest.approx([2.0, 1.0])
