"""People's labels in a run: which rows the reward models see, what is built anew when the store changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from annotation_pairs import labels_of, oracle, people_of
from typer.testing import CliRunner

from llama2lab.annotation.rows import resolve
from llama2lab.annotation.store.store import open_store
from llama2lab.cli.main import app
from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import read_rows, write_rows
from llama2lab.engine.runs import Run
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.checkpoint import save_model
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.run import recipe as runs
from llama2lab.run.people import annotations_stage
from llama2lab.stages.reward import RewardSettings
from llama2lab.stages.rounds import Workshop, reward_stage, with_people
from llama2lab.town.annotators import annotators_of
from llama2lab.town.prompts import draw_prompts
from llama2lab.town.town import load_town

LINEAR = RewardSettings(head="linear", other_share=0.1, batch_pairs=16)


def people(n: int = 24, kind: str = "helpfulness", who: int = 3) -> list[dict[str, Any]]:
    """Labels that stand for people's."""
    return [
        {**x, "annotator_kind": "person", "vendor": "class"} for x in labels_of(people_of("typical", who), n, 1, kind)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    texts = [" ".join([*x["answers"], x["prompt"][-1]["content"]]) for x in people() + people(kind="safety")]
    return train_tokenizer(texts, 400, chat_template=CHAT_TEMPLATE)


def workshop(path: Path, tokenizer: Any, built: list[str]) -> Workshop:
    """A run with a chat model and one round of simulated preferences; `built` gathers the names of stages built."""
    run = Run(
        path,
        {"preset": "nano", "seed": 0},
        say=lambda line: built.append(line.split()[0]) if line.endswith("...") else None,
    )
    shop = Workshop(run, 0, Machine(torch.device("cpu"), "fp32"), tokenizer, None)  # type: ignore[arg-type]

    def chat(folder: Path) -> dict[str, Any]:
        config = ModelConfig(
            vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=48, max_seq_len=256
        )
        save_model(folder, Llama(config, 0), tokenizer)
        return {}

    def preferences(folder: Path) -> dict[str, Any]:
        for kind in ("helpfulness", "safety"):
            rows = resolve(labels_of(annotators_of(("careful",)), 20, 5, kind), kind).rows
            write_rows(folder / f"{kind}.train.jsonl", rows)
        return {}

    run.stage("sft", chat, 1)
    run.stage("preferences-v1", preferences, 1, ["sft"])
    return shop


def build(path: Path, tokenizer: Any, labels: list[dict[str, Any]], share: float | None = None) -> list[str]:
    """What a run builds of these stages."""
    built: list[str] = []
    shop = workshop(path, tokenizer, built)
    if labels:
        annotations_stage(shop, labels, annotators_of(("careful", "typical")), oracle(), load_town())
        shop.people_share = share
    for kind in ("helpfulness", "safety"):
        reward_stage(shop, LINEAR, 1, kind)
    return built


def test_a_changed_store_rebuilds_what_rests_on_it_and_nothing_else(tmp_path: Path, tokenizer: Any) -> None:
    rewards = ["reward-helpfulness-v1", "reward-safety-v1"]
    labels = people() + people(kind="safety")
    assert build(tmp_path, tokenizer, []) == ["sft", "preferences-v1", *rewards]
    assert build(tmp_path, tokenizer, labels) == ["annotations", *rewards]
    assert build(tmp_path, tokenizer, labels) == []
    shuffled = [{**x, "seconds": 9.0, "comment": "again", "item_id": x["item_id"] + "x"} for x in labels[::-1]]
    assert build(tmp_path, tokenizer, shuffled) == []
    changed = [{**labels[0], "choice": 3 - labels[0]["choice"]}, *labels[1:]]
    assert build(tmp_path, tokenizer, changed) == ["annotations", *rewards]
    assert build(tmp_path, tokenizer, changed, 0.5) == rewards


def test_the_reward_models_see_peoples_rows_in_the_share_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    build(tmp_path, tokenizer, people(), 0.5)
    shop = workshop(tmp_path, tokenizer, [])
    shop.people, shop.people_share = "annotations", 0.5
    simulated = read_rows(tmp_path / "preferences-v1" / "helpfulness.train.jsonl")
    rows = with_people(shop, simulated, "helpfulness")
    mine = [r for r in rows if r["vendor"] == "class"]
    assert len(mine) == len(rows) / 2 == len(simulated)
    shop.people_share = None
    everything = with_people(shop, simulated, "helpfulness")
    assert len(everything) == len(simulated) + len(read_rows(tmp_path / "annotations" / "helpfulness.jsonl"))
    assert with_people(shop, simulated, "safety") == simulated  # nobody labelled safety
    pairs = json.loads((tmp_path / "reward-helpfulness-v1" / "stage.json").read_text())["metrics"]["pairs"]
    assert pairs >= len(rows)


def test_agreement_with_simulated_annotators_is_reported(tmp_path: Path, tokenizer: Any) -> None:
    unknown = {**people(1)[0], "item_id": "own", "prompt": [{"role": "user", "content": "Nobody in town asks this."}]}
    build(tmp_path, tokenizer, [*people(), *people(kind="safety"), unknown])
    metrics = json.loads((tmp_path / "annotations" / "stage.json").read_text())["metrics"]
    choice = metrics["people_against_simulated"]["helpfulness"]["choice"]
    # Two careful majorities agree far beyond chance; the own prompt cannot be among them.
    assert 0.6 < choice["percent"]["mean"] <= 1 and choice["percent"]["n"] <= 24
    assert 0.2 < choice["ac"]["mean"] <= 1
    assert metrics["people_against_simulated"]["helpfulness"]["as_often"]["n"] == 24 * 3 * 2
    assert metrics["agreement"]["choice"]["ac"]["n"] == 48
    assert metrics["helpfulness"]["rows"] == metrics["helpfulness"]["labels"] // 3 + 1


def test_held_out_prompts_and_simulated_labels_train_nothing(tmp_path: Path, tokenizer: Any) -> None:
    asked = draw_prompts(load_town(), "test", 1, 0)[0]
    held = {**people(1)[0], "item_id": "held", "prompt": [dict(m) for m in asked.messages]}
    build(tmp_path, tokenizer, [*people(), held, *labels_of(people_of("hasty"), 24, 3)])
    rows = read_rows(tmp_path / "annotations" / "helpfulness.jsonl")
    assert {r["vendor"] for r in rows} == {"class"}
    assert not any(r["prompt"] == held["prompt"] for r in rows)
    assert json.loads((tmp_path / "annotations" / "stage.json").read_text())["metrics"]["held_out"] == 1
    with pytest.raises(LabError, match="no training row: 1 labels by people, of which 1 are on held-out"):
        build(tmp_path / "other", tokenizer, [held])


def test_the_command_hands_the_labels_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama2lab.annotation.files.adding import add_pairs
    from llama2lab.annotation.store import queue

    path = tmp_path / "labels.db"
    row = people(1)[0]
    with open_store(str(path)) as store:
        add_pairs(store, [{"kind": row["kind"], "prompt": row["prompt"], "answers": row["answers"]}])
        ada = store.annotator("Ada")
        task = queue.next_task(store, ada)
        assert task is not None
        queue.submit(store, ada, task.item_id, "left", "better", True, True)
    seen: list[Any] = []

    def stop(*args: Any) -> None:
        seen.extend(args)
        raise LabError("that is enough")

    monkeypatch.setattr(runs, "run_town", stop)
    command = ["run", "--preset", "smoke", "--out", str(tmp_path / "r"), "--annotations", str(path)]
    result = CliRunner().invoke(app, [*command, "--people-share", "0.25"])
    assert "that is enough" in result.stderr
    labels, share, _ = seen[-3:]
    assert [x["annotator"] for x in labels] == ["Ada"] and share == 0.25


@pytest.mark.parametrize(
    "args, words",
    [
        (["--annotations", "nowhere.db"], "nowhere.db"),
        (["--people-share", "0.5"], "--annotations URL"),
        (["--annotations", "empty.db"], "empty.db holds no label yet"),
    ],
)
def test_a_wrong_store_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    open_store("empty.db").close()
    result = CliRunner().invoke(app, ["run", "--preset", "smoke", "--out", str(tmp_path / "r"), *args])
    assert result.exit_code == 2 and words in result.stderr and not (tmp_path / "r").exists()


def test_the_agreement_command_prints_and_writes_a_page(tmp_path: Path) -> None:
    from llama2lab.annotation.files.adding import add_pairs
    from llama2lab.annotation.store import queue

    path, page = tmp_path / "labels.db", tmp_path / "page.html"
    rows = [{name: x[name] for name in ("kind", "prompt", "answers")} for x in people(8, who=1)]
    with open_store(str(path)) as store:
        add_pairs(store, rows, 2)
        for name in ("Ada", "<b>Ben"):
            me = store.annotator(name)
            while (task := queue.next_task(store, me)) is not None:
                queue.submit(store, me, task.item_id, "left", "better", True, True)
    result = CliRunner().invoke(app, ["agreement", str(path), "--out", str(page)])
    assert result.exit_code == 0, result.output
    assert "16 labels of 8 items by 2 people" in result.stdout and "Krippendorff's alpha" in result.stdout
    assert "chooses the left side: 100% left" in result.stdout  # eight of eight, by both
    assert "&lt;b&gt;Ben" in page.read_text(encoding="utf-8")
