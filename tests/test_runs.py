"""A run: stages are built once, from recorded settings; bad folders and full disks lose nothing."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from llama2lab.engine import device, stats
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import read_rows, write_rows
from llama2lab.engine.runs import Run
from llama2lab.engine.stagefiles import stage_folder
from llama2lab.report.summary import load_run
from llama2lab.stages.rounds import PreferenceSettings, Workshop, preferences_stage
from llama2lab.town.items import Prompt


def quiet(path, **identity):
    return Run(path, {"preset": "smoke", "seed": 0, **identity}, say=lambda line: None)


def build_all(path, lr=1.0, built=None):
    """base -> sft -> rlhf, and base -> other, as a run would."""
    run, built = quiet(path), [] if built is None else built

    def stage(name, settings, parents):
        def build(folder):
            built.append(name)
            (folder / "out.txt").write_text(name)
            return {"accuracy": stats.rate([True, False])}

        run.stage(name, build, settings, parents)

    stage("base", {"lr": 1.0}, [])
    stage("sft", {"lr": lr}, ["base"])
    stage("other", {"k": 1}, ["base"])
    stage("rlhf", {"k": 1}, ["sft"])
    return run, built


def test_a_finished_stage_is_not_built_again(tmp_path):
    assert build_all(tmp_path / "r")[1] == ["base", "sft", "other", "rlhf"]
    assert build_all(tmp_path / "r")[1] == []


def test_a_changed_setting_rebuilds_what_depends_on_it_and_nothing_else(tmp_path):
    build_all(tmp_path / "r")
    assert build_all(tmp_path / "r", lr=2.0)[1] == ["sft", "rlhf"]


def test_other_test_prompts_of_the_same_number_give_new_test_pairs():
    asked = []

    class Recorder:
        def stage(self, name, build, settings, parents):
            asked.append(settings)

    shop = Workshop(Recorder(), 0, None, None, None)
    for names in ("ab", "cd", "ab"):
        prompts = [Prompt(n, (), "facts", "helpful", "", "test") for n in names]
        preferences_stage(shop, PreferenceSettings(), 1, ("sft", "sft-noisy"), None, [], prompts)
    assert asked[0] == asked[2] != asked[1]


def test_an_interrupted_stage_goes_on_in_its_folder(tmp_path):
    run = quiet(tmp_path / "r")

    def first(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stage("base", first, {})
    assert not (tmp_path / "r" / "base").exists()
    seen = []
    quiet(tmp_path / "r").stage("base", lambda f: seen.append((f / "half.txt").read_text()) or {}, {})
    assert seen == ["half"]
    quiet(tmp_path / "r2")


def test_another_settings_leftovers_are_not_reused(tmp_path):
    def leave(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet(tmp_path).stage("base", leave, {"lr": 1})
    quiet(tmp_path).stage("base", lambda f: {"clean": float(not (f / "half.txt").exists())}, {"lr": 2})
    assert json.loads((tmp_path / "base" / "stage.json").read_text())["metrics"]["clean"] == 1.0


def test_results_gather_every_stage_in_order(tmp_path):
    run, _ = build_all(tmp_path / "r")
    run.note("sft", lambda: {"helpfulness": stats.mean([1.0, 2.0, 3.0])}, {})
    results = run.results({"cores": 2})
    assert list(results["stages"]) == ["base", "sft", "other", "rlhf"]
    assert results["stages"]["sft"]["metrics"]["helpfulness"]["mean"] == 2.0
    assert {"seconds", "peak_memory_mb", "metrics"} <= set(results["stages"]["base"])
    assert json.loads((tmp_path / "r" / "results.json").read_text()) == results


def test_results_hold_only_what_the_present_settings_measured(tmp_path):
    for split, n in (("dev", 1.0), ("test", 2.0), ("dev", 3.0)):  # the third is kept from the first
        run, _ = build_all(tmp_path / "r")
        run.note("sft", lambda n=n, split=split: {split: n, "helpfulness": n}, {"split": split})
        metrics = run.results({})["stages"]["sft"]["metrics"]
    assert metrics["helpfulness"] == 1.0 and "test" not in metrics


def test_an_interrupted_rebuild_leaves_no_results_of_the_stages_before(tmp_path):
    run, _ = build_all(tmp_path / "r")
    run.note("sft", lambda: {"helpfulness": 1.0}, {})
    run.results({})
    (tmp_path / "r" / "experiments").mkdir()
    build_all(tmp_path / "r")[0].note("sft", lambda: {}, {})
    assert (tmp_path / "r" / "results.json").exists()  # the same again changes nothing
    assert load_run(tmp_path / "r")["stages"]["sft"]["metrics"]["helpfulness"] == 1.0
    build_all(tmp_path / "r", lr=2.0)  # and stopped before its figures were gathered
    results = load_run(tmp_path / "r")
    assert results["unfinished"] and "helpfulness" not in results["stages"]["sft"]["metrics"]
    assert not (tmp_path / "r" / "experiments").exists()
    assert (tmp_path / "r" / "experiments.before").exists()  # half an hour's work: put aside, not thrown away


def test_a_stage_that_was_removed_is_built_again_and_experiments_stay(tmp_path):
    build_all(tmp_path / "r")[0].results({})
    (tmp_path / "r" / "experiments").mkdir()
    shutil.rmtree(tmp_path / "r" / "rlhf")
    assert build_all(tmp_path / "r")[1] == ["rlhf"] and (tmp_path / "r" / "experiments").exists()


def test_an_unfinished_run_shows_what_was_measured_last(tmp_path):
    for split, n in (("dev", 1.0), ("test", 2.0), ("dev", 3.0)):  # the third is kept from the first
        run, _ = build_all(tmp_path / "r")
        run.note("sft", lambda: {"bits": 1.0}, {})
        run.note("sft", lambda n=n: {"helpfulness": n}, {"split": split})
        if split == "test":
            run.results({})
    results = load_run(tmp_path / "r")
    assert results["unfinished"] and results["stages"]["sft"]["metrics"]["helpfulness"] == 1.0


def test_measurements_are_made_once_and_again_for_a_rebuilt_stage(tmp_path):
    run, _ = build_all(tmp_path / "r")
    calls = []
    for _ in range(2):
        run.note("sft", lambda: calls.append(1) or {}, {"n": 1})
    assert len(calls) == 1
    again, _ = build_all(tmp_path / "r", lr=3.0)
    again.note("sft", lambda: calls.append(1) or {}, {"n": 1})
    assert len(calls) == 2


@pytest.mark.parametrize(
    "prepare, words",
    [
        (lambda p: p.write_text("x"), "is a file"),
        (lambda p: (p.mkdir(), (p / "holiday.jpg").write_text("x")), "not a run of llama2lab"),
        (lambda p: quiet(p, seed=5), "holds another run: seed 5 \\(now 0\\)"),
        (lambda p: (p.mkdir(), (p / "run.json").write_text("{\n broken")), "run.json:2: broken JSON"),
    ],
)
def test_a_wrong_folder_is_named_with_a_cure(tmp_path, prepare, words):
    prepare(tmp_path / "r")
    with pytest.raises(LabError, match=words):
        quiet(tmp_path / "r")


def test_an_unknown_stage_lists_the_ones_there_are(tmp_path):
    build_all(tmp_path / "r")
    with pytest.raises(LabError, match="there are: base, other, rlhf, sft"):
        stage_folder(tmp_path / "r", "rlhf-v9")
    with pytest.raises(LabError, match="no finished stage"):
        stage_folder(tmp_path / "r", "../r/base")
    with pytest.raises(LabError, match="not a run"):
        stage_folder(tmp_path, "base")


def test_a_full_disk_loses_nothing_already_made(tmp_path, monkeypatch):
    run, _ = build_all(tmp_path / "r")
    real = os.replace

    def full(source, target):
        if "new" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr("llama2lab.engine.runs.os.replace", full)
    with pytest.raises(LabError, match=r"No space left on device.*nothing already made is lost"):
        run.stage("new", lambda f: {}, {})
    assert (run.folder("rlhf") / "out.txt").read_text() == "rlhf"


def test_rows_survive_the_round_trip_and_damage_is_named(tmp_path):
    rows = [{"a": "ü\n</script>"}, {"b": [1, 2]}]
    write_rows(tmp_path / "x.jsonl", rows)
    assert read_rows(tmp_path / "x.jsonl") == rows
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"b": \n')
    with pytest.raises(LabError, match=r"x.jsonl:2: broken row"):
        read_rows(tmp_path / "x.jsonl")


def test_wordings_of_one_content_are_no_more_than_contents():
    outcomes = [c < 8 for c in range(10) for _ in range(6)]  # six wordings of ten contents, all alike
    contents = [c for c in range(10) for _ in range(6)]
    grouped, contents_alone = stats.rate(outcomes, contents), stats.rate([c < 8 for c in range(10)])
    assert grouped["n"] == 60 and grouped["n_effective"] == pytest.approx(9, abs=0.2)  # C - 1: the variance is unbiased
    assert grouped["high"] - grouped["low"] == pytest.approx(contents_alone["high"] - contents_alone["low"], rel=0.06)
    assert stats.rate(outcomes, range(60))["low"] == pytest.approx(stats.rate(outcomes)["low"])
    assert stats.rate([True] * 60, contents)["n_effective"] == 10
    twice = stats.pool([grouped, grouped])
    assert twice["high"] - twice["low"] > stats.rate(outcomes * 2)["high"] - stats.rate(outcomes * 2)["low"]


def test_intervals():
    wilson = stats.rate([True] * 8 + [False] * 2)
    assert wilson["mean"] == 0.8 and wilson["low"] == pytest.approx(0.4902, abs=1e-3)
    assert wilson["high"] == pytest.approx(0.9433, abs=1e-3)
    student = stats.mean([1.0, 2.0, 3.0, 4.0])
    assert student["high"] - student["mean"] == pytest.approx(3.182 * 1.29099 / 2, rel=1e-3)
    assert stats.rate([])["n"] == 0
    pooled = stats.pool([stats.rate([True] * 90 + [False] * 10), stats.rate([True] * 80 + [False] * 20)])
    assert pooled["mean"] == pytest.approx(0.85) and pooled["n"] == 200 and pooled["runs"] == 2
    assert 0 <= pooled["low"] < 0.8 and pooled["high"] <= 1


def test_a_run_goes_on_in_the_precision_that_it_began_with(tmp_path, monkeypatch):
    """A busy machine may measure another one; with it, base and all that rests on it would be built anew."""
    found = []
    for measured in ("bf16", "fp32"):
        monkeypatch.setattr(
            device, "pick_precision", lambda where, name="auto", m=measured: m if name == "auto" else name
        )
        with quiet(tmp_path / "r") as run:
            found += [device.machine_of(run, "cpu").precision, device.machine_of(run, "cpu", "fp32").precision]
    assert found == ["bf16", "fp32", "bf16", "fp32"]


def test_the_same_items_cancel_in_a_paired_bootstrap():
    rng = np.random.default_rng(0)
    worth, gap = rng.normal(0, 2, 100), rng.normal(0.3, 0.5, 100)
    found = stats.paired_bootstrap(worth + gap, worth)
    student = stats.mean(gap)
    assert found["mean"] == pytest.approx(student["mean"]) and found["n"] == 100
    assert found["low"] == pytest.approx(student["low"], abs=0.02) and found["high"] == pytest.approx(
        student["high"], abs=0.02
    )
    assert found == stats.paired_bootstrap(worth + gap, worth) != stats.paired_bootstrap(worth + gap, worth, seed=1)
    assert stats.paired_bootstrap([1.0], [0.5])["low"] == 0.5
    assert stats.paired_bootstrap([], [])["n"] == 0
    with pytest.raises(ValueError):
        stats.paired_bootstrap([1.0, 2.0], [1.0, 2.0, 3.0])
