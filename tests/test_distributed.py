"""Several processes on one machine (gloo): they train, sample and score as one does, to the rounding of sums; the first
alone writes; a killed one ends the run with a line; and any number of them goes on from where others stopped.

What is compared the log rounds to 6 digits. Measured, losses of one, two and four processes differ by 1e-6 at most, the
last of these; sums of weights and scores by 3e-6. TOLERANCE leaves room for another machine's sums."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import distributed_ranks as ranks
import pytest

from llama2lab.engine import sharded
from llama2lab.engine.errors import LabError
from llama2lab.run import presets
from llama2lab.run.recipe import run_town

TOLERANCE = {"rel": 3e-5, "abs": 1e-5}
# The command line, in which one rank dies at a step of the first training. What is done is saved after every step.
DIES = """
import os, signal, sys
from llama2lab.engine import distributed, loop

at, whose, mine = int(sys.argv.pop(1)), sys.argv.pop(1), distributed.shared
loop.SAVE_EVERY, loop.SAVE_SHARE = 0.0, 1e9

def shared(rows):
    global at
    at -= sys._getframe(1).f_code.co_name == "step_fn"
    if at == 0 and os.environ.get("RANK", "0") == whose:
        os.kill(os.getpid(), signal.SIGKILL)
    return mine(rows)

distributed.shared = shared
from llama2lab.cli.main import app
app()
"""


def torchrun(n, *words):
    """Its exit code, and what all processes said on stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stderr


def by_ranks(n, folder, *tasks):
    """The figures of tasks by `n` processes."""
    code, said = torchrun(n, str(Path(__file__).with_name("distributed_ranks.py")), str(folder), *tasks)
    assert code == 0, said[-4000:]
    return {task: json.loads((folder / f"{task}.json").read_text(encoding="utf-8")) for task in tasks}


SAME = ("pretraining", "fine_tuning", "rewards", "policy", "sampling", "divided", "divided_rewards", "divided_policy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder):
    return by_ranks(2, folder, *SAME, "run", "interrupted", "interrupted_divided", "speaking")


@pytest.fixture(scope="module")
def four(tmp_path_factory, two, folder):
    kept = tmp_path_factory.mktemp("four")
    for name in ("training", "divided"):
        shutil.copytree(folder / name, kept / name)
    return by_ranks(4, kept, *SAME, "resumed", "resumed_divided")


def the_same(found, expected):
    """Numbers to TOLERANCE, all else exactly."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, **TOLERANCE)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            the_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            the_same(a, b)
    else:
        assert found == expected


@pytest.mark.parametrize("task", SAME)
def test_two_processes_give_the_figures_of_one(two, task):
    the_same(two[task], getattr(ranks, task)(None))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("task", SAME)
def test_four_processes_give_the_figures_of_one(four, task):
    the_same(four[task], getattr(ranks, task)(None))


def test_the_first_process_alone_writes_and_all_read_the_same(two, folder):
    first, second = two["run"]["ranks"]
    assert first["built"] == second["built"] == [1, 1]  # together, and once
    assert first["read"] == second["read"]
    assert first["read"][0] == "rank 0" and first["read"][3]["rank"] == 0
    assert "model.safetensors" in first["within"] or any("stage.json" in name for name in first["within"])
    assert second["within"] == []
    assert second["scratch"] == []  # removed
    assert {p.name for p in (folder / "run").iterdir()} == {".lock", "run.json", "base", "results.json"}


@pytest.mark.parametrize("task", ["resumed", "resumed_divided"])
def test_what_two_processes_saved_goes_on_in_one(two, folder, tmp_path, task):
    """Whole weights, and a divided model's through torch.distributed.checkpoint."""
    for name in ("training", "divided"):
        shutil.copytree(folder / name, tmp_path / name)
    assert two["interrupted"]["files"] == ["state.safetensors"]
    assert two["interrupted_divided"]["files"] == ["shares-5", "state.safetensors"]
    found = getattr(ranks, task)(tmp_path)
    assert found.pop("begun") == 5
    the_same(found, ranks.pretraining(None))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("task", ["resumed", "resumed_divided"])
def test_what_two_processes_saved_goes_on_in_four(four, task):
    assert four[task].pop("begun") == 5
    the_same(four[task], ranks.pretraining(None))


def test_a_damaged_share_is_one_line(two, folder, tmp_path):
    shutil.copytree(folder / "divided" / "training", tmp_path / "training")
    share = next((tmp_path / "training").rglob("shard-00002*"))
    damaged = bytearray(share.read_bytes())
    damaged[-9] ^= 4
    share.write_bytes(damaged)
    with pytest.raises(LabError, match=r"shard-00002.*missing or damaged; remove .*resume and give the same command"):
        ranks.resumed(tmp_path)


def test_one_of_all_processes_says_what_went_wrong(two):
    assert sorted(two["speaking"]["ranks"]) == [False, True]


def test_a_mistake_is_said_once_also_before_the_processes_met():
    command = [sys.executable, "-m", "llama2lab", "run", "--preset", "mini", "--recipe", "no.yaml"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WORLD_SIZE": "2"}
    environment |= {"LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    both = [
        subprocess.Popen(command, env=environment | {"RANK": rank}, stderr=subprocess.PIPE, text=True) for rank in "01"
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    assert said[0].startswith("error: give --preset or --recipe") and said[1] == ""


@pytest.mark.parametrize(
    "shard, memory, wanted",
    [("auto", 10**9, False), ("auto", 10**6, True), ("always", 10**9, True), ("never", 10**6, False)],
)
def test_a_model_is_divided_where_a_device_should_not_hold_its_training(monkeypatch, shard, memory, wanted):
    model, machine = ranks.tiny(), replace(ranks.CPU, shard=shard)  # 16 bytes for each of 52,000 parameters
    monkeypatch.setattr(sharded, "device_bytes", lambda device: memory)
    assert not sharded.is_wanted(model, machine)  # one process has nobody to share with
    monkeypatch.setattr("llama2lab.engine.distributed.world_size", lambda: 2)
    assert sharded.is_wanted(model, machine) is wanted


def test_an_unknown_way_to_divide_is_a_line(tmp_path):
    with pytest.raises(LabError, match="shard 'often' is unknown; there are: auto, always, never"):
        run_town(presets.SMOKE, tmp_path / "run", shard="often")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_a_line_and_the_next_start_goes_on(tmp_path):
    """The first one is killed, which alone writes; then one process goes on from what two had done."""
    out, program = tmp_path / "run", tmp_path / "dies.py"
    program.write_text(DIES, encoding="utf-8")

    def words(at, whose):
        return [str(program), str(at), whose, "run", "--preset", "smoke", "--out", str(out)]

    code, said = torchrun(2, *words(8, "0"))
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code != 0 and len(lines) == 1, said[-3000:]
    assert "another process of this run ended" in lines[0] and "give the same command again" in lines[0]
    assert len(ranks.saved_log(out / "base.partial")) == 7
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    again = subprocess.run([sys.executable, *words(6, "0")], env=environment, capture_output=True, timeout=300)
    assert again.returncode == -signal.SIGKILL, again.stderr[-3000:]
    assert len(ranks.saved_log(out / "base.partial")) == 12  # 7 steps, and 5 more


@pytest.mark.long
@pytest.mark.slow
def test_a_smoke_run_by_two_processes_has_the_figures_of_one_up_to_where_rounding_tips_a_choice(tmp_path):
    words = ("-m", "llama2lab", "run", "--preset", "smoke", "--device", "cpu", "--precision", "fp32", "--out")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, *words, str(tmp_path / "one")], env=environment, check=True, capture_output=True)
    code, said = torchrun(2, *words, str(tmp_path / "two"))
    assert code == 0, said[-4000:]
    one, two = (
        json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))["stages"] for name in ("one", "two")
    )
    assert two.keys() == one.keys()
    for stage in ("base", "sft", "sft-noisy", "preferences-v1", "reward-helpfulness-v1"):
        expected = {
            k: v for k, v in one[stage]["metrics"].items() if k not in ("tokens_per_second", "share_of_ceiling")
        }
        for row in expected.get("loss", ()):
            row.pop("seconds")
        found = {k: two[stage]["metrics"][k] for k in expected}
        for row in found.get("loss", ()):
            row.pop("seconds")
        the_same(found, expected)
    assert not list((tmp_path / "two").glob("*.partial")) and (tmp_path / "two" / "report.html").exists()
    assert said.count("rlhf-v5 done in") == 1  # one speaks
