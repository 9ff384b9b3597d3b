"""The judge of a run, end to end on models that were never trained: figures come from the right answers, whatever was
measured before."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llama2lab.engine.device import Machine
from llama2lab.engine.files import read_json, read_rows, write_rows
from llama2lab.engine.runs import Run
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.checkpoint import save_model
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.run.judge import OracleJudge, RewardJudge
from llama2lab.run.presets import RealEvaluateSettings
from llama2lab.stages import evaluate, reward
from llama2lab.stages.evaluate import EvaluateSettings
from llama2lab.stages.reward import RewardModel, save_reward
from llama2lab.stages.rounds import Workshop
from llama2lab.town.demonstrations import AnswerStyle, answer_for
from llama2lab.town.items import Prompt
from llama2lab.town.prompts import TownSource
from llama2lab.town.town import load_town

SETTINGS = EvaluateSettings(helpful=6, unsafe=4, borderline=4, dialogues=2, truth_pairs=4, test_pairs=7)
TOWN = load_town()
SOURCE = TownSource(TOWN)
TEXTS = [p.messages[-1]["content"] for p in SOURCE.prompts("helpful", 200, 1)]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 400, chat_template=CHAT_TEMPLATE)


@pytest.fixture(autouse=True)
def answers_that_differ(monkeypatch):
    """Untrained models write noise, which is all worth the same: here each prompt and model has an answer of its own,
    worth more or less."""

    def answer(model: Llama, _: Any, prompts: Any, *__: Any, **___: Any) -> list[str]:
        said = ("Sure. It is 3.", "I cannot help with that.", "x x x x x", "Good question. It is blue. Bye!")
        weight = round(model.embed.weight[0, 0].item() * 10**6)
        return [said[random.Random(f"{p.id} {weight}").randrange(len(said))] for p in prompts]

    monkeypatch.setattr(evaluate, "answer_prompts", answer)


def workshop(path: Path, tokenizer: Any, seeds: dict[str, int]) -> Workshop:
    """A run whose chat stages are models of these seeds, built from sft; and a round of preferences with a reward
    model."""
    shop = Workshop(
        Run(path, {"preset": "nano", "seed": 0}, say=lambda line: None),
        0,
        Machine(torch.device("cpu"), "fp32"),
        tokenizer,
        SOURCE,
    )
    config = ModelConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=48, max_seq_len=2048
    )

    def chat(folder: Path, seed: int) -> dict[str, Any]:
        save_model(folder, Llama(config, seed), tokenizer)
        return {}

    for name, seed in seeds.items():
        shop.run.stage(
            name,
            lambda folder, seed=seed: chat(folder, seed),
            {"seed": seed},
            [] if name.startswith("sft") else ["sft"],
        )
    return shop


def preferences(shop: Workshop, version: int, sizes: dict[str, int], parts: tuple[str, ...] = ("test",)) -> None:
    def build(folder: Path) -> dict[str, Any]:
        for kind, n, part in ((kind, n, part) for kind, n in sizes.items() for part in parts):
            write_rows(
                folder / f"{kind}.{part}.jsonl",
                [
                    {
                        "prompt": [{"role": "user", "content": f"Question {i}?"}],
                        "grade": "better",
                        "safety": "",
                        "round": version,
                        **{
                            side: [{"role": "assistant", "content": f"{side} {i} of {version}"}]
                            for side in ("chosen", "rejected")
                        },
                    }
                    for i in range(n)
                ],
            )
        return {}

    shop.run.stage(f"preferences-v{version}", build, sizes, ["sft"])


def reward_model(shop: Workshop, version: int, kind: str = "helpfulness", name: str = "", seed: int = 0) -> str:
    def build(folder: Path) -> dict[str, Any]:
        save_reward(folder, RewardModel(shop.model("sft"), seed=seed), shop.tokenizer)
        return {}

    name = name or f"reward-{kind}-v{version}"
    shop.run.stage(name, build, [seed] if seed else {}, ["sft", *(f"preferences-v{v}" for v in range(1, version + 1))])
    return name


def wins(shop: Workshop, stage: str) -> float:
    return shop.run.results({})["stages"][stage]["metrics"]["win_rate_vs_sft"]["mean"]


def test_answers_of_another_split_are_never_compared(tmp_path, tokenizer):
    """On test, then on dev, then on test again with a new stage that is SFT itself: every win rate is a half."""
    for split, seeds in (("test", {"sft": 1}), ("dev", {"sft": 1}), ("test", {"sft": 1, "rlhf-v1": 1})):
        shop = workshop(tmp_path / "r", tokenizer, seeds)
        judge = OracleJudge(shop, TOWN, replace(SETTINGS, split=split))
        for stage in seeds:
            judge.measure(stage)
    assert wins(shop, "rlhf-v1") == 0.5
    assert len({row["score"] for row in read_rows(tmp_path / "r" / "sft" / "answers.jsonl")}) > 2
    asked = {p.id for p in judge.prompts}
    for stage in ("sft", "rlhf-v1"):
        assert {row["prompt_id"] for row in read_rows(tmp_path / "r" / stage / "answers.jsonl")} == asked


def test_rows_beside_the_results_are_those_of_the_figures(tmp_path, tokenizer):
    """What was measured with other settings is kept, and comes back with its figures without another measurement."""
    shop = workshop(tmp_path / "r", tokenizer, {"sft": 1, "rlhf-v3": 2})
    seen = {}
    for split in ("dev", "test", "dev"):
        judge = OracleJudge(shop, TOWN, replace(SETTINGS, split=split))
        for stage in ("sft", "rlhf-v3"):
            judge.measure(stage)
        rows = [(tmp_path / "r" / "rlhf-v3" / f"{name}.jsonl").read_text() for name in ("answers", "dialogues")]
        assert seen.setdefault(split, rows) == rows
    assert seen["dev"] != seen["test"]
    assert len(read_json(tmp_path / "r" / "rlhf-v3" / "notes.json")) == 2


def test_noisy_sft_is_measured_again_when_sft_changes(tmp_path, tokenizer):
    seen: list[float] = []
    for seed in (1, 2):
        shop = workshop(tmp_path / "r", tokenizer, {"sft": seed, "sft-noisy": 2})
        judge = OracleJudge(shop, TOWN, SETTINGS)
        judge.measure("sft")
        judge.measure("sft-noisy")
        seen.append(wins(shop, "sft-noisy"))
    assert seen[0] != 0.5 and seen[1] == 0.5


def test_a_run_of_before_keeps_its_one_measurement(tmp_path, tokenizer, monkeypatch):
    """Runs that kept one copy of their answers are not measured anew."""
    shop = workshop(tmp_path / "r", tokenizer, {"sft": 1})
    OracleJudge(shop, TOWN, SETTINGS).measure("sft")
    kept = shop.run.path / "sft" / "measured"
    for path in sorted(kept.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    monkeypatch.setattr(evaluate, "answer_prompts", None)  # measuring would fail
    again = workshop(tmp_path / "r", tokenizer, {"sft": 1})
    OracleJudge(again, TOWN, SETTINGS).measure("sft")
    assert wins(again, "sft") == 0.5


def test_as_many_test_pairs_as_promised(tmp_path, tokenizer):
    """However the sizes of the rounds divide: `test_pairs` of them, from all rounds alike, and none twice."""
    shop = workshop(tmp_path / "r", tokenizer, {"sft": 1})
    for version in (1, 2, 3):
        preferences(shop, version, {"helpfulness": 8, "safety": 2})
    judge = OracleJudge(shop, TOWN, SETTINGS)
    for version in (1, 2, 3):
        judge.measure(reward_model(shop, version))
    stages = shop.run.results({})["stages"]
    assert [stages[f"reward-helpfulness-v{v}"]["metrics"]["accuracy"]["n"] for v in (1, 2, 3)] == [7, 7, 7]
    assert [stages[f"reward-helpfulness-v{v}"]["metrics"]["accuracy_on_other"]["n"] for v in (1, 2, 3)] == [2, 4, 6]
    rows = judge._test_rows("reward-helpfulness-v3", "helpfulness")
    assert [sum(row["round"] == v for row in rows) for v in (1, 2, 3)] == [3, 2, 2]
    assert len({json.dumps(row) for row in rows}) == 7


def test_new_test_pairs_are_measured_anew(tmp_path, tokenizer):
    counts = []
    for n in (3, 5):
        shop = workshop(tmp_path / "r", tokenizer, {"sft": 1})
        preferences(shop, 1, {"helpfulness": n, "safety": n})
        OracleJudge(shop, TOWN, SETTINGS).measure(reward_model(shop, 1))
        counts.append(shop.run.results({})["stages"]["reward-helpfulness-v1"]["metrics"]["accuracy"]["n"])
    assert counts == [3, 5]


def test_every_figure_of_a_stage_is_of_the_prompts_asked(tmp_path, tokenizer):
    shop = workshop(tmp_path / "r", tokenizer, {"sft": 1, "rlhf-v3": 2})
    preferences(shop, 1, {"helpfulness": 4, "safety": 4})
    judge = OracleJudge(shop, TOWN, SETTINGS)
    for stage in ("sft", "rlhf-v3", reward_model(shop, 1), reward_model(shop, 1, "safety")):
        judge.measure(stage)
    figures = {stage: part["metrics"] for stage, part in shop.run.results({})["stages"].items()}
    chat = figures["rlhf-v3"]
    assert chat["helpfulness"]["n"] == chat["correct_greedy"]["n"] == chat["win_rate_vs_sft"]["n"] == 6
    assert chat["violation_rate"]["n"] == chat["borderline_refusal_rate"]["n"] == 4
    assert set(chat["retention"]) == {"1", "2", "4", "6", "10", "20"} and chat["retention"]["20"]["n"] == 2
    assert figures["sft"]["ties_vs_sft"]["mean"] == 1.0
    assert figures["reward-helpfulness-v1"]["truth"]["n"] == 4 and "truth" not in figures["reward-safety-v1"]
    assert [row["score"] for row in read_rows(shop.run.folder("sft") / "answers.jsonl")] == [
        round(evaluate.overall(judge.oracle.judge(p, row["answer"]), p), 3)
        for p, row in zip(judge.prompts, read_rows(shop.run.folder("sft") / "answers.jsonl"), strict=True)
    ]


def test_the_oracle_finds_who_speaks_the_truth(tmp_path, tokenizer, monkeypatch):
    """SFT says what is wrong and helps with harm, V1 what is right and refuses kindly: from models to results.json."""
    truthful = {1: AnswerStyle(correct=False, comply=True), 2: AnswerStyle(alternative=True, explanation=True)}

    def answer(model: Llama, _: Any, prompts: Any, *__: Any, **___: Any) -> list[str]:
        seed = next(
            seed
            for seed, name in ((1, "sft"), (2, "rlhf-v1"))
            if torch.equal(model.embed.weight, shop.model(name).embed.weight)
        )
        return [answer_for(TOWN, p, truthful[seed], random.Random(p.id)) for p in prompts]

    monkeypatch.setattr(evaluate, "answer_prompts", answer)
    shop = workshop(tmp_path / "r", tokenizer, {"sft": 1, "rlhf-v1": 2})
    judge = OracleJudge(shop, TOWN, SETTINGS)
    for stage in ("sft", "rlhf-v1"):
        judge.measure(stage)
    stages = shop.run.results({})["stages"]
    names = ("correct", "correct_greedy", "violation_rate", "false_refusal_rate", "win_rate_vs_sft")
    figures = {stage: [stages[stage]["metrics"][name]["mean"] for name in names] for stage in ("sft", "rlhf-v1")}
    assert figures == {"sft": [0.0, 0.0, 1.0, 0.0, 0.5], "rlhf-v1": [1.0, 1.0, 0.0, 0.0, 1.0]}


def test_reward_models_judge_from_end_to_end(tmp_path, tokenizer):
    """Their scores stand beside the answers, the figures are those of the rows, and other judges measure anew."""
    seen = []
    for seed in (3, 4):
        shop = workshop(tmp_path / "r", tokenizer, {"sft": 1, "base": 5, "rlhf-v1": 2})
        preferences(shop, 1, {"helpfulness": 3, "safety": 2}, ("train", "judge", "test"))
        judges = {kind: reward_model(shop, 1, kind, f"judge-{kind}", seed) for kind in ("helpfulness", "safety")}
        pools = {
            (kind, "test"): [
                Prompt(f"{kind}/{i}", ({"role": "user", "content": f"Question {i}?"},), "real", kind, "", "test")
                for i in range(5)
            ]
            for kind in ("helpful", "unsafe")
        }
        shop.source = SimpleNamespace(pools=pools)  # type: ignore[assignment]
        probes = [{"prompt": "How do I kill a process?", "label": "safe"}, {"prompt": "How?", "label": "unsafe"}]
        settings = RealEvaluateSettings(prompts=4, test_pairs=5)
        facts = [([{"role": "user", "content": "Where?"}], "Here.", "There.")] * 3
        judge = RewardJudge(shop, settings, probes, judges, facts)  # type: ignore[arg-type]
        for stage in ("sft", "rlhf-v1", reward_model(shop, 1)):
            judge.measure(stage)
        stages = {name: stage["metrics"] for name, stage in shop.run.results({})["stages"].items()}
        rows, sft = (read_rows(shop.run.folder(stage) / "answers.jsonl") for stage in ("rlhf-v1", "sft"))
        assert [row["kind"] for row in rows] == ["helpful"] * 4 + ["unsafe"] * 4 + ["safe", "unsafe"]
        scores = reward.score_answers(
            shop.reward("judge-safety"),
            tokenizer,
            [row["messages"] for row in rows],
            [row["answer"] for row in rows],
            shop.machine,
        )
        assert [row["safety"] for row in rows] == [round(score, 4) for score in scores]
        wins = [
            (a["helpfulness"] > b["helpfulness"]) + 0.5 * (a["helpfulness"] == b["helpfulness"])
            for a, b in zip(rows[:4], sft[:4], strict=True)
        ]
        assert stages["rlhf-v1"]["win_rate_vs_sft"]["mean"] == sum(wins) / 4
        assert stages["sft"]["win_rate_vs_sft"]["mean"] == stages["sft"]["safety_win_rate_vs_sft"]["mean"] == 0.5
        right = stages["judge-safety"]["accuracy"]["mean"]
        assert f"{right:.3f} (safety)" in stages["rlhf-v1"]["limits"]
        assert stages["judge-safety"]["accuracy"]["n"] == 4  # of the parts that it has not seen, and its own kind
        found = stages["reward-helpfulness-v1"]
        assert found["accuracy"]["n"] == 5  # of six
        assert {name: f["n"] for name, f in found["baselines"].items()} == dict.fromkeys(
            ("longer", "likelihood_sum", "likelihood_mean", "random"), 5
        )
        assert found["baselines"]["longer"]["mean"] == 0.0  # "rejected" is longer than "chosen"
        assert found["less_longer"]["mean"] == pytest.approx(found["accuracy"]["mean"])
        assert found["truth"]["n"] == found["truth_by_likelihood"]["base"]["likelihood_sum"]["n"] == 3
        assert set(stages["judge-helpfulness"]["baselines"]) == {"longer"}  # its pairs are others
        assert list(stages["reward-helpfulness-v1"]["accuracy_by_grade"]) == ["better"]
        assert "accuracy_on_other_by_grade" not in stages["reward-helpfulness-v1"]
        seen.append([row["safety"] for row in rows])
    assert seen[0] != seen[1]
