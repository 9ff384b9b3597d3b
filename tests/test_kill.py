"""kill -9 at random moments, those of file system calls among them: the same final checkpoint as an undisturbed run,
and no finished stage built again."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# The command line, which dies before its nth call that changes the file system within the folder.
DIES = """
import os, signal, sys

at, folder = int(sys.argv.pop(1)), sys.argv[-1]

def look(event, args):
    global at
    if event == "open":
        changes = isinstance(args[0], str) and args[0].startswith(folder) and args[2] & (os.O_WRONLY | os.O_RDWR)
    elif event in ("os.rename", "os.mkdir"):
        changes = os.fspath(args[0]).startswith(folder)
    else:  # rmtree gives names within an open folder
        changes = event in ("os.remove", "os.rmdir")
    at -= bool(changes)
    if changes and at == 0:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(look)
from llama2lab.cli.main import app
app()
"""


def start(out: Path, at: int = 0) -> subprocess.Popen:
    # A fixed number of threads: sums over other numbers of threads round differently.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}
    program = ["-c", DIES, str(at)] if at else ["-m", "llama2lab"]
    return subprocess.Popen(
        [sys.executable, *program, "run", "--preset", "smoke", "--out", str(out)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def checkpoints(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.glob("*/model.safetensors"))
    }


def finished(out: Path) -> dict[str, int]:
    """The stages whose stage.json is written, in their place or beside it, with its inode, which a rename keeps."""
    return {
        p.parent.name.removesuffix(".partial"): p.stat().st_ino
        for p in out.glob("*/stage.json")
        if p.parent.suffix in ("", ".partial")
    }


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4, pytest.param(10, marks=pytest.mark.long)])
def test_kills_end_in_the_same_checkpoint_and_rebuild_nothing(tmp_path, kills):
    begin = time.monotonic()
    undisturbed = start(tmp_path / "a")
    assert undisturbed.wait() == 0, undisturbed.stderr.read().decode()[-2000:]
    seconds = time.monotonic() - begin
    rng, killed, done, calls = random.Random(kills), 0, {}, 0
    while killed < kills:
        at = rng.randint(1, 120) if rng.random() < 0.5 else 0
        process = start(tmp_path / "b", at)
        try:
            process.wait(timeout=5 * seconds if at else rng.uniform(0.02, 0.25) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for name, inode in finished(tmp_path / "b").items():
            assert done.setdefault(name, inode) == inode, f"{name} was finished, and was built again"
        assert set(done) == set(finished(tmp_path / "b")), "a finished stage is gone"
        if process.returncode == -signal.SIGKILL:
            killed, calls = killed + 1, calls + bool(at)
            continue
        assert process.returncode == 0, process.stderr.read().decode()[-2000:]
        # finished before all kills were spent: go on from the middle
        stages = [s for s in json.loads((tmp_path / "b" / "results.json").read_text())["stages"]]
        for name in stages[len(stages) // 2 :]:
            (tmp_path / "b" / name / "stage.json").unlink()
            done.pop(name)
    assert calls >= kills // 4
    process = start(tmp_path / "b")
    assert process.wait() == 0, process.stderr.read().decode()[-2000:]
    now = finished(tmp_path / "b")
    assert all(now[name] == inode for name, inode in done.items())
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b")
    assert {"base", "sft", "rlhf-v5"} <= {Path(p).parent.name for p in checkpoints(tmp_path / "a")}
    assert all(p.suffix == "" for p in (tmp_path / "b").iterdir() if p.is_dir())  # nothing half done is left
