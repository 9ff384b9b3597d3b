"""How long notebooks take: measured alone on a quiet machine, stored, and what is measured later held against it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat

from llama2lab.engine.device import cores, describe_machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import write_atomic
from llama2lab.evidence.readme import write_pages
from llama2lab.lab import run_all
from llama2lab.lab.finished import LIVE, RUN, SHIPPED, finished_run, live_folder
from llama2lab.lab.run_all import CORES, FACTOR, FILE, Stored, Times, read_times

BUSY = 0.25  # of a core: more work than that runs beside, by the load of the last minute
AT_ONCE = 2  # notebooks, where they are executed with their solutions: .ci/run


@dataclass
class Result:
    """A notebook that was run: seconds, the slowest cell, and what went wrong."""

    name: str
    seconds: float
    slowest: tuple[int, float] = (0, 0.0)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        (cell, longest), verdict = self.slowest, "   WRONG" if self.wrong else ""
        head = f"{self.name:<28}{self.seconds:7.1f} s   slowest: cell {cell}, {longest:.1f} s{verdict}"
        return "\n".join([head, *(f"    {what}" for what in self.wrong)])


Execute = Callable[..., Result]  # `notebooks.execute`


@dataclass(frozen=True)
class Held:
    """Seconds that others are held against, by notebook; or why none are."""

    stored: Mapping[str, float] = field(default_factory=dict)
    why_not: str = ""

    def __str__(self) -> str:
        if self.why_not:
            return f"seconds are not held: {self.why_not}"
        return f"seconds are held within a factor of {FACTOR:g} of data/{FILE}"

    def wrong(self, result: Result) -> list[str]:
        """What is wrong with the seconds of a notebook that ran to its end, a sentence each."""
        if self.why_not or result.wrong:
            return []
        if result.name not in self.stored:
            return [f"its seconds are not stored; measure them: {run_all.COMMAND} {result.name[:2]}"]
        stored = self.stored[result.name]
        if not run_all.apart(result.seconds, stored):
            return []
        return [
            f"{result.seconds:.0f} s, and {stored:.0f} s are stored: not within a factor of {FACTOR:g}; make it as "
            f"quick as it was, or measure anew on a quiet machine: {run_all.COMMAND} {result.name[:2]}"
        ]


def held(kind: str, machine: Mapping[str, Any] | None = None, stored: Stored | None = None) -> Held:
    """The stored seconds of a `kind` ("first", "solved") that this machine may be held against."""
    stored = read_times() if stored is None else stored
    machine = machine or describe_machine()
    if why := run_all.unlike(stored, machine):
        return Held(why_not=why)
    return Held(getattr(stored[machine["precision"]], kind))


def held_in_execution(paths: Sequence[Path], notebooks: Path, solved: bool, jobs: int) -> Held:
    """As `held`, for notebooks that are executed as .ci/run does it: nothing else took stored seconds."""
    if not solved or jobs != AT_ONCE:
        return Held(why_not=f"that is done with --solutions --jobs {AT_ONCE}, and by the command time")
    if any(path.resolve().parent != notebooks.resolve() for path in paths):
        return Held(why_not=f"not all of them lie in {notebooks}")
    if any(live_folder().glob("*")):
        return Held(why_not=f"something is measured already, in {live_folder()}")
    if not SHIPPED.is_dir() or finished_run().folder != SHIPPED:
        return Held(why_not=f"they do not open the shipped run ({SHIPPED})")
    return held("solved")


# ---- measured ----------------------------------------------------------------------------------------------------


def beside() -> float:
    """Cores that were at work in the last minute, as the system says; 0 where it does not."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def too_busy() -> str:
    """Why seconds measured now would tell of other work too; empty if they would not."""
    load = beside()
    return f"other work runs beside (load {load:.2f}, and {BUSY * CORES:g} is quiet)" if load > BUSY * CORES else ""


def check_storable(paths: Sequence[Path], notebooks: Path, names: Sequence[str], stored: Stored) -> None:
    """LabError where the seconds of these notebooks cannot be stored: they tell of CORES cores, of the project's own
    notebooks, and all of one kind of machine; `names` are all of them."""
    if cores() != CORES:
        some = ",".join(map(str, range(CORES)))
        raise LabError(
            f"the heads tell of {CORES} cores, and here are {cores()}; on Linux, begin with: taskset -c {some}"
        )
    if (threads := describe_machine()["threads"]) != CORES:
        raise LabError(
            f"torch computes in {threads} threads here, and on {CORES} cores in {CORES}: unset OMP_NUM_THREADS"
        )
    if strange := [path for path in paths if path.resolve().parent != notebooks.resolve()]:
        raise LabError(f"{strange[0]} is none of {notebooks}; leave --write out, or name one of them")
    if {path.stem for path in paths} < set(names) and (why := run_all.unlike(stored, describe_machine())):
        raise LabError(
            f"these are some of the notebooks, and seconds of all are of one kind of machine, but {why}; give no names"
        )


def measure(
    paths: Sequence[Path], execute: Execute, out: Path, solved: bool, say: Callable[[object], object]
) -> tuple[Times, list[Result]]:
    """The seconds of these notebooks with the shipped run, here and now; `say` is told of each as it ends. With
    `solved`, also as .ci/run executes them. The results are those of the first Run All, with what went wrong in any."""
    machine, results = describe_machine(), list[Result]()
    first, again, together = dict[str, float](), dict[str, float](), dict[str, float]()
    with tempfile.TemporaryDirectory() as scratch:

        def there(store: str) -> dict[str, str]:
            return {RUN: str(SHIPPED), LIVE: str(Path(scratch, store))}

        for path in paths:
            one, two = (execute(path, out, more=there(path.stem)) for _ in range(2))
            first[path.stem], again[path.stem] = one.seconds, two.seconds
            one.wrong += two.wrong
            results.append(one)
            say(one)
            say(f"{'':<28}{two.seconds:7.1f} s   the next time")
        if solved:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                runs = pool.map(
                    lambda path: execute(path, Path(scratch, "out"), True, jobs=AT_ONCE, more=there("solved")), paths
                )
                for one, result in zip(results, runs, strict=True):
                    together[result.name] = result.seconds
                    one.wrong += result.wrong
                    say(f"solved: {result}")
    return Times(machine, f"{datetime.now(UTC):%Y-%m-%d}", first, again, together), results


def stored_with(times: Times, stored: Stored) -> dict[str, Times]:
    """What is stored, and these times in it."""
    kind = times.machine["precision"]
    if kind not in stored:
        return {**stored, kind: times}
    parts = {part: getattr(stored[kind], part) | getattr(times, part) for part in ("first", "again", "solved")}
    return {**stored, kind: replace(times, **parts)}


def write(stored: Stored, root: Path) -> list[Path]:
    """Store the times in a checkout and write them anew where they are told: the heads of its notebooks, the README and
    docs/results.md. The files that are others now, but for the store."""
    write_atomic(root / "data" / FILE, json.dumps(run_all.as_json(stored), indent=1, ensure_ascii=False) + "\n")
    return [*write_heads(root / "notebooks", stored), *write_pages(root)]


def write_heads(folder: Path, stored: Stored) -> list[Path]:
    """The time in the first cell of every notebook; those that are others now."""
    changed = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        head = notebook.cells[0]
        text = run_all.with_seconds(head.source, run_all.in_words(path.stem, stored), str(path))
        if text != head.source:
            head.source = text
            write_atomic(path, nbformat.writes(notebook) + "\n")
            changed.append(path)
    return changed
