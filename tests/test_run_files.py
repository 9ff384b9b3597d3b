"""What a run's folder says is checked before it is believed: sums, shapes, the order of stages, memory."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llama2lab.engine import device, stats
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import digest, plain, read_rows, write_rows
from llama2lab.engine.runs import Run
from llama2lab.engine.stagefiles import stage_folder, stages_in_order
from llama2lab.evidence import ship
from llama2lab.lab.finished import SHIPPED
from llama2lab.report import promises, summary
from llama2lab.report.page import report
from llama2lab.run.talk import pick_stage, talking_stages

IDENTITY = {"preset": "smoke", "seed": 0}


def make(path: Path, built: list[str] | None = None, **results: object) -> Run:
    """base -> sft -> rlhf-v1 -> rlhf-v2, and sft-noisy; language models as far as config.json says."""
    run = Run(path, IDENTITY, say=lambda line: None)
    for name, parents in (
        ("base", []),
        ("sft", ["base"]),
        ("sft-noisy", ["base"]),
        ("rlhf-v1", ["sft"]),
        ("rlhf-v2", ["rlhf-v1"]),
    ):

        def build(folder: Path, name: str = name) -> dict:
            if built is not None:
                built.append(name)
            (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
            save_file({"w": torch.arange(64.0)}, folder / "model.safetensors")
            write_rows(folder / "rows.jsonl", [{"a": 1}])
            return {"accuracy": stats.rate([True])}

        run.stage(name, build, {}, parents)
    run.note("sft", lambda: {"more": 1.0}, {})
    return run


# ---- order ----------------------------------------------------------------------------------------------------


def shuffle_times(path: Path) -> None:
    import os

    for i, file in enumerate(random.Random(1).sample(sorted(path.rglob("*")), len(list(path.rglob("*"))))):
        os.utime(file, (1e9 + i, 1e9 + i))


@pytest.mark.parametrize("keep", [("results.json",), ()])
def test_a_copy_talks_to_the_last_stage_whatever_the_files_times(tmp_path, keep):
    make(tmp_path / "a").results({})
    subprocess.run(["tar", "cf", tmp_path / "a.tar", "-C", tmp_path, "a"], check=True)
    (tmp_path / "b").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "a.tar", "-C", tmp_path / "b", "--touch"], check=True)
    shutil.copytree(tmp_path / "a", tmp_path / "c", copy_function=shutil.copy)
    shuffle_times(tmp_path / "c")
    for path in (tmp_path / "a", tmp_path / "b" / "a", tmp_path / "c"):
        if not keep:
            (path / "results.json").unlink()
        assert pick_stage(path, None) == "rlhf-v2"
        assert talking_stages(path) == ["base", "sft", "sft-noisy", "rlhf-v1", "rlhf-v2"]
        assert list(summary.load_run(path)["stages"]) == talking_stages(path)


def test_the_shipped_run_and_its_copy_talk_to_the_last_version(tmp_path):
    if not SHIPPED.is_dir():
        pytest.skip("no shipped run")
    assert pick_stage(SHIPPED, None) == "rlhf-v5"
    for stage in SHIPPED.glob("*/stage.json"):  # as a clone in an unlucky order
        target = tmp_path / "x" / stage.parent.name
        shutil.copytree(
            stage.parent,
            target,
            copy_function=shutil.copy,
            ignore=lambda folder, names: [n for n in names if n not in ("stage.json", "config.json")],
        )
    shutil.copy(SHIPPED / "run.json", tmp_path / "x")
    shuffle_times(tmp_path / "x")
    assert pick_stage(tmp_path / "x", None) == "rlhf-v5"
    assert [s for s in stages_in_order(tmp_path / "x") if s.startswith("rlhf")] == [
        "rlhf-v1",
        "rlhf-v3",
        "rlhf-v4",
        "rlhf-v5",
    ]


def test_no_file_time_orders_anything_in_the_library():
    root = Path(device.__file__).parents[1]
    found = [
        str(p.relative_to(root))
        for p in root.rglob("*.py")
        if "st_mtime)" in p.read_text(encoding="utf-8") or "getmtime" in p.read_text(encoding="utf-8")
    ]
    assert set(found) <= {"lab/finished.py"}  # the newest of one's own finished runs


# ---- sums -------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int, bit: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "rows.jsonl"])
def test_a_flipped_bit_in_a_finished_stage_is_noticed_and_cured_as_is_said(tmp_path, file):
    built: list[str] = []
    make(tmp_path / "r", built).close()
    stage_folder(tmp_path / "r", "sft")
    flip(tmp_path / "r" / "sft" / file, -3)
    with pytest.raises(LabError, match=rf"sft/{file}: damaged or changed.*remove .*/sft and run again"):
        stage_folder(tmp_path / "r", "sft")
    stage_folder(tmp_path / "r", "base")
    shutil.rmtree(tmp_path / "r" / "sft")
    make(tmp_path / "r", built)
    assert built[5:] == ["sft"]
    stage_folder(tmp_path / "r", "sft")


def test_weights_that_are_loaded_are_checked_and_stages_without_sums_open(tmp_path):
    from llama2lab.model.checkpoint import load_model, save_model
    from llama2lab.model.network import Llama, ModelConfig

    model = Llama(ModelConfig(32, 16, 1, 2, 1, 32, max_seq_len=64), seed=1)

    def build(folder: Path) -> dict:
        save_model(folder, model)
        save_model(folder / "reference", model)
        return {}

    with Run(tmp_path / "r", IDENTITY, say=lambda line: None) as run:
        folder = run.stage("base", build, {})
    load_model(folder)
    flip(folder / "reference" / "model.safetensors", -5)
    for broken in (folder, folder / "reference"):
        with pytest.raises(LabError, match=r"reference/model.safetensors: damaged or changed"):
            load_model(broken)
    record = json.loads((folder / "stage.json").read_text())
    del record["sums"]
    (folder / "stage.json").write_text(json.dumps(record))
    load_model(folder / "reference")


def test_what_is_shipped_has_sums_of_its_own_and_nothing_but_a_run_is_replaced(tmp_path, monkeypatch):
    make(tmp_path / "r").results({})
    monkeypatch.setattr(ship, "MODELS", ("sft",))
    monkeypatch.setattr(ship, "ROWS", ("base",))
    for _ in range(2):  # the second one replaces the first
        ship.ship(tmp_path / "r", tmp_path / "out")
        assert stage_folder(tmp_path / "out", "sft").is_dir()
        sums = json.loads((tmp_path / "out" / "sft" / "stage.json").read_text())["sums"]
        assert sums != json.loads((tmp_path / "r" / "sft" / "stage.json").read_text())["sums"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "r"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("mine")
    for out in (tmp_path / "home", tmp_path / "r", tmp_path):
        with pytest.raises(LabError):
            ship.ship(tmp_path / "r", out)
    assert (tmp_path / "home" / "thesis").exists() and (tmp_path / "r" / "run.json").exists()


# ---- shapes -----------------------------------------------------------------------------------------------------

WRONG = [
    "",
    "null",
    "[]",
    "5",
    '"x"',
    "{",
    '{"stages": 5}',
    '{"metrics": []}',
    '{"fingerprint": 5}',
    "[" * 100_000,
    "1" * 5000,
    '{"x": {"metrics": 1, "seconds": 2}}',
    '{"x": {"metrics": {}, "seconds": "2"}}',
    '{"stages": {"base": 1}}',
    '{"stages": {"base": {"seconds": "1"}}}',
    '{"stages": {"base": {"metrics": []}}}',
    '{"stages": {"base": {"metrics": {"a": {"mean": "x", "low": 0, "high": 1, "n": 1}}}}}',
    '{"stages": {"base": {"metrics": {"a": {"mean": null, "low": 0, "high": 1, "n": 1}}}}}',
    '{"stages": {"base": {"metrics": {"loss": 5}}}}',
    '{"stages": {"base": {"metrics": {"loss": [5]}}}}',
    '{"stages": {"sft": {"metrics": {"calibration": [{}]}}}}',
    '{"stages": {}, "machine": 4}',
    '{"stages": {"gatt": {"metrics": {"samples": "abc"}}}}',
    '{"parents": "base"}',
    '{"sums": [1]}',
]


@pytest.mark.parametrize("file", ["run.json", "results.json", "sft/stage.json", "sft/notes.json", "sft/config.json"])
@pytest.mark.parametrize("number", range(len(WRONG)))
def test_files_of_the_wrong_shape_are_one_line_for_readers_and_for_the_run(tmp_path, file, number):
    run = make(tmp_path / "r")
    if file != "sft/notes.json":
        run.results({})
    run.close()
    (tmp_path / "r" / file).write_text(WRONG[number])
    for use in (
        lambda: report([tmp_path / "r"], tmp_path / "page.html"),
        lambda: pick_stage(tmp_path / "r", None),
        lambda: promises.promised_table([tmp_path / "r"]),
        lambda: make(tmp_path / "r").close(),
    ):
        try:
            use()
        except LabError as e:
            assert "\n" not in str(e) and str(tmp_path) in str(e) and ";" in str(e)


@pytest.mark.parametrize(
    "rows",
    [
        "5\n",
        '{"prompt_id": 3}\n',
        '{"kind": "helpful"}\n',
        "{}\n",
        '{"score": "1"}\n',
        '{"kind": "helpful", "score": true}\n',
    ],
)
def test_kept_answers_of_the_wrong_shape_are_one_line(tmp_path, rows):
    run = make(tmp_path / "r")
    for stage in ("sft", "sft-noisy"):
        run.note(stage, lambda: {"helpfulness": stats.mean([1.0, 2.0])}, {"n": 2})
        (tmp_path / "r" / stage / "answers.jsonl").write_text(rows)
    run.results({})
    for use in (
        lambda: report([tmp_path / "r"], tmp_path / "page.html"),
        lambda: promises.promised_table([tmp_path / "r"]),
    ):
        with pytest.raises(LabError, match=r"answers\.jsonl.*; remove it"):
            use()


def test_a_stage_without_seconds_or_memory_is_shown_without(tmp_path):
    make(tmp_path / "r").results({})
    path = tmp_path / "r" / "results.json"
    results = json.loads(path.read_text())
    del results["stages"]["sft"]["seconds"]
    results["stages"]["base"]["seconds"] = results["stages"]["base"]["peak_memory_mb"] = None
    path.write_text(json.dumps(results))
    assert report([tmp_path / "r"], tmp_path / "page.html").exists()
    assert "peak memory" in promises.promised_table([tmp_path / "r"])
    assert "sft " in summary.stage_table(summary.load_run(tmp_path / "r"))


@pytest.mark.parametrize(
    "out, words", [("/dev/null", "is a file"), ("/dev/null/x", "a file is in the way"), ("x" * 300, "shorter name")]
)
def test_folders_that_cannot_be_are_one_line(tmp_path, monkeypatch, out, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match=words):
        Run(out, IDENTITY)
    for use in (lambda: report([Path(out)], tmp_path / "page.html"), lambda: pick_stage(Path(out), None)):
        with pytest.raises(LabError):
            use()


@pytest.mark.parametrize(
    "text", ["", "{", '{"fingerprint": ', "[]", '{"fingerprint": 3, "seconds": "x"}', "[" * 100_000]
)
def test_a_started_json_cut_short_costs_the_stage_its_restart_and_no_more(tmp_path, text):
    def half(folder: Path) -> dict:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    built: list[str] = []
    with make(tmp_path / "r", built) as run, pytest.raises(KeyboardInterrupt):
        run.stage("gatt", half, {})
    (tmp_path / "r" / "gatt.partial" / "started.json").write_text(text)
    with make(tmp_path / "r", built) as run:
        run.stage("gatt", lambda folder: {"fresh": float(not (folder / "half.txt").exists())}, {})
    assert built == ["base", "sft", "sft-noisy", "rlhf-v1", "rlhf-v2"]
    assert json.loads((tmp_path / "r" / "gatt" / "stage.json").read_text())["metrics"] == {"fresh": 1.0}


# ---- figures as JSON ----------------------------------------------------------------------------------------------


def test_results_are_strict_json_and_numbers_of_numpy_and_torch_stay_numbers(tmp_path):
    with make(tmp_path / "r") as run:
        run.stage(
            "x",
            lambda f: {
                "single": np.float32(0.5),
                "whole": np.int64(3),
                "tensor": torch.tensor(0.25),
                "nothing": stats.rate([]),
                "none": stats.mean([]),
            },
            {},
        )
        run.note("x", lambda: {"noted": np.float32(0.5)}, {})
        results = run.results({})
    text = (tmp_path / "r" / "results.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == results
    metrics = results["stages"]["x"]["metrics"]
    assert metrics["single"] == 0.5 and metrics["whole"] == 3 and metrics["tensor"] == 0.25 and metrics["noted"] == 0.5
    assert metrics["nothing"] == {"mean": None, "low": None, "high": None, "n": 0}
    assert summary.find(results, "x", "nothing") is None and summary.figure_text(metrics["nothing"]) == "-"
    assert summary.pool([results, results])["stages"]["x"]["metrics"]["nothing"]["mean"] is None
    assert report([tmp_path / "r"], tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "metrics",
    [
        {"kl": float("nan")},
        {"log": [{"kl": 1.0}, {"kl": float("inf")}]},
        {"f": stats.mean([1.0, float("nan")])},
        {"x": np.float32("nan")},
        {"t": torch.tensor(float("nan"))},
    ],
)
def test_a_stage_with_a_figure_that_is_none_is_not_finished(tmp_path, metrics):
    with make(tmp_path / "r") as run:
        with pytest.raises(LabError, match=r"x: .* is (nan|inf), which no measurement gives"):
            run.stage("x", lambda f: metrics, {})
        with pytest.raises(LabError, match=r"sft: measured.* is "):
            run.note("sft", lambda: metrics, {"n": 9})
        assert not (tmp_path / "r" / "x").exists() and not (tmp_path / "r" / "x.partial" / "stage.json").exists()


def test_a_figure_that_labels_do_not_define_is_none(tmp_path):
    nan = float("nan")
    assert plain({"alpha": {"mean": nan, "low": nan, "high": nan, "n": 7}}, "x")["alpha"]["mean"] is None


def test_rows_that_hold_no_number_or_half_a_character_are_refused_by_name(tmp_path):
    with pytest.raises(LabError, match=r"x\.jsonl.*not finite"):
        write_rows(tmp_path / "x.jsonl", [{"score": float("nan")}])
    with pytest.raises(LabError, match=r"x\.jsonl.*half a character"):
        write_rows(tmp_path / "x.jsonl", [{"text": "\ud83d"}])
    assert not list(tmp_path.iterdir())
    for text in ("5\n", "[" * 100_000 + "\n", "1" * 5000 + "\n"):
        (tmp_path / "y.jsonl").write_text(text)
        with pytest.raises(LabError, match=r"y\.jsonl:1"):
            read_rows(tmp_path / "y.jsonl")


def test_a_digest_is_of_plain_data_only():
    """The text of a large array leaves out its middle; a set's order differs from process to process."""
    from llama2lab.engine.optim import Optim

    assert digest([Optim(1e-3), Path("x"), {"a": (1, 2.5, None)}]) == digest(
        [Optim(1e-3), Path("x"), {"a": [1, 2.5, None]}]
    )
    assert digest([Optim(1e-3)]) != digest([Optim(2e-3)])
    for value in (np.zeros(2000), {1, 2}, torch.zeros(3), object(), Optim):
        with pytest.raises(TypeError, match="plain data"):
            digest([value])


# ---- memory -----------------------------------------------------------------------------------------------------


def test_a_stages_memory_is_its_own_and_not_what_an_earlier_one_took(tmp_path):
    def hold(megabytes: int) -> dict:
        block = torch.ones(megabytes * 250_000)
        return {"sum": float(block[:1].sum())}

    with Run(tmp_path / "r", IDENTITY, say=lambda line: None) as run:
        for name, megabytes in (("small", 1), ("large", 900), ("after", 1)):
            run.stage(name, lambda f, megabytes=megabytes: hold(megabytes), {})
        memory = {name: stage["peak_memory_mb"] for name, stage in run.results({})["stages"].items()}
    assert memory["large"] > memory["small"] + 800
    assert memory["after"] is None or memory["after"] < memory["large"] - 600


def test_where_the_system_does_not_forget_a_peak_none_stands_for_what_is_not_known(monkeypatch):
    monkeypatch.setattr(device, "_forget_peak", lambda: False)
    peak = device.begin_peak_memory()
    assert peak() is None
    block = torch.ones(int(device.peak_memory_mb() * 1e6 / 4) + 25_000_000)
    assert peak() > 100
    del block


def test_an_interrupted_stages_memory_and_seconds_are_of_all_its_attempts(tmp_path):
    def first(folder: Path) -> dict:
        torch.ones(200_000_000)
        raise KeyboardInterrupt

    with Run(tmp_path / "r", IDENTITY, say=lambda line: None) as run, pytest.raises(KeyboardInterrupt):
        run.stage("base", first, {})
    before = json.loads((tmp_path / "r" / "base.partial" / "started.json").read_text())
    with Run(tmp_path / "r", IDENTITY, say=lambda line: None) as run:
        run.stage("base", lambda f: {}, {})
        stage = run.results({})["stages"]["base"]
    assert stage["peak_memory_mb"] is None or stage["peak_memory_mb"] >= before["peak_memory_mb"] > 800
    assert stage["seconds"] >= round(before["seconds"], 1)
    assert sys.platform != "linux" or stage["peak_memory_mb"]
