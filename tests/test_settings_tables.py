"""The tables of settings say what the run at hand was made with."""

import json

import pytest

from llama2lab.lab.finished import Finished
from llama2lab.lessons import settings_tables as tables


@pytest.mark.parametrize(
    "table, stage, change, said",
    [
        (tables.ppo, "rlhf-v5", {"batch": 999, "iterations": 7}, "999, 64 | 7 |"),
        (tables.ppo, "rlhf-v5", {"optim": {"lr": 3e-5, "gain_lr": 11.0}}, "gain 11 times as fast: our deviation |"),
        (tables.ppo, "rlhf-v5", {"optim": {"lr": 3e-5, "gain_lr": 1.0}}, "| 3e-5: the model is thousands of"),
        (tables.fine_tuning, "sft", {"examples": 1234, "replay": 0.7}, "1,234; of the noisy ones"),
        (tables.fine_tuning, "sft", {"replay": 0.7}, "| 0.7 tokens for each token of chat"),
        (tables.fine_tuning, "sft-noisy", {"epochs": 5.0}, "; of the noisy ones 5 |"),
        (tables.pretraining, "base", {"batch_tokens": 4321, "epochs": 2.0}, "| 4,321 tokens | "),
    ],
)
def test_they_follow_the_run(lab, tmp_path, monkeypatch, table, stage, change, said):
    stages = {name: lab.stage(name) for name in ("base", "sft", "sft-noisy", "rlhf-v5")}
    was = json.loads((stages[stage] / "stage.json").read_text())
    first = was["settings"][0] if isinstance(was["settings"], list) else was["settings"]
    first.update({k: {**first[k], **v} if isinstance(v, dict) else v for k, v in change.items()})
    (tmp_path / "stage.json").write_text(json.dumps(was))
    monkeypatch.setattr(Finished, "stage", lambda _, name: {**stages, stage: tmp_path}[name])
    header, rows = table(lab)
    assert len(header) == 3 and all(len(row) == 3 for row in rows)
    assert said in " | ".join(row[2] for row in rows) + " |"
