"""The rounds: which model each one starts from, samples from and asks people about, as the report has it (section
3.2.3, figure 11) and as the notebooks tell it."""

from types import SimpleNamespace

import pytest

from llama2lab.stages import rounds
from llama2lab.stages.rounds import RlhfSettings, Workshop, rlhf


class Recorder:
    """In place of a run: builds every stage at once and notes its parents."""

    def __init__(self, path):
        self.path, self.parents = path, {}

    def stage(self, name, build, settings, parents=()):
        if name in self.parents:  # the control asks for the samples again
            assert self.parents[name] == list(parents)
            return self.folder(name)
        self.parents[name] = list(parents)
        self.folder(name).mkdir()
        self.building = name
        build(self.folder(name))
        return self.folder(name)

    def folder(self, name):
        return self.path / name


class Shop(Workshop):
    """Models are their stages' names."""

    def model(self, stage):
        assert stage in ("sft", "sft-noisy", "base") or stage in self.run.parents, f"{stage} is not built yet"
        return stage

    frozen = reward = model

    def rewards(self, version, helpfulness_stage=None):
        return helpfulness_stage or f"reward-helpfulness-v{version}", f"reward-safety-v{version}"

    def prompts(self, *_, **__):
        return []


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """{what: {stage: the model it works with}} of all five rounds, with stubs where a model would work."""
    run = Recorder(tmp_path)
    found = {what: {} for what in ("asked", "reward", "sampled", "judged", "start", "critic")}

    def note(what, value, result=None):
        found[what][run.building] = value
        return result

    monkeypatch.setattr(
        rounds.preferences, "collect", lambda variants, *_, **__: note("asked", [v.name for v in variants], [])
    )
    monkeypatch.setattr(rounds.preferences, "grade_shares", lambda rows: {})
    monkeypatch.setattr(rounds.reward, "pair_loglikelihoods", lambda *_: [])
    monkeypatch.setattr(
        rounds.reward,
        "train_reward",
        lambda start, tokenizer, rows, s, seed, machine, folder, reference, *_: note(
            "reward", (start, reference), ("model", {})
        ),
    )
    monkeypatch.setattr(rounds.reward, "save_reward", lambda *_: None)
    monkeypatch.setattr(
        rounds.rejection,
        "sample_and_score",
        lambda policy, helpful, safety, *_: (
            note("judged", (helpful, safety)) or note("sampled", policy, SimpleNamespace(rows=list, scores=[]))
        ),
    )
    monkeypatch.setattr(rounds.rejection, "best_of", lambda *_: [])
    monkeypatch.setattr(rounds.rejection, "finetuning_rows", lambda *_: [{}])
    monkeypatch.setattr(rounds.gatt, "sample_dialogues", lambda model, *_, **__: note("sampled", model, []))
    monkeypatch.setattr(rounds.gatt, "gatt_rows", lambda *_: [{}])
    monkeypatch.setattr(rounds, "sft", lambda model, *_: note("start", model, {}))
    monkeypatch.setattr(rounds, "save_model", lambda *_: None)
    monkeypatch.setattr(rounds.ppo, "Critic", lambda reward: note("critic", reward))
    monkeypatch.setattr(rounds.ppo, "ppo", lambda policy, *_, **__: note("start", policy, {}))
    monkeypatch.setattr(rounds, "read_rows", lambda path: [{}])
    source = SimpleNamespace(dialogues=lambda *_: ([], []))
    measured = []
    shop = Shop(run, 0, SimpleNamespace(precision="fp32"), None, source)
    rlhf(shop, RlhfSettings(), None, "nobody", measured.append, [])
    return SimpleNamespace(**found, parents=run.parents, measured=measured)


def test_each_version_starts_from_the_model_that_is_told(seen):
    """V1 to V3 from SFT again, Ghost Attention from V3, V4 from Ghost Attention, V5 (PPO) from V4."""
    assert seen.start == {
        "rlhf-v1": "sft",
        "rlhf-v1-random": "sft",
        "rlhf-v2": "sft",
        "rlhf-v3": "sft",
        "gatt": "rlhf-v3",
        "rlhf-v4": "gatt",
        "rlhf-v5": "rlhf-v4",
    }
    for stage, start in seen.start.items():
        assert start in seen.parents[stage], stage  # or another start would not build it anew


def test_each_version_learns_from_samples_of_the_latest_model(seen):
    latest = {1: "sft", 2: "rlhf-v1", 3: "rlhf-v2", 4: "gatt"}
    assert seen.sampled == {
        "samples-v1": "sft",
        "samples-v2": "rlhf-v1",
        "samples-v3": "rlhf-v2",
        "gatt": "rlhf-v3",
        "samples-v4": "gatt",
    }
    for version, sampler in latest.items():
        judges = f"reward-helpfulness-v{version}", f"reward-safety-v{version}"
        assert seen.judged[f"samples-v{version}"] == judges
        assert {sampler, *judges} <= set(seen.parents[f"samples-v{version}"])
        assert {f"samples-v{v}" for v in range(1, version + 1)} <= set(seen.parents[f"rlhf-v{version}"])


def test_people_are_asked_about_the_two_latest_models_and_rewards_go_on_from_the_last_round(seen):
    assert seen.asked == {
        "preferences-v1": ["sft", "sft-noisy"],
        "preferences-v2": ["rlhf-v1", "sft"],
        "preferences-v3": ["rlhf-v2", "rlhf-v1"],
        "preferences-v4": ["gatt", "rlhf-v2"],
        "preferences-v5": ["rlhf-v4", "gatt"],
    }
    assert seen.reward == {
        f"reward-{kind}-v{n}": (f"reward-{kind}-v{n - 1}" if n > 1 else "sft", "sft")
        for kind in ("helpfulness", "safety")
        for n in range(1, 6)
    }
    assert all(start in seen.parents[stage] for stage, (start, _) in seen.reward.items())
    assert seen.critic == {"rlhf-v5": "reward-helpfulness-v5"}
    for version, models in seen.asked.items():
        assert set(models) <= set(seen.parents[version])


def test_the_shipped_run_was_built_so(lab):
    """The parents that its stages recorded."""
    from llama2lab.engine.files import read_json

    def parents(stage):
        return set(read_json(lab.stage(stage) / "stage.json")["parents"])

    assert "sft" in parents("rlhf-v1") and "sft" in parents("rlhf-v3") and "rlhf-v3" in parents("gatt")
    assert "gatt" in parents("rlhf-v4") and "rlhf-v4" in parents("rlhf-v5")
    assert "gatt" not in parents("rlhf-v1") | parents("rlhf-v3")
