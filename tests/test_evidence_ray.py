"""Evidence over a local Ray: the same folder, the same rules as on one machine."""

import _thread
import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
from test_report import make_run

from llama2lab.engine.errors import LabError
from llama2lab.evidence import cluster, gather
from llama2lab.evidence.gather import Gathering
from llama2lab.evidence.stored import settings_of

ROOT = Path(__file__).parent.parent
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[cluster]'"
)

CHILD = """
import os, shutil, sys, time
from pathlib import Path
made, out, seed, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
print("training", seed, "with", os.environ.get("OMP_NUM_THREADS"), flush=True)
out.mkdir(exist_ok=True)
with open(out / "tries", "a") as tries:
    tries.write("x")
if mode == "fail":
    sys.exit("out of luck")
if mode == "wait":
    time.sleep(120)
shutil.copytree(made / seed, out, dirs_exist_ok=True)
"""


@pytest.fixture(autouse=True)
def quick_to_start(tmp_path_factory, monkeypatch):
    """Each of Ray's processes imports jsonschema, which takes seconds to import a package of JupyterLab's that Ray does
    not need; on a busy machine Ray then gives up before it has begun."""
    folder = tmp_path_factory.mktemp("instead")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """A gathering on Ray whose runs are copies of invented ones, of which `modes` says what becomes."""
    modes = {}
    for seed in range(3):
        make_run(tmp_path / "made" / str(seed), seed)

    def command(g, seed):
        return [sys.executable, "-c", CHILD, str(tmp_path / "made"), str(g.run(seed)), str(seed), modes.get(seed, "")]

    def tenth(lab):
        return {"stages": len(lab.figures["stages"])}

    def broken(lab):
        raise ValueError("no such thing")

    monkeypatch.setattr(gather, "command", command)
    monkeypatch.setattr("llama2lab.run.bench.run_bench", lambda path: path.write_text("{}"))
    monkeypatch.setattr(gather, "describe_machine", lambda: {"cpu": "abacus", "cores": 4})

    def gathering(**changes):
        given = {"out": tmp_path / "out", "seeds": (0, 1), "on": "ray", "experiments": {"tenth": tenth}, **changes}
        return Gathering(**given)

    return gathering, modes, broken


def tries(g, seed):
    return len((g.run(seed) / "tries").read_text())


@needs_ray
@pytest.mark.slow
def test_tasks_make_what_is_left_and_what_failed_is_named(stubbed, capfd) -> None:
    gathering, modes, broken = stubbed
    g = gathering(seeds=(0, 1, 2))
    g = gathering(seeds=(0, 1, 2), experiments={**g.experiments, "broken": broken})
    modes[1] = "fail"
    with pytest.raises(
        LabError,
        match=r"^the run of seed 1 failed \(exit code 1 on .+\): see the end of .*mini-1\.log; the experiment broken "
        r"failed \(ValueError: no such thing\); mend that and give the same command again: all else is kept$",
    ):
        gather.gather(g)
    assert g.runs_left() == [1] and g.experiments_left() == ["broken"] and g.has_bench()
    stages = len(json.loads((g.run(0) / "results.json").read_text())["stages"])
    assert json.loads((g.run(0) / "experiments" / "tenth.json").read_text()) == {"stages": stages}
    assert "out of luck" in g.log(1).read_text() and "training 0" in g.log(0).read_text()
    assert g.noted(0) == {"alone": False, "settings": settings_of("mini")} and not (g.out / cluster.MARK).exists()
    said = capfd.readouterr()
    assert "seed 0: made on" in said.out and "ray" not in said.err.lower().replace("pytest", "")
    modes[1] = ""
    again = gathering(seeds=(0, 1, 2))
    gather.gather(again)
    assert not again.runs_left() and (tries(g, 0), tries(g, 1), tries(g, 2)) == (1, 2, 1)


@needs_ray
@pytest.mark.slow
def test_a_folder_that_nodes_do_not_see_is_fetched(stubbed, monkeypatch) -> None:
    gathering, _, _ = stubbed
    g = gathering()
    sees = cluster.Cluster.task

    def elsewhere(self, function, *arguments):  # as a node with a disk of its own would find it
        return sees(self, function, *(a if a != self.token else "another" for a in arguments))

    look = cluster._look_around
    with monkeypatch.context() as patched:
        patched.setattr(cluster.Cluster, "task", elsewhere)
        patched.setattr(cluster, "_look_around", lambda c: (look(c), setattr(c, "shared", False)))
        gather.gather(g)
    assert not g.runs_left() and not g.experiments_left()
    assert "training 1 with" in g.log(1).read_text() and not list(g.out.glob("*.fetched"))


@needs_ray
@pytest.mark.slow
def test_ctrl_c_ends_the_runs(stubbed) -> None:
    gathering, modes, _ = stubbed
    g, modes[0] = gathering(seeds=(0,)), "wait"

    def interrupt() -> None:
        while not (g.run(0) / "tries").exists():
            time.sleep(0.05)
        _thread.interrupt_main()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        gather.gather(g)
    assert g.runs_left() == [0] and not running(str(g.run(0))) and not (g.out / cluster.MARK).exists()


def running(word: str) -> list[Path]:
    """Processes with this word in their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


def test_a_run_is_packed_without_what_it_was_made_with(tmp_path) -> None:
    run = make_run(tmp_path / "run", 0)
    (run / ".lock").touch()
    (run / "sft.partial").mkdir()
    (run / "sft.partial" / "x").touch()
    (run / "base").mkdir(exist_ok=True)
    (run / "base" / "resume").mkdir()
    archive = cluster.pack(run)
    old = tmp_path / "there"
    shutil.copytree(run, old)
    (old / "stale").touch()
    cluster.unpack(archive, old)
    names = {p.relative_to(old).as_posix() for p in old.rglob("*")}
    assert "results.json" in names and not {".lock", "sft.partial", "base/resume", "stale"} & names
    assert (old / "results.json").read_bytes() == (run / "results.json").read_bytes()
    assert cluster._sum(old) == cluster._sum(run)


def test_without_ray_the_cure_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LabError, match=r"^--on needs Ray; install it with: pip install 'llama2lab\[cluster\]'$"):
        gather.gather(Gathering(tmp_path / "out", (0,), on="ray"))


@needs_ray
def test_an_address_where_no_ray_answers_is_one_line(tmp_path, monkeypatch) -> None:
    import ray

    def refused(*_, **__):
        raise ConnectionError("nobody there\nmore")

    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(
        LabError, match=r"^--on head:6379: no Ray answers \(nobody there\); start one there with: ray start"
    ):
        gather.gather(Gathering(tmp_path / "out", (0,), on="head:6379"))


def test_a_ray_that_is_gone_is_replaced() -> None:
    class Gone:
        asked: ClassVar[list[str]] = []

        def init(self, address="", **_):
            self.asked.append(address)
            if not address:
                raise ConnectionError("nobody there")

        def shutdown(self):
            self.asked.append("shutdown")

    cluster._local(Gone())
    assert Gone.asked == ["", "shutdown", "local"]


@needs_ray
@pytest.mark.slow
def test_two_smoke_seeds_are_trained_at_once(tmp_path) -> None:
    """The real command, as `llama2lab evidence --on ray --preset smoke` gives it."""
    g = Gathering(tmp_path, (0, 1), "smoke", on="ray")
    assert gather.make_on_ray(g) == ([], []) and not g.runs_left()
    for seed in (0, 1):
        results = json.loads((g.run(seed) / "results.json").read_text())
        assert results["seed"] == seed and "rlhf-v5" in results["stages"]
