"""The finished run that notebooks look at, what they measure themselves, and what is shipped with the project."""

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llama2lab.engine import identity
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import write_rows
from llama2lab.evidence import ship
from llama2lab.lab import finished, measure
from llama2lab.lab.finished import Finished, finished_run
from llama2lab.lessons.n00_start.widget_chat import talkers
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.checkpoint import save_model
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.model.tokenizer import train_tokenizer
from llama2lab.report import summary


@pytest.fixture
def run(tmp_path):
    """A run of one model."""
    folder = tmp_path / "run"
    tokenizer = train_tokenizer(["a town on a river"] * 20, 280, chat_template=CHAT_TEMPLATE)
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


def add_stage(folder, name, words, seed=2):
    """A model stage with a tokenizer that has read `words`."""
    tokenizer = train_tokenizer([words] * 20, 280, chat_template=CHAT_TEMPLATE)
    (folder / name).mkdir(parents=True)
    save_model(folder / name, Llama(ModelConfig(len(tokenizer), 16, 1, 2, 1, 32, max_seq_len=64), seed=seed), tokenizer)
    (folder / name / "stage.json").write_text("{}")


@pytest.fixture
def own(run, tmp_path, monkeypatch):
    """A run of one's own that lacks what the shipped one (here `run`, with a V5) has."""
    monkeypatch.setattr(finished, "SHIPPED", run)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "run.json").write_text('{"preset": "mini", "seed": 4}')
    (folder / "results.json").write_text('{"preset": "mini", "seed": 4, "stages": {}}')
    return folder


def test_a_stage_of_the_shipped_run_stands_in_only_where_it_reads_the_same_tokens(run, own):
    add_stage(run, "rlhf-v5", "a town on a river")
    (run / "rlhf-v5" / "answers.jsonl").write_text('{"prompt_id": "a/1"}\n')
    add_stage(own, "sft", "a town on a river")
    assert Finished(own).stage("rlhf-v5") == run / "rlhf-v5" and Finished(own).has("rlhf-v5")
    shutil.rmtree(own / "sft")
    add_stage(own, "sft", "quite other words, of quite another town")
    lab = Finished(own)
    for look in (
        lambda: lab.model("rlhf-v5"),
        lambda: lab.stage("rlhf-v5"),
        lambda: lab.reward("rlhf-v5"),
        lambda: lab.rows("rlhf-v5", "answers.jsonl"),
    ):
        with pytest.raises(LabError, match=r"has no stage 'rlhf-v5'.*another tokenizer.*llama2lab run --out"):
            look()
    assert not lab.has("rlhf-v5") and not lab.has("rlhf-v9")
    assert lab.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(own / "sft").get_vocab()
    assert talkers(lab) == ["sft"]


def test_a_run_without_sft_keeps_its_own_tokenizer(run, own):
    """It would have read its base model with the shipped run's."""
    add_stage(own, "base", "quite other words, of quite another town")
    lab = Finished(own)
    assert lab.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(own / "base").get_vocab()
    with pytest.raises(LabError, match="another tokenizer"):
        lab.model("sft")


def test_a_stage_of_another_run_that_was_put_into_this_one_is_refused(run):
    add_stage(run, "rlhf-v5", "quite other words, of quite another town")
    with pytest.raises(LabError, match="another tokenizer"):
        Finished(run).model("rlhf-v5")


def test_answers_of_two_stages_are_joined_by_their_prompts(run):
    lab = Finished(run)
    rows = [{"prompt_id": name, "score": i} for i, name in enumerate("abc")]
    add_stage(run, "gatt", "a town on a river")
    write_rows(run / "sft" / "answers.jsonl", rows)
    write_rows(run / "gatt" / "answers.jsonl", rows[::-1])
    assert all(a == b for a, b in lab.answers("sft", "gatt")) and len(lab.answers("sft", "gatt")) == 3
    write_rows(run / "gatt" / "answers.jsonl", rows[1:])
    with pytest.raises(LabError, match="different prompts"):
        lab.answers("sft", "gatt")


# ---- what was measured live ---------------------------------------------------------------------------------


def test_a_measurement_is_kept_by_all_code_that_measured_it(run, monkeypatch):
    """The experiment's own module, and whatever of the library it imports, however far down."""
    from llama2lab.lessons.n08_ppo import experiments as x

    known = identity.code_digest(x.three_betas)
    for module in (
        "llama2lab.lessons.n08_ppo.experiments",
        "llama2lab.stages.ppo",
        "llama2lab.engine.parallel",
        "llama2lab.town.truth",
    ):
        with monkeypatch.context() as m:
            m.setitem(identity.SOURCES, module, identity.SOURCES[module] + "\nX = 1\n")
            identity._closure_digest.cache_clear()
            assert identity.code_digest(x.three_betas) != known, module
    with monkeypatch.context() as m:
        m.setitem(identity.SOURCES, "llama2lab.lessons.n08_ppo.ppo_view", "X = 1")
        identity._closure_digest.cache_clear()
        assert identity.code_digest(x.three_betas) == known  # a view that only shows it
    identity._closure_digest.cache_clear()


def test_a_measurement_of_other_weights_is_measured_again(run, tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "SHIPPED", tmp_path / "nothing")
    count.calls = 0
    assert Finished(run).live(count) == {"calls": 1}
    copied = tmp_path / "elsewhere"
    shutil.copytree(run, copied)
    assert Finished(copied).live(count) == {"calls": 1}  # a copy is the same run
    save_model(run / "sft", Llama(Finished(run).model("sft").config, seed=9), Finished(run).tokenizer)
    assert Finished(run).live(count) == {"calls": 2}
    (run / "experiments").mkdir()
    (run / "experiments" / "other.json").write_text("{}")
    assert Finished(run).live(count) == {"calls": 2}


ANOTHER = """
import sys, time
from pathlib import Path
from llama2lab.engine.identity import alone
with alone(Path(sys.argv[1])):
    print("taken", flush=True)
    sys.stdin.readline()
    Path(sys.argv[1]).write_text('{"calls": 77}')
"""


def test_two_notebooks_measure_the_same_thing_once(run, tmp_path, monkeypatch, capsys):
    """While another process measures, this one waits, says for whom, and takes what came out."""
    count.calls = 0
    lab = Finished(run)
    lab.live(count)
    (path,) = finished.live_folder().glob("count-*.json")
    path.unlink()
    with subprocess.Popen(
        [sys.executable, "-c", ANOTHER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(LabError, match=rf"process {other.pid} on .* works in"), identity.alone(path, wait=False):
            pass

        def say(*words, **more):
            print(*words, **more)
            print(file=other.stdin, flush=True)  # now the other one may end

        monkeypatch.setattr(identity, "print", say, raising=False)
        assert lab.live(count) == {"calls": 77} and count.calls == 1
    assert f"process {other.pid}" in capsys.readouterr().out


def test_a_dead_notebook_holds_nothing(tmp_path):
    folder = tmp_path / "work"
    with subprocess.Popen(
        [sys.executable, "-c", ANOTHER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "taken\n"
        other.kill()
        other.wait()
    with identity.alone(folder, wait=False):
        pass


def test_the_tiny_run_is_trained_once_for_two_notebooks(tmp_path, monkeypatch):
    """The second one finds it when the first has made it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(finished.RUN, raising=False)
    monkeypatch.setattr(finished, "ROOT", tmp_path / "nothing")
    monkeypatch.setattr(finished, "SHIPPED", tmp_path / "nothing")
    made = []

    def train(recipe, out):
        made.append(out)
        time.sleep(0.3)
        out.mkdir(parents=True)
        (out / "run.json").write_text("{}")
        (out / "results.json").write_text('{"stages": {}}')

    monkeypatch.setattr("llama2lab.run.recipe.run_town", train)
    with ThreadPoolExecutor(2) as pool:
        labs = list(pool.map(lambda _: finished_run(), range(2)))
    assert len(made) == 1 and labs[0].folder == labs[1].folder == made[0]


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
    assert kept == {"run.json", "results.json", "sft/scores.jsonl.gz"}
    results = [summary.load_run(folder) for folder in (run, tmp_path / "seeds" / "3")]
    assert results[0] == results[1]
    (run / "gatt").mkdir()
    (run / "gatt" / "answers.jsonl").write_text('{"kind": "helpful", "score": 1.0, "answer": "No."}\n')
    (tmp_path / "seeds" / "3" / "gatt").symlink_to(run / "gatt")
    gap = summary.paired_gap([tmp_path / "seeds" / "3"], "sft", "gatt", results[1])
    assert gap["mean"] == pytest.approx(0.5)
    with pytest.raises(LabError, match="not a finished run"):
        ship.ship_figures(tmp_path, tmp_path / "other")


def test_where_experiments_cannot_be_kept_is_said_before_they_are_measured(run, monkeypatch):
    experiments = {"count": lambda lab: pytest.fail("measured")}
    (run / "experiments").write_text("a file")
    with pytest.raises(LabError, match=r"cannot write .*experiments"):
        measure.measure(run, experiments)
    (run / "experiments").unlink()
    monkeypatch.setattr(measure.os, "access", lambda *a: False)
    with pytest.raises(LabError, match="mend the permissions"):
        measure.measure(run, experiments)


def test_experiments_are_kept_with_the_run_and_not_measured_twice(run, capsys):
    count.calls = 0
    measure.measure(run, {"count": count})
    measure.measure(run, {"count": count})
    assert json.loads((run / "experiments" / "count.json").read_text()) == {"calls": 1}
    measure.measure(run, {"count": count}, ["count"], again=True)
    assert count.calls == 2 and "measured in" in capsys.readouterr().out
    with pytest.raises(LabError, match=r"unknown experiment 'margin'.*count"):
        measure.measure(run, {"count": count}, ["margin"])


def test_a_copy_of_an_older_run_is_not_the_last_one(tmp_path, monkeypatch):
    """Which of your runs notebooks show follows from when the runs were made, not from when files were copied."""
    for name, when in (("mini-2", "2026-01-02T00:00:00+00:00"), ("mini-1", "2026-01-01T00:00:00+00:00")):
        folder = tmp_path / "runs" / name  # the older one is written last
        (folder / "base").mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"preset": "mini", "seed": 0}))
        (folder / "results.json").write_text(json.dumps({"preset": "mini", "seed": 0, "stages": {}}))
        (folder / "base" / "stage.json").write_text(json.dumps({"fingerprint": "x", "finished": when}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(finished.RUN, raising=False)
    monkeypatch.setattr(finished, "ROOT", tmp_path / "elsewhere")
    assert finished.finished_run().folder.name == "mini-2"
