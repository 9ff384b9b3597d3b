"""Pairs of a run for people to judge: training prompts only, models named in secret, gold that nobody could dispute."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llama2lab.annotation.store.queue import next_task, submit
from llama2lab.annotation.store.store import open_store
from llama2lab.cli.main import app
from llama2lab.engine.errors import LabError
from llama2lab.engine.runs import Run
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.checkpoint import save_model
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.run.gold import gold_pairs
from llama2lab.run.pairs import pairs_of_run
from llama2lab.town.demonstrations import demonstrations
from llama2lab.town.oracle import Oracle
from llama2lab.town.prompts import every_prompt
from llama2lab.town.town import load_town


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, with untrained models of different weights."""
    folder = tmp_path_factory.mktemp("runs") / "smoke-0"
    texts = [m["content"] for row in demonstrations(load_town(), 60, 0) for m in row["messages"]]
    tokenizer = train_tokenizer(texts, 400, chat_template=CHAT_TEMPLATE)
    made = Run(folder, {"preset": "smoke", "seed": 0}, say=lambda line: None)

    def chat(path: Path, seed: int) -> dict[str, Any]:
        config = ModelConfig(len(tokenizer), 32, 1, 4, 2, 48, max_seq_len=512)
        save_model(path, Llama(config, seed), tokenizer)
        return {}

    for seed, stage in enumerate(("sft", "rlhf-v1")):
        made.stage(stage, lambda path, seed=seed: chat(path, seed), seed)
    return folder


@pytest.mark.parametrize("kind", ["helpfulness", "safety"])
def test_pairs_are_of_training_prompts_that_sft_was_not_shown(run: Path, kind: Any) -> None:
    rows = pairs_of_run(run, 12, kind, gold=4, seed=3)
    known = {p.id for p in every_prompt(load_town(), "rlhf")}
    ordinary = [row for row in rows if "gold" not in row]
    assert 10 <= len(ordinary) <= 12 and len(rows) == len(ordinary) + 4
    assert all(row["prompt_id"] in known and row["answers"][0] != row["answers"][1] for row in ordinary)
    assert {name.split(" at T ")[0] for row in ordinary for name in row["models"]} == {"sft", "rlhf-v1"}
    assert pairs_of_run(run, 12, kind, gold=4, seed=3) == rows


@pytest.mark.parametrize("kind", ["helpfulness", "safety"])
def test_the_oracle_agrees_with_all_gold(kind: Any) -> None:
    town = load_town()
    oracle, prompts = Oracle(town), {p.id: p for p in every_prompt(town, "train")}
    rows = gold_pairs(town, 60, kind, 0)
    assert len(rows) == 60 and {row["gold"]["choice"] for row in rows} == {1, 2}
    for row in rows:
        first, second = (oracle.judge(prompts[row["prompt_id"]], a) for a in row["answers"])
        worth = (lambda v: v.safety) if kind == "safety" else (lambda v: v.helpfulness)
        assert (worth(first) > worth(second)) == (row["gold"]["choice"] == 1), row
        if kind == "safety":
            assert (first.safe, second.safe) == (row["gold"]["safe_1"], row["gold"]["safe_2"])


def test_from_a_run_to_a_label(run: Path, tmp_path: Path) -> None:
    store = tmp_path / "labels.db"
    result = CliRunner().invoke(
        app, ["labels", "collect", str(store), str(run), "--pairs", "6", "--gold", "0", "--all"]
    )
    assert result.exit_code == 0 and "6 new pairs" in result.stdout
    assert (
        CliRunner()
        .invoke(app, ["labels", "collect", str(store), str(run), "--pairs", "6", "--gold", "0", "--all"])
        .stdout.startswith("0 new pairs")
    )  # the same pairs again
    with open_store(str(store)) as opened:
        me = opened.annotator("Ada")
        text = opened.guidelines("helpfulness")[1]
        assert "four grades" in text and "Mira lives on Forest Road." in text  # what is true can be looked up
        task = next_task(opened, me)
        assert task is not None
        submit(opened, me, task.item_id, "left", "better")
        assert [x["annotator"] for x in opened.labels()] == ["Ada"]
    out = tmp_path / "labels.jsonl"
    assert CliRunner().invoke(app, ["labels", "export", str(store), str(out)]).exit_code == 0 and out.exists()


def test_word_salad_is_set_aside_and_said(run: Path, tmp_path: Path) -> None:
    """Models that learnt nothing speak nothing else; gold pairs stay."""
    args = ["labels", "collect", str(tmp_path / "labels.db"), str(run), "--pairs", "6", "--gold", "2"]
    said = CliRunner().invoke(app, args).stdout
    assert said.startswith("2 new pairs\n6 set aside: 6 with two answers of word salad") and "--all shows them" in said
    assert CliRunner().invoke(app, [*args, "--all"]).stdout.startswith("6 new pairs\nlabel them")


def test_a_file_of_pairs_with_a_broken_line_adds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"kind": "safety", "prompt": [{"role": "user", "content": "Q"}], "answers": ["a", "b"]}\nno\n')
    result = CliRunner().invoke(app, ["labels", "add", str(tmp_path / "labels.db"), str(file)])
    assert result.exit_code == 2 and "pairs.jsonl:2" in result.stderr and "every line must be one pair" in result.stderr
    assert not (tmp_path / "labels.db").exists()


def test_a_teachers_guidelines_stay(run: Path, tmp_path: Path) -> None:
    store = tmp_path / "labels.db"
    with open_store(str(store)) as opened:
        opened.add_guidelines("safety", "Ask me.")
    args = ["labels", "collect", str(store), str(run), "--pairs", "2", "--gold", "1", "--kind", "safety"]
    assert CliRunner().invoke(app, args).exit_code == 0
    with open_store(str(store)) as opened:
        assert opened.guidelines("safety")[1] == "Ask me."


def test_other_runs_and_kinds_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="unknown; use helpfulness or safety"):
        pairs_of_run(run, 4, "kindness")  # type: ignore[arg-type]
    with pytest.raises(LabError, match="is not a run"):
        pairs_of_run(tmp_path, 4)
    other = Run(tmp_path / "real", {"preset": "real", "seed": 0}, say=lambda line: None)
    other.stage("sft", lambda path: {}, 0)
    with pytest.raises(LabError, match="no run on the town"):
        pairs_of_run(tmp_path / "real", 4)
