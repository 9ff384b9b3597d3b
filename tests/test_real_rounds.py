"""Rounds on real text: reward models that learnt from other pairs label fresh answers, and nobody judges whom it
taught; people's labels join."""

import itertools
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_realdata import OWN, own_data  # noqa: F401

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import read_rows
from llama2lab.engine.stagefiles import read_record
from llama2lab.run.presets import load_real_recipe
from llama2lab.run.real import RealWorld
from llama2lab.run.realsplits import PARTS, PARTS_OF_ROUNDS, load_texts, opening, part_of
from llama2lab.run.recipe import run_real
from llama2lab.run.simulated import drawn
from llama2lab.stages.rounds import Workshop

MORE = """
rounds: 3
compare_heads: true
preferences: {helpfulness: [1, 6, 6, 6, 6], safety: [1, 6, 6, 6, 6], temperatures: [1.0]}
"""


def test_the_annotators_part_is_half_of_the_judges():
    for i in range(500):
        asked = [{"role": "user", "content": f"Question {i}?"}]
        before, after = part_of(asked), part_of(asked, PARTS_OF_ROUNDS)
        assert after == before or (before, after) == ("judge", "annotator")
    assert PARTS_OF_ROUNDS["annotator"] + PARTS_OF_ROUNDS["judge"] == pytest.approx(PARTS["judge"])


def test_annotators_choose_as_surely_as_their_model():
    rng = random.Random(0)
    drawns = [drawn(2.0, 0.0, rng) for _ in range(4000)]
    assert sum(choice == 0 for choice, _ in drawns) / 4000 == pytest.approx(0.881, abs=0.02)  # sigmoid(2)
    assert set(drawns) == {(0, "better"), (1, "negligibly")}
    assert drawn(50.0, -50.0, rng) == (0, "significantly") and drawn(-1e9, 1e9, rng)[0] == 1
    assert {grade for _, grade in (drawn(0.5, 0.0, rng) for _ in range(50))} == {"slightly", "negligibly"}


def label(prompt, kind="helpfulness", **more):
    return {
        "item_id": prompt, "kind": kind, "prompt": [{"role": "user", "content": prompt}], "answers": ["Yes.", "No."],
        "choice": 1, "grade": "better", "safe_1": None, "safe_2": None, "flag": False, "gold": None, "prompt_id": "",
        "annotator": "ann", "annotator_kind": "person", "vendor": "class", "verdict": None, **more,
    }  # fmt: skip


@pytest.mark.slow
def test_three_rounds_with_peoples_labels_from_end_to_end(own_data: Path):  # noqa: F811
    (own_data / "own.yaml").write_text(OWN + MORE)
    recipe = load_real_recipe(own_data / "own.yaml")
    texts = load_texts(recipe, own_data / "data", 0)
    firsts = {part: opening(r["prompt"]) for r in texts.pairs["helpfulness"] for part in [r["part"]]}
    assert set(firsts) == set(PARTS_OF_ROUNDS)
    labels = [label("A question of ours?"), label(firsts["train"]), label(firsts["judge"]), label(firsts["annotator"])]
    out = own_data / "run"
    stages = run_real(own_data / "own.yaml", out, 0, "cpu", "fp32", own_data / "data", labels)["stages"]
    assert [s for s in stages if s.startswith(("pref", "reward-h", "annot", "rlhf"))] == [
        "annotations", "preferences-v1", "reward-helpfulness-v1", "reward-helpfulness-v1-likelihood", "rlhf-v1",
        "annotator-helpfulness", "annotator-safety", "preferences-v2", "reward-helpfulness-v2", "rlhf-v2",
        "preferences-v3", "reward-helpfulness-v3", "rlhf-v3",
    ]  # fmt: skip
    assert "log" in stages["rlhf-v3"]["metrics"] and "log" not in stages["rlhf-v2"]["metrics"]  # PPO at the end

    # people's labels train policies' reward models, and no others
    assert (
        stages["annotations"]["metrics"]["helpfulness"]["rows"] == 2
        and stages["annotations"]["metrics"]["held_out"] == 2
    )
    parents = {name: read_record(out / name).parents for name in stages}
    assert "annotations" in parents["reward-helpfulness-v3"]
    assert not any("annotations" in parents[name] for name in ("judge-helpfulness", "annotator-helpfulness"))

    for name, part, people in (("judge", "judge", 0), ("annotator", "annotator", 0), ("reward", "train", 2)):
        own, other = (len(read_rows(out / "preferences-v1" / f"{k}.{part}.jsonl")) for k in ("helpfulness", "safety"))
        trained = stages[f"{name}-helpfulness{'-v1' if name == 'reward' else ''}"]["metrics"]["pairs"]
        assert trained == own + people + min(own + people, other)  # half of the mix is the other kind's

    # nobody is judged or labelled on what it learnt
    parts: dict[str, set[str]] = {part: set() for part in PARTS_OF_ROUNDS}
    for kind, part in itertools.product(("helpfulness", "safety"), parts):
        parts[part] |= {opening(row["prompt"]) for row in read_rows(out / "preferences-v1" / f"{kind}.{part}.jsonl")}
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))
    fresh = read_rows(out / "preferences-v2" / "helpfulness.train.jsonl")
    assert fresh and {opening(row["prompt"]) for row in fresh} <= parts["train"]
    assert {row["annotator"] for row in fresh} == {"annotator-helpfulness"} and {row["round"] for row in fresh} == {2}
    tested = read_rows(out / "preferences-v2" / "helpfulness.test.jsonl")
    assert tested and {opening(row["prompt"]) for row in tested} <= parts["test"]
    assert stages["reward-helpfulness-v2"]["metrics"]["accuracy_on_fresh"]["n"] == len(tested)
    assert "accuracy_on_fresh" not in stages["reward-helpfulness-v1"]["metrics"]
    assert stages["reward-helpfulness-v3"]["metrics"]["pairs"] > stages["reward-helpfulness-v2"]["metrics"]["pairs"]

    # the question of this lab: what the heads make of the truth, and what the models know before
    for name in ("reward-helpfulness-v1", "reward-helpfulness-v1-likelihood"):
        found = stages[name]["metrics"]
        assert found["truth"]["n"] == found["truth_by_likelihood"]["base"]["likelihood_mean"]["n"] == 160
    heads = Counter(stages[name]["metrics"]["head"] for name in stages if name.startswith("reward-helpfulness-v1"))
    assert heads == {"linear": 1, "likelihood": 1}


class Recorder:
    """A run that builds nothing and remembers what each stage is made from."""

    def __init__(self, path: Path):
        self.path, self.parents, self.said = path, dict[str, list[str]](), list[str]()

    def stage(self, name, build, settings, parents=()):
        self.parents[name] = list(parents)

    def folder(self, name):
        return self.path / name

    def say(self, line):
        self.said.append(line)


def test_five_rounds_are_the_reports_without_ghost_attention(own_data: Path, monkeypatch):  # noqa: F811
    (own_data / "own.yaml").write_text(OWN + MORE.replace("rounds: 3", "rounds: 5"))
    world = RealWorld.from_files(own_data / "own.yaml", own_data / "data", 0)
    monkeypatch.setattr(world, "check_reading", lambda *_: None)
    run, measured = Recorder(own_data), list[str]()
    shop = Workshop(run, 0, None, None, None)  # type: ignore[arg-type]
    world.rounds(shop, SimpleNamespace(measure=measured.append, prompts=[]))  # type: ignore[arg-type]
    chat = [name for name in measured if name.startswith("rlhf")]
    assert chat == ["rlhf-v1", "rlhf-v2", "rlhf-v3", "rlhf-v4", "rlhf-v5"] and "gatt" not in run.parents
    assert run.parents["rlhf-v4"] == ["sft", "samples-v1", "samples-v2", "samples-v3", "samples-v4"]
    assert run.parents["samples-v4"] == ["rlhf-v3", "reward-helpfulness-v4", "reward-safety-v4"]
    assert run.parents["preferences-v4"] == ["sft", "rlhf-v3", "rlhf-v2"] and "preferences-v1" not in run.parents
    assert run.parents["rlhf-v5"][:3] == ["rlhf-v4", "reward-helpfulness-v5", "reward-safety-v5"]
    assert ["Ghost Attention" in line for line in run.said] == [True]


def test_labels_on_held_out_prompts_alone_are_said_at_once(own_data: Path):  # noqa: F811
    recipe = load_real_recipe(own_data / "own.yaml")
    texts = load_texts(recipe, own_data / "data", 0)
    asked = next(opening(r["prompt"]) for r in texts.pairs["safety"] if r["part"] == "test")
    labels = [label(asked), label("How do I kill a process?")]  # a test prompt, and a refusal probe
    with pytest.raises(LabError, match="gives no training row: 2 labels by people, of which 2 are on held-out prompts"):
        run_real(own_data / "own.yaml", own_data / "run", 0, "cpu", "fp32", own_data / "data", labels)


def test_what_is_left_of_a_held_out_dialogue_is_held_out(own_data: Path):  # noqa: F811
    texts = load_texts(load_real_recipe(own_data / "own.yaml"), own_data / "data", 0)
    said = lambda role, text: {"role": role, "content": text}  # noqa: E731
    row = {"prompt": [said("user", "a?"), said("assistant", "b"), said("user", "and  C?")], "part": "test"}
    texts = replace(texts, pairs={"helpfulness": [row], "safety": []})
    assert texts.is_held_out([said("user", "And c?")]) and not texts.is_held_out([said("user", "d?")])


def test_rounds_are_one_to_five(tmp_path: Path):
    for value in (0, 6):
        (tmp_path / "r.yaml").write_text(OWN + f"rounds: {value}\n")
        with pytest.raises(LabError, match=r"r\.yaml:\d+: rounds must be at"):
            load_real_recipe(tmp_path / "r.yaml")
