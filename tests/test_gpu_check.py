"""The script for a GPU, on a machine without: parts end in time and are read, one table, plain JSON."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from llama2lab.engine.device import Machine
from llama2lab.model.checkpoint import expected_shapes
from llama2lab.model.network import SIZES
from llama2lab.run import gpu_check
from llama2lab.run.gpu_check import Outcome, Part, run_part


def part(code: str, limit: float = 60, **more) -> Part:
    read = more.pop("read", lambda folder, said: [("said", said.strip())])
    return Part("one", [sys.executable, "-c", code], limit, read, **more)


def test_a_part_ends_in_its_time_and_says_what_it_had(tmp_path: Path) -> None:
    assert run_part(part("print('well')"), tmp_path / "a").rows == [("said", "well")]
    begin = time.monotonic()
    late = run_part(part("import time; print('begun', flush=True); time.sleep(60)", 5), tmp_path / "b")
    assert (late.ended, late.rows, late.why) == ("out of time", [("said", "begun")], "")
    assert time.monotonic() - begin < 30
    failed = run_part(part("print('x'); raise SystemExit('no luck')"), tmp_path / "c")
    assert (failed.ended, failed.why) == ("failed", "exit code 1: no luck")
    unread = run_part(part("pass", read=lambda folder, said: json.loads("{")), tmp_path / "d")
    assert unread.ended == "failed" and "Expecting property name" in unread.why
    wanting = run_part(part("print('error: no checkpoint'); raise SystemExit(2)", wants=2), tmp_path / "f")
    assert (wanting.ended, wanting.why) == ("skipped", "error: no checkpoint")
    skipped = run_part(part("", missing="no recipe"), tmp_path / "e")
    assert (skipped.ended, skipped.why) == ("skipped", "no recipe")


def test_one_table_says_all() -> None:
    outcomes = [
        Outcome("tests", "done", 12.4, rows=[("pytest", "9 passed")]),
        Outcome("speed", "out of time", 110.0, rows=[("training", "1,000 tokens/s"), ("generation", "9")]),
        Outcome("smollm2", "skipped", why="no recipe"),
    ]
    assert gpu_check.table(outcomes).splitlines() == [
        "part     ended        seconds  what",
        "tests    done         12       pytest      9 passed",
        "speed    out of time  110      training    1,000 tokens/s",
        "                               generation  9",
        "smollm2  skipped      0        why         no recipe",
    ]


def test_all_limits_together_are_under_eight_minutes() -> None:
    assert sum(gpu_check.LIMITS.values()) <= 480


def test_the_shape_is_that_of_135_million_parameters() -> None:
    shapes = expected_shapes(gpu_check.SMOLLM2).values()
    assert sum(torch.Size(shape).numel() for shape in shapes) == 134_515_008


def test_speed_is_measured_on_a_cpu_too() -> None:
    found: dict[str, str] = {}
    gpu_check.speed(Machine(torch.device("cpu"), "fp32"), SIZES["nano"], found.__setitem__, smoke=True)
    assert set(found) == {"parameters", "training", "generation, 1 rows", "generation, 4 rows"}
    assert "share of the ceiling" in found["training"] and "transformers" in found["generation, 4 rows"]


def test_without_a_gpu_one_line_says_so(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "pick_device", lambda: torch.device("cpu"))
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().err == (
        "error: there is no GPU here that torch can use; give --smoke to try the plumbing on this machine\n"
    )
    assert gpu_check.main(["--smoke", "--parts", "spead"]) == 2
    assert "unknown part spead; choose of tests,speed,bench,mini,smollm2" in capsys.readouterr().err


def test_parts_that_cannot_be_done_are_skipped_with_a_reason(tmp_path: Path) -> None:
    parts = {p.name: p for p in gpu_check.parts_of(True, tmp_path, None)}
    assert parts["bench"].missing == parts["smollm2"].missing == "left out of a smoke run"
    assert "--preset smoke" in " ".join(parts["mini"].words) and not parts["tests"].missing


@pytest.mark.long
@pytest.mark.slow
def test_all_of_it_in_small(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(gpu_check.LIMITS, "mini", 60)
    assert gpu_check.main(["--smoke", "--json", str(tmp_path / "found.json")]) == 0
    whole = json.loads((tmp_path / "found.json").read_text())
    ended = {p["part"]: p["ended"] for p in whole["parts"]}
    assert ended["tests"] == ended["speed"] == "done" and ended["mini"] in ("done", "out of time")
    assert ended["bench"] == ended["smollm2"] == "skipped" and whole["machine"]["cpu"]
    assert "pytest" in capsys.readouterr().out
