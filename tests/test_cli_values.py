"""Values that the command line takes: nothing where something should stand, seeds, shares, words."""

import math
import os

import pytest
import torch
from typer.testing import CliRunner

from llama2lab.cli.main import app
from llama2lab.engine.errors import LabError
from llama2lab.engine.seeds import MAX_SEED
from llama2lab.run.presets import PRESETS
from llama2lab.run.recipe import run_real, run_town


def refused(*args: str) -> str:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), (args, result.output, result.exception)
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Traceback" not in result.output
    return line


@pytest.mark.parametrize(
    "args",
    [
        "run --annotations=",
        "run --recipe=",
        "run --data= --recipe r.yaml",
        "run --out=",
        "run --preset=",
        "run --device=",
        "run --precision=",
        "report x --out=",
        "report ",
        "chat ",
        "chat x --stage=",
        "generate ",
        "bench --json=",
        "bench --sections=",
        "experiments ",
        "agreement ",
        "agreement x.db --out=",
        "annotate ",
        "labels collect  run",
        "labels add x.db ",
        "labels export  x.jsonl",
        "labels merge x.db ",
        "class release all --out=",
        "class logins x.db ",
        "class logins x.db r.csv --out=",
    ],
)
def test_nothing_where_a_name_should_stand_is_refused(args):
    assert "is empty" in refused(*args.split(" "))


@pytest.mark.parametrize("name", ["x" * 300, "y/" * 3000, "loop/x", "file/x", "~nobody/x.jsonl"])
def test_names_that_no_file_can_have_are_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "P", "chosen": "a", "rejected": "b", "grade": "better"}\n')
    assert CliRunner().invoke(app, ["labels", "import", "labels.db", str(rows)]).exit_code == 0
    for args in (
        ["agreement", name],
        ["labels", "merge", "labels.db", name],
        ["labels", "export", name, "x.jsonl"],
        ["labels", "import", "labels.db", name],
        ["labels", "add", "labels.db", name],
        ["report", name],
        ["chat", name, "hello"],
        ["run", "--recipe", name],
    ):
        assert len(refused(*args)) < 7000


def test_a_name_outside_utf8_is_a_name(tmp_path):
    store, rows = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.db"), tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "P", "chosen": "a", "rejected": "b", "grade": "better"}\n')
    for args in (
        ["import", store, str(rows)],
        ["export", store, os.fsdecode(os.fsencode(tmp_path) + b"/\xfe.jsonl")],
        ["merge", str(tmp_path / "all.db"), store],
    ):
        assert CliRunner().invoke(app, ["labels", *args]).exit_code == 0
    assert os.path.getsize(os.fsencode(tmp_path) + b"/\xfe.jsonl") > 0


def test_an_empty_prompt_is_a_prompt(tmp_path):
    assert "is empty" not in refused("generate", str(tmp_path / "none"), "")


@pytest.mark.parametrize(
    "args",
    [
        "run --seed {}",
        "chat x hello --seed {}",
        "generate x --seed {}",
        "labels collect x.db run --seed {}",
        "annotate x.db --seed {}",
    ],
)
def test_the_limit_of_seeds_is_said_at_once(args):
    for seed in (2**63, 2**64, MAX_SEED + 1, -1, 10**30):
        line = refused(*args.format(seed).split())
        assert "--seed" in line and (str(MAX_SEED) in line or seed < 0)


def test_the_largest_seed_can_be_drawn_from():
    torch.Generator().manual_seed(MAX_SEED * 10_000 + 9_999)
    for seed in (-1, 2**63, True, 1.0, "1", math.nan):
        with pytest.raises(LabError, match=f"from 0 to {MAX_SEED}"):
            run_town(PRESETS["smoke"], "never", seed)  # type: ignore[arg-type]
        with pytest.raises(LabError, match=f"from 0 to {MAX_SEED}"):
            run_real("none.yaml", "never", seed)  # type: ignore[arg-type]


def test_numbers_that_are_none_are_refused():
    for value in ("nan", "inf", "-inf", "2", "-1"):
        assert "--people-share" in refused("run", "--annotations", "x.db", "--people-share", value)
    for value in ("nan", "inf"):
        assert "--temperature" in refused("chat", "x", "hi", "--temperature", value)
    for share in (math.nan, -0.1, 1.5):
        with pytest.raises(LabError, match="a number from 0 to 1"):
            run_town(PRESETS["smoke"], "never", people_share=share)


def test_words_for_device_and_precision(tmp_path):
    for device in ("cpu:x", "cpu:", "cuda:99", "cuda:-1", "CPU", "meta", "abacus"):
        assert "there are: auto, cpu" in refused("run", "--device", device, "--out", str(tmp_path / "r"))
    assert "there are: auto, fp32, bf16" in refused("run", "--precision", "fp16", "--out", str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_nothing_is_made_before_a_recipe_is_found_good(tmp_path):
    file = tmp_path / "r.yaml"
    for text in ("preset: smoke\nrlhf: {preferences: {safety: [100, 100]}}\n", "data: {sft: {files: 3}}\n", "data: ["):
        file.write_text(text)
        assert "r.yaml:" in refused("run", "--recipe", str(file), "--out", str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()
