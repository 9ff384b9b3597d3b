"""Evidence over a Ray cluster: one task a seed, then one an experiment. What is made lies in the same folder as ever,
so a stopped command goes on with or without Ray.

A node that sees the folder under the same path (a shared disk, or this very machine) works in it, so that finished
stages are kept. Any other node works under the same path on its own disk, and sends the finished run back as a tar: of
a run that was stopped there, only a task that comes to the same node again finds its stages. Nodes need the same
llama2lab; it is asked of all of them before anything is begun.

Ray is told to keep quiet: no dashboard, no use reported, no lines of its own. A task asks for CORES cores, or as many
as the largest node has, and for a GPU where the cluster has any.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import platform
import secrets
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock

from llama2lab import __version__
from llama2lab.engine import folders
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.files import write_atomic

CORES = 2  # of a task: as many as the project's own figures were measured on
MARK = ".shared"  # in the folder while it is worked on: who reads it sees the folder
LEFT_OUT = ("resume", folders.LOCK, folders.WRITER)  # of what is sent
CURE = "install the same version on every node: pip install 'llama2lab[cluster]'"


@dataclass
class Cluster:
    """A Ray that is connected to, and how it sees the folder `out`."""

    ray: Any
    out: Path
    token: str
    options: dict[str, Any] = field(default_factory=dict)  # what a task asks for
    shared: bool = True  # whether all nodes see the folder

    def task(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.ray.remote(function).options(**self.options).remote(*arguments)

    def each(self, tasks: Mapping[Any, str]) -> Iterator[tuple[str, Any, str]]:
        """(name, what its task gave, why it failed) as they end. What stops this cancels those under way, which keep
        what they have."""
        left = dict(tasks)
        try:
            while left:
                done, _ = self.ray.wait(list(left), num_returns=1)
                for ref in done:
                    name = left.pop(ref)
                    try:
                        yield name, self.ray.get(ref), ""
                    except self.ray.exceptions.RayError as e:
                        yield name, None, _why(e)
        finally:
            for ref in left:
                with contextlib.suppress(Exception):
                    self.ray.cancel(ref, force=False)
            if left:
                with contextlib.suppress(Exception):
                    self.ray.wait(list(left), num_returns=len(left), timeout=20)


@contextlib.contextmanager
def connected(on: str, out: Path) -> Iterator[Cluster]:
    """The Ray that `on` names: "ray" is a local one, started if none runs; otherwise an address as Ray knows it,
    ray://host:10001 or host:6379. LabError if there is none, or its nodes have another llama2lab."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # a busy machine is slow, not broken
    try:
        import ray
    except ImportError:
        raise LabError("--on needs Ray; install it with: pip install 'llama2lab[cluster]'") from None
    try:
        if on == "ray":
            _local(ray)
        else:
            ray.init(on, log_to_driver=False, logging_level=logging.ERROR)
    except ImportError as e:
        raise LabError(f"--on {on} needs Ray's client; install it with: pip install 'llama2lab[cluster]'") from e
    except Exception as e:  # Ray raises all kinds, and plain ones
        ray.shutdown()
        cure = "give the same command again" if on == "ray" else "start one there with: ray start --head"
        raise LabError(f"--on {on}: no Ray answers ({first_line(e)}); {cure}") from e
    mark = out / MARK
    try:
        cluster = Cluster(ray, out, secrets.token_hex(8))
        write_atomic(mark, cluster.token)
        _look_around(cluster)
        yield cluster
    finally:
        mark.unlink(missing_ok=True)
        ray.shutdown()


def _local(ray: Any) -> None:
    """Join the Ray of this machine, or start one: also where a file of Ray's names one that is gone."""
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(**quiet)
    except ConnectionError:
        ray.shutdown()
        ray.init("local", **quiet)


def _look_around(cluster: Cluster) -> None:
    """Ask every node for its llama2lab, and whether it sees the folder; and see what a task can ask for."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in cluster.ray.nodes() if node["Alive"]]
    cores = max((node["Resources"].get("CPU", 0) for node in nodes), default=0)
    if cores < 1:
        raise LabError("no node of this Ray has a core to compute on; start one with `ray start --num-cpus 2`")
    asked = {}
    for node in nodes:
        on_it = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        look = cluster.ray.remote(_look).options(num_cpus=0, scheduling_strategy=on_it)
        asked[look.remote(str(cluster.out), cluster.token)] = node["NodeManagerHostname"]
    for host, found, why in cluster.each(asked):
        if why:
            raise LabError(f"{host}: {why}; {CURE}")
        version, sees = found
        if version != __version__:
            raise LabError(f"{host} has llama2lab {version}, this machine {__version__}; {CURE}")
        cluster.shared &= sees
    gpus = any(node["Resources"].get("GPU", 0) >= 1 for node in nodes)
    cluster.options = {"num_cpus": min(CORES, int(cores)), "max_retries": 1} | ({"num_gpus": 1} if gpus else {})


def _why(error: BaseException) -> str:
    """What Ray says of a task that failed, in a line."""
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {first_line(cause)}" if cause else first_line(error)


# ---- runs ------------------------------------------------------------------------------------------------------------


def make_runs(
    cluster: Cluster,
    commands: Mapping[int, Sequence[str]],
    run_of: Callable[[int], Path],
    log_of: Callable[[int], Path],
    say: Callable[[str], None],
) -> Iterator[tuple[int, str]]:
    """(seed, why it failed, or "") as the runs of these commands end, each a task; `run_of` and `log_of` say where they
    are to lie."""
    threads = cluster.options.get("num_cpus", 1)
    tasks = {
        cluster.task(_train, list(words), str(run_of(seed)), str(log_of(seed)), cluster.token, threads): str(seed)
        for seed, words in commands.items()
    }
    for name, made, why in cluster.each(tasks):
        seed = int(name)
        if made is not None:
            why = f"{made.why} on {made.host}" if made.why else ""
            if made.log:
                with open(log_of(seed), "a", encoding="utf-8") as log:
                    log.write(made.log)
            if made.archive is not None:
                unpack(made.archive, run_of(seed))
            if not why:
                say(f"seed {seed}: made on {made.host} in {made.seconds / 60:.1f} minutes")
        yield seed, why


@dataclass(frozen=True)
class _Made:
    """What a task says of its run; `log` and `archive` where it did not see the folder."""

    why: str
    host: str
    seconds: float
    log: str = ""
    archive: bytes | None = None


def _look(out: str, token: str) -> tuple[str, bool]:
    return __version__, _sees(Path(out), token)


def _sees(out: Path, token: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return (out / MARK).read_text(encoding="utf-8") == token
    return False


def _train(words: list[str], run: str, log: str, token: str, threads: int) -> _Made:
    """On a node: make, or go on with, a run, by a command in a process of its own, which ends with this."""
    begin, shared = time.monotonic(), _sees(Path(run).parent, token)
    Path(run).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") if shared else tempfile.TemporaryFile() as kept:
        env = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}
        child = subprocess.Popen(
            [sys.executable, *words[1:]],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=kept,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while child.poll() is None:  # looked at, not waited for: only so does Ray's cancelling reach this thread
                time.sleep(0.2)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait(10)
        why = f"exit code {child.returncode}" if child.returncode else ""
        if not why and not (Path(run) / "results.json").is_file():
            why = "no results.json"
        said = ""
        if not shared:
            kept.seek(0)
            said = kept.read().decode("utf-8", "replace")
    archive = None if shared or why else pack(Path(run))
    return _Made(why, platform.node(), time.monotonic() - begin, said, archive)


def pack(run: Path) -> bytes:
    """A finished run as a tar, without what only a run under way needs."""

    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(info.name).parts
        return None if any(part in LEFT_OUT or part.endswith(".partial") for part in parts) else info

    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        tar.add(run, ".", filter=wanted)
    return whole.getvalue()


def unpack(archive: bytes, run: Path) -> None:
    """Let what `pack` gave be `run`, which is replaced. Nothing of it can lie elsewhere."""
    fresh = run.with_name(run.name + ".fetched")
    if fresh.exists():
        folders.discard(fresh)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(fresh, filter="data")
    folders.put_in_place(fresh, run)


# ---- experiments -----------------------------------------------------------------------------------------------------


def measure(
    cluster: Cluster, run: Path, experiments: Mapping[str, Callable[..., Any]], say: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Measure experiments on a finished run, a task each, and keep each in RUN/experiments; (name, why) of those that
    failed."""
    (run / "experiments").mkdir(exist_ok=True)
    archive = None if cluster.shared else [cluster.ray.put(pack(run))]  # in a list, so that only who needs it fetches
    tasks = {
        cluster.task(_measure, function, str(run), cluster.token, _sum(run), archive): name
        for name, function in experiments.items()
    }
    failed = []
    for name, result, why in cluster.each(tasks):
        if why:
            failed.append((name, why))
        else:
            write_atomic(run / "experiments" / f"{name}.json", json.dumps(result, indent=1))
            say(f"{name} measured")
    return failed


def _sum(run: Path) -> str:
    return sha256((run / "results.json").read_bytes()).hexdigest()


def _measure(function: Callable[..., Any], run: str, token: str, wanted: str, archive: list[Any] | None) -> Any:
    """On a node: one experiment on the run, which is fetched first where the node neither sees nor has it."""
    from llama2lab.lab.finished import Finished

    there = Path(run)
    if not _sees(there.parent, token):
        there.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{there}.fetching"):  # several tasks of one node
            if not (there / "results.json").is_file() or _sum(there) != wanted:
                import ray

                if archive is None:
                    raise LabError(f"{platform.node()} joined later and does not see {there}; give the command again")
                unpack(ray.get(archive[0]), there)
    return function(Finished(there))
