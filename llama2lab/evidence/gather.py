"""Gather the evidence: a run of the preset for each seed, the experiments on the first of them, the benchmark; and let
it take the place of what the project ships. Whatever is there already is left, so that a stopped command goes on.

OUT/PRESET-SEED         the runs, each by `llama2lab run` in a process of its own
OUT/PRESET-SEED.log     what that said
OUT/bench.json          what `llama2lab bench` measures
OUT/evidence.json       seeds, which runs were made alone (only their time counts), machine, versions, date
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event, Lock
from typing import Any

from llama2lab import __version__
from llama2lab.engine import folders
from llama2lab.engine.device import cores, describe_machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import copy_atomic, disk_errors, read_as, write_atomic
from llama2lab.engine.seeds import check_seed
from llama2lab.engine.stagefiles import finished_stages
from llama2lab.evidence.readme import write_pages
from llama2lab.evidence.ship import ship, ship_figures
from llama2lab.evidence.stored import settings_of
from llama2lab.lab.finished import Experiment
from llama2lab.report.promises import NOTE
from llama2lab.report.summary import load_run, total_seconds

# Rough minutes, for the plan alone; a finished run's own time takes the place of the first.
RUN_MINUTES, EXPERIMENT_MINUTES, BENCH_MINUTES = 15, 1, 5
BENCH = "bench.json"


@dataclass(frozen=True)
class Gathering:
    """Which evidence is wanted, and where it is kept."""

    out: Path
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    preset: str = "mini"
    jobs: int = 1  # runs at once
    experiments: Mapping[str, Experiment] = field(default_factory=dict)
    on: str = ""  # a Ray, see cluster.py; "": this machine alone

    def run(self, seed: int) -> Path:
        return self.out / f"{self.preset}-{seed}"

    def log(self, seed: int) -> Path:
        return self.out / f"{self.preset}-{seed}.log"

    @property
    def settings(self) -> str:
        """What was made with others is not finished."""
        return settings_of(self.preset)

    def note(self) -> dict[str, Any]:
        """evidence.json as it is; LabError if it is damaged, or of another preset."""
        path = self.out / NOTE
        found = read_as(dict[str, Any], path, "remove it and give the command again") if path.is_file() else {}
        if found.get("preset", self.preset) != self.preset:
            raise LabError(f"{self.out} holds evidence of the preset {found['preset']}; give another --out")
        return found

    def noted(self, seed: int) -> dict[str, Any]:
        return self.note().get("runs", {}).get(str(seed), {})

    def write_note(self, **changes: Any) -> None:
        write_atomic(self.out / NOTE, json.dumps({"preset": self.preset, **self.note(), **changes}, indent=1))

    def write_noted(self, seed: int, **changes: Any) -> None:
        runs = self.note().get("runs", {})
        self.write_note(runs={**runs, str(seed): {**runs.get(str(seed), {}), **changes}})

    def is_made(self, seed: int) -> bool:
        """Whether the run of a seed is finished, with the settings that the preset has today."""
        there = (self.run(seed) / "results.json").is_file()
        return there and self.noted(seed).get("settings") == self.settings

    def runs_left(self) -> list[int]:
        return [seed for seed in self.seeds if not self.is_made(seed)]

    def experiments_left(self) -> list[str]:
        folder = self.run(self.seeds[0]) / "experiments"
        return [name for name in self.experiments if not (folder / f"{name}.json").is_file()]

    def has_bench(self) -> bool:
        return (self.out / BENCH).is_file()


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds that '0-4' or '0,2,7' names; LabError for anything else."""
    try:
        parts = [[int(end) for end in part.split("-")] for part in text.split(",")]
        if any(len(part) > 2 or part[0] > part[-1] or part[-1] - part[0] > 1000 for part in parts):
            raise ValueError
    except ValueError:
        raise LabError(f"--seeds {text!r} names no seeds; give a range or a list, such as 0-4 or 0,2,7") from None
    return tuple(dict.fromkeys(check_seed(seed) for part in parts for seed in range(part[0], part[-1] + 1)))


def gather(g: Gathering) -> None:
    """Make what is left, and say before each step what that is. Everything is kept when it is stopped.

    Raises:
        LabError: runs or experiments failed (all that can be made without them is made first); or as
            `Gathering.note` and `cluster.connected`.
    """
    if g.jobs < 1:
        raise LabError(f"--jobs {g.jobs} would make nothing; give 1 or more")
    with disk_errors(g.out):
        g.out.mkdir(parents=True, exist_ok=True)
    with folders.one_writer(g.out):
        g.note()
        failed: list[tuple[int, str]] = []
        unmeasured: list[tuple[str, str]] = []
        if g.on and (g.runs_left() or g.experiments_left()):
            say(plan(g))
            note_machine(g)
            failed, unmeasured = make_on_ray(g)
        elif g.runs_left():
            say(plan(g))
            note_machine(g)
            failed = make_runs(g, g.runs_left())
        if not g.on and g.experiments_left() and g.is_made(g.seeds[0]):
            from llama2lab.lab.measure import measure

            say(plan(g))
            measure(g.run(g.seeds[0]), g.experiments)
            note_machine(g)
        if not g.has_bench():
            from llama2lab.run.bench import run_bench

            say(plan(g))
            run_bench(g.out / BENCH)
            note_machine(g)
        if failed or unmeasured:
            wrong = [f"the run of seed {seed} failed ({why}): see the end of {g.log(seed)}" for seed, why in failed]
            wrong += [f"the experiment {name} failed ({why})" for name, why in unmeasured]
            raise LabError("; ".join(wrong) + "; mend that and give the same command again: all else is kept")
        say(plan(g))


def say(text: str) -> None:
    print(text, flush=True)


def plan(g: Gathering) -> str:
    """What is left and how long it may take."""
    runs, experiments = g.runs_left(), g.experiments_left()
    parts, minutes = [], 0.0
    if runs:
        at_once = f", {g.jobs} at once" if g.jobs > 1 else ""
        parts.append(f"run{'s' * (len(runs) > 1)} of seed{'s' * (len(runs) > 1)} {', '.join(map(str, runs))}{at_once}")
        minutes += len(runs) * minutes_of_a_run(g)  # as many at once take as much longer
    if experiments:
        parts.append(f"{len(experiments)} experiment{'s' * (len(experiments) > 1)} on {g.run(g.seeds[0])}")
        minutes += len(experiments) * EXPERIMENT_MINUTES
    if not g.has_bench():
        parts.append("the benchmark")
        minutes += BENCH_MINUTES
    if not parts:
        return f"all is there, in {g.out}"
    return f"left: {'; '.join(parts)}; roughly {minutes:.0f} minutes"


def minutes_of_a_run(g: Gathering) -> float:
    """As the runs took that are made."""
    made = [total_seconds(load_run(g.run(seed))) / 60 for seed in g.seeds if g.is_made(seed)]
    return sum(made) / len(made) if made else RUN_MINUTES


def note_machine(g: Gathering) -> None:
    """What made the evidence, and when."""
    known = {"llama2lab": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        try:
            known[name] = version(name)
        except PackageNotFoundError:  # built from source, without metadata
            continue
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    g.write_note(seeds=list(g.seeds), machine=describe_machine(), versions=known, date=day)


# ---- runs ------------------------------------------------------------------------------------------------------------


def command(g: Gathering, seed: int) -> list[str]:
    """What makes, or goes on with, the run of a seed."""
    run = ["run", "--preset", g.preset, "--seed", str(seed), "--out", str(g.run(seed))]
    return [sys.executable, "-m", "llama2lab", *run]


def make_runs(g: Gathering, seeds: Sequence[int]) -> list[tuple[int, str]]:
    """Make the runs of these seeds; those that failed, and why. What ends this ends them, too, and they keep what they
    have."""
    children = Children()
    noting = Lock()  # one file for all

    def make(seed: int) -> str:
        with noting:
            fresh = not any(finished_stages(g.run(seed)))
            g.write_noted(seed, alone=g.jobs == 1 and (fresh or g.noted(seed).get("alone", False)))
        name = f"seed {seed}: " if g.jobs > 1 else ""
        why = children.run(command(g, seed), g.log(seed), environment(g.jobs), lambda line: say(name + line))
        if not why and not (g.run(seed) / "results.json").is_file():
            why = "no results.json"
        if not why:
            with noting:
                g.write_noted(seed, settings=g.settings)
        elif not children.stopped.is_set():
            print(f"seed {seed} failed ({why}): see {g.log(seed)}", file=sys.stderr, flush=True)
        return why

    with ThreadPoolExecutor(min(g.jobs, len(seeds))) as pool:
        futures = [pool.submit(make, seed) for seed in seeds]
        try:
            found = [(seed, future.result()) for seed, future in zip(seeds, futures, strict=True)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
            raise
    return [(seed, why) for seed, why in found if why]


def make_on_ray(g: Gathering) -> tuple[list[tuple[int, str]], list[tuple[str, str]]]:
    """`make_runs` and the experiments as tasks of a Ray; the runs and the experiments that failed, and why. The time of
    such runs does not count: who else computed on their nodes is not known."""
    from llama2lab.evidence import cluster

    there = replace(g, out=g.out.resolve())  # a path that means the same wherever a task begins
    failed: list[tuple[int, str]] = []
    with cluster.connected(g.on, there.out) as ray:
        seeds = g.runs_left()
        for seed in seeds:
            g.write_noted(seed, alone=False)
        commands = {seed: command(there, seed) for seed in seeds}
        for seed, why in cluster.make_runs(ray, commands, there.run, there.log, say):
            if why:
                failed.append((seed, why))
                print(f"seed {seed} failed ({why}): see {g.log(seed)}", file=sys.stderr, flush=True)
            else:
                g.write_noted(seed, settings=g.settings)
        if not g.is_made(g.seeds[0]):
            return failed, []
        left = {name: g.experiments[name] for name in g.experiments_left()}
        return failed, cluster.measure(ray, there.run(g.seeds[0]), left, say) if left else []


def environment(jobs: int) -> dict[str, str]:
    """Of a run: its share of the cores, where there are several at once."""
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // jobs))} if jobs > 1 else {}
    return {**os.environ, "PYTHONUNBUFFERED": "1", **threads}


class Children:
    """Processes that end when this one is stopped. Each has a session of its own, so that Ctrl-C reaches it from here
    alone."""

    def __init__(self) -> None:
        self.stopped = Event()
        self._all: list[subprocess.Popen[str]] = []

    def run(self, words: Sequence[str], log: Path, env: Mapping[str, str], say: Callable[[str], None]) -> str:
        """Run a command whose words are said and added to a log; why it failed, "" if it did not."""
        with (
            disk_errors(log),
            open(log, "a", encoding="utf-8") as kept,
            subprocess.Popen(
                words,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            ) as child,
        ):
            self._all.append(child)
            if self.stopped.is_set():
                child.terminate()
            assert child.stdout is not None
            for line in child.stdout:
                kept.write(line)
                kept.flush()
                say(line.rstrip("\n"))
        return f"exit code {child.returncode}" if child.returncode else ""

    def stop(self) -> None:
        self.stopped.set()
        for child in self._all:
            if child.poll() is None:
                child.terminate()


# ---- what the project ships ------------------------------------------------------------------------------------------


def write(g: Gathering, root: Path) -> list[Path]:
    """Let the evidence take the place of what a checkout ships: data/run, data/seeds and the notes beside them; then
    write docs/results.md and README's blocks. The pages that changed. LabError where something is left to be made."""
    if not (root / "README.md").is_file():
        raise LabError(f"{root} is no checkout of llama2lab, so there is nothing to write; leave --write out")
    if g.runs_left() or g.experiments_left() or not g.has_bench():
        raise LabError(f"not all is there ({plan(g)}); give the same command again first")
    data = root / "data"
    ship(g.run(g.seeds[0]), data / "run")
    for seed in g.seeds:
        ship_figures(g.run(seed), data / "seeds" / str(seed))
    for old in (data / "seeds").iterdir():  # of another preset, perhaps, and not to be pooled with these
        if old.is_dir() and old.name.isdecimal() and int(old.name) not in g.seeds:
            folders.discard(old)
    copy_atomic(g.out / BENCH, data / BENCH)
    note = g.note()
    runs = {str(seed): note["runs"][str(seed)] for seed in g.seeds}
    write_atomic(data / NOTE, json.dumps({**note, "seeds": list(g.seeds), "runs": runs}, indent=1))
    return write_pages(root)
