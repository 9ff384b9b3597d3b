"""kill -9 at ten random moments: the same final checkpoint as an undisturbed run."""

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

KILLS = 10


def start(out: Path) -> subprocess.Popen:
    # A fixed number of threads: sums over other numbers of threads round differently.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}
    return subprocess.Popen([sys.executable, "-m", "llama2lab", "run", "--preset", "smoke", "--out", str(out)],
                            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def checkpoints(out: Path) -> dict[str, str]:
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(out.glob("*/model.safetensors"))}


@pytest.mark.slow
def test_ten_kills_end_in_the_same_checkpoint(tmp_path):
    begin = time.monotonic()
    undisturbed = start(tmp_path / "a")
    assert undisturbed.wait() == 0, undisturbed.stderr.read().decode()[-2000:]
    seconds = time.monotonic() - begin
    rng, killed = random.Random(1), 0
    while killed < KILLS:
        process = start(tmp_path / "b")
        try:
            process.wait(timeout=rng.uniform(0.02, 0.25) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        assert process.returncode == 0, process.stderr.read().decode()[-2000:]
        if killed < KILLS:  # finished before all kills were spent: go on from the middle
            stages = [s for s in json.loads((tmp_path / "b" / "results.json").read_text())["stages"]]
            for name in stages[len(stages) // 2:]:
                (tmp_path / "b" / name / "stage.json").unlink()
    process = start(tmp_path / "b")
    assert process.wait() == 0, process.stderr.read().decode()[-2000:]
    assert checkpoints(tmp_path / "a") == checkpoints(tmp_path / "b")
    assert {"base", "sft", "rlhf-v5"} <= {Path(p).parent.name for p in checkpoints(tmp_path / "a")}
