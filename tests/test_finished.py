"""The finished run that notebooks look at, what they measure themselves, and what is shipped with the project."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llama2lab import experiments, summary
from llama2lab.checkpoint import save_model
from llama2lab.errors import LabError
from llama2lab.lab import finished, ship
from llama2lab.lab.finished import Finished, finished_run
from llama2lab.model import Llama, ModelConfig
from llama2lab.tokenizer import train_tokenizer


@pytest.fixture
def run(tmp_path):
    """A run of one model."""
    folder = tmp_path / "run"
    tokenizer = train_tokenizer(["a town on a river"] * 20, 280)
    model = Llama(ModelConfig(len(tokenizer), 16, 1, 2, 1, 32, max_seq_len=64), seed=1)
    (folder / "sft").mkdir(parents=True)
    save_model(folder / "sft", model, tokenizer)
    (folder / "sft" / "stage.json").write_text("{}")
    (folder / "run.json").write_text('{"preset": "mini", "seed": 3}')
    (folder / "results.json").write_text(json.dumps({"preset": "mini", "seed": 3, "stages": {"sft": {"metrics": {}}}}))
    return folder


def count(lab, step=1):
    count.calls += step
    return {"calls": count.calls}


def test_a_run_is_found_in_the_order_that_is_promised(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(finished.RUN, raising=False)
    monkeypatch.setattr(finished, "ROOT", tmp_path / "nothing")
    monkeypatch.setattr(finished, "SHIPPED", run)
    assert finished_run().folder == run and "shipped" in repr(finished_run())
    own = tmp_path / "runs" / "mini-7"
    own.mkdir(parents=True)
    (own / "run.json").write_text("{}")
    (own / "results.json").write_text('{"preset": "mini", "stages": {}}')
    assert finished_run().folder.resolve() == own
    assert finished_run().stage("sft") == run / "sft"  # what one's own run lacks
    monkeypatch.setenv(finished.RUN, str(run))
    assert finished_run().folder == run
    with pytest.raises(LabError, match="llama2lab run"):
        Finished(tmp_path)
    with pytest.raises(LabError, match="rlhf-v9"):
        finished_run().stage("rlhf-v9")


def test_live_measurements_are_kept_by_their_settings(run):
    count.calls = 0
    lab = Finished(run)
    assert lab.live(count) == lab.live(count) == {"calls": 1}
    assert lab.live(count, step=2) == {"calls": 3} and count.calls == 3
    assert lab.measured(count) == {"calls": 1}
    (run / "experiments").mkdir()
    (run / "experiments" / "count.json").write_text('{"calls": 100}')
    assert lab.measured(count) == {"calls": 100}


def test_what_is_shipped_is_half_as_large_and_opens_in_transformers(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "MODELS", ("sft",))
    monkeypatch.setattr(ship, "ROWS", ())
    before = Finished(run).model("sft")
    ship.ship(run, tmp_path / "shipped")
    shipped = Finished(tmp_path / "shipped")
    files = [folder / "sft" / "model.safetensors" for folder in (run, tmp_path / "shipped")]
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size
    tokens = torch.tensor([shipped.tokenizer("a town on a river")["input_ids"]])
    with torch.inference_mode():
        gap = before(tokens) - shipped.model("sft")(tokens)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "shipped" / "sft", dtype=torch.float32)(tokens).logits
        assert gap.abs().max() < 0.05
        assert torch.allclose(shipped.model("sft")(tokens), theirs, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "shipped" / "sft")("river")["input_ids"]
    with pytest.raises(LabError, match="not a finished run"):
        ship.ship(tmp_path, tmp_path / "other")


def test_of_other_seeds_only_what_pools_is_shipped(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "PAIRED", ("sft",))
    (run / "sft" / "answers.jsonl").write_text('{"kind": "helpful", "score": 1.5, "answer": "Yes."}\n')
    ship.ship_figures(run, tmp_path / "seeds" / "3")
    kept = {str(p.relative_to(tmp_path / "seeds" / "3")) for p in (tmp_path / "seeds" / "3").rglob("*.json*")}
    assert kept == {"run.json", "results.json", "sft/scores.jsonl"}
    results = [summary.load_run(folder) for folder in (run, tmp_path / "seeds" / "3")]
    assert results[0] == results[1]
    (run / "gatt").mkdir()
    (run / "gatt" / "answers.jsonl").write_text('{"kind": "helpful", "score": 1.0, "answer": "No."}\n')
    (tmp_path / "seeds" / "3" / "gatt").symlink_to(run / "gatt")
    gap = summary.paired_gap([tmp_path / "seeds" / "3"], "sft", "gatt", results[1])
    assert gap["mean"] == pytest.approx(0.5)
    with pytest.raises(LabError, match="not a finished run"):
        ship.ship_figures(tmp_path, tmp_path / "other")


def test_the_readme_says_what_the_runs_of_three_seeds_say():
    """Its table has every promised figure that has a mark, in the report's order, and what became of it."""
    text = (finished.ROOT / "README.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in text[text.index("| promised |"):].split("\n\n")[0].splitlines()[2:]]
    seeds = sorted(p for p in (finished.ROOT / "data" / "seeds").iterdir() if p.is_dir())  # not the report beside them
    promised = [p for p in summary.promises(seeds, [summary.load_run(seed) for seed in seeds]) if p.mark]
    assert len(seeds) == 3 and len(rows) == len(promised)
    for (what, _, measured, verdict), p in zip(rows, promised):
        assert verdict.split(" ")[0] == ("met" if p.met else "missed"), (what, p)
        if p.figure["low"] < p.figure["high"]:
            mean, low, high = (re.sub(r"^(-?)0", r"\1", f"{p.figure[k]:.3f}") for k in ("mean", "low", "high"))
            assert measured == f"{mean} [{low}, {high}]", (what, p)
            assert ("†" in verdict) == p.verdict.endswith("unsure"), (what, p)
    assert f"**{sum(bool(p.met) for p in promised)} of {len(promised)} marks are met**" in text


def test_experiments_are_kept_with_the_run_and_not_measured_twice(run, monkeypatch, capsys):
    count.calls = 0
    monkeypatch.setattr(experiments, "all_experiments", lambda: {"count": count})
    experiments.measure(run)
    experiments.measure(run)
    assert json.loads((run / "experiments" / "count.json").read_text()) == {"calls": 1}
    experiments.measure(run, ["count"], again=True)
    assert count.calls == 2 and "measured in" in capsys.readouterr().out
    with pytest.raises(LabError, match=r"unknown experiment 'margin'.*count"):
        experiments.measure(run, ["margin"])
