"""A run is a folder of stages; a stage is built once, from recorded settings and recorded parents.

Interrupt a run at any moment (Ctrl-C, kill -9, power cut) and give the same command again: finished
stages are kept, the one under way goes on from its last saved step. Change a setting, and that stage and
what was built from it are built anew, nothing else.

    RUN/run.json            what the run is: preset or recipe, seed
    RUN/<stage>/            a finished stage: a checkpoint, rows of data, stage.json
    RUN/<stage>.partial/    the stage under way
    RUN/results.json        every figure of every stage

Where several processes run (distributed.py), the first has the folder; `followers.Follower` is the run in the others.

A stage is finished from the moment when its stage.json is written, in the folder of the stage under way; that this then
takes the place of an older one is made up for by the next start, if need be. A name with a dot in it is no stage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llama2lab.engine import distributed, folders
from llama2lab.engine.device import begin_device_memory, begin_peak_memory
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import Number, copy_atomic, digest, disk_errors, named, plain, read_as, write_atomic
from llama2lab.engine.stagefiles import (
    Note,
    fingerprint_of,
    read_marker,
    read_notes,
    read_record,
    stage_folder,
    sums,
    with_notes,
)


@dataclass(frozen=True)
class _Started:
    """started.json: what an unfinished stage was begun with, and what it has cost so far."""

    fingerprint: str = ""
    seconds: Number = 0.0
    peak_memory_mb: Number | None = None
    device_memory_mb: Number | None = None


class Run:
    """The folder of one run, and its one writer: another process that opens it gets a LabError that names this one.

    `identity` says what the run is (preset or recipe, seed, ...). Opening the folder of another run is a
    LabError: two runs never mix. `close` it, or use it in a with block; otherwise the folder is free again when nothing
    holds the object any more, or when the process ends, however it does. Who only reads a run needs none.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any], say: Callable[[str], None] | None = None):
        self.path = Path(path)
        self.identity = identity
        self.say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.order: list[str] = []
        self._fingerprints: dict[str, str] = {}
        self._notes: dict[str, dict[str, Note]] = {}  # stage -> notes that were asked for, by key
        self._pid = os.getpid()
        with disk_errors(self.path), contextlib.ExitStack() as undo:
            self._check()
            self.path.mkdir(parents=True, exist_ok=True)
            self.close = weakref.finalize(self, folders.take(self.path))
            undo.callback(self.close)
            self._check()  # nobody can change it now
            for left in [*self.path.glob("*.tmp"), *self.path.glob("*/*.tmp")]:
                left.unlink(missing_ok=True)  # of a kill
            if not (self.path / "run.json").exists():
                write_atomic(self.path / "run.json", json.dumps(identity, indent=2))
            undo.pop_all()
        distributed.barrier()  # the others look into the folder now

    def _check(self) -> None:
        """LabError if the folder is another run's, or somebody else's."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise LabError(f"{self.path} is a file; give a folder with --out")
        if (self.path / "run.json").exists():
            known = read_marker(self.path)
            different = [k for k in self.identity if known.get(k) != self.identity[k]]
            if different:
                what = ", ".join(f"{k} {known.get(k)!r} (now {self.identity[k]!r})" for k in different)
                raise LabError(f"{self.path} holds another run: {what}; choose another folder with --out")
        elif any(p.name not in (folders.LOCK, folders.WRITER) and p.suffix != ".tmp" for p in self.path.iterdir()):
            raise LabError(f"{self.path} is not empty and not a run of llama2lab; choose another folder with --out")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def picked(self, name: str, pick: Callable[[], str]) -> str:
        """What was picked when the run began, kept in run.json: what a busy machine measures later must not change it,
        or everything would be built anew."""
        self._is_ours()
        known = read_marker(self.path)
        if not isinstance(known.get(name), str):
            known[name] = pick()
            write_atomic(self.path / "run.json", json.dumps(known, indent=2))
        return distributed.from_first(known[name])

    def _is_ours(self) -> None:
        if not self.close.alive or os.getpid() != self._pid:
            wrong = "is closed, or open in the process that this one was forked from"
            raise LabError(f"{self.path} {wrong}; open it again")

    def stage(
        self, name: str, build: Callable[[Path], dict[str, Any]], settings: Any, parents: Sequence[str] = ()
    ) -> Path:
        """Build the stage unless it stands already, and return its folder.

        `build(folder)` writes into the folder and returns the stage's metrics. It may find there what an
        interrupted attempt with the same settings left, and go on from it.
        """
        self._is_ours()
        fingerprint = self._begin(name, settings, parents)
        folder, partial = self.path / name, self.path / f"{name}.partial"
        try:
            with disk_errors(partial):
                folders.clear_up(folder)
                stands = fingerprint_of(folder) == fingerprint or self._adopt(name, fingerprint)
                distributed.from_first((fingerprint, stands))
                if not stands:
                    distributed.barrier()  # the others look for what an interrupted attempt left
                    metrics, seconds = self._build(name, build, settings, parents, partial)
                    self._forget_figures(name)
                    folders.put_in_place(partial, folder)
                    self.say(f"{name} done in {seconds:.0f} s" + _headline(metrics))
                _tidy(folder, partial)
            distributed.barrier()
        except LabError as e:
            if name in str(e):
                raise
            raise LabError(f"{name}: {e}") from e
        return folder

    def _begin(self, name: str, settings: Any, parents: Sequence[str]) -> str:
        """The fingerprint of a stage of these settings, whose turn it is."""
        fingerprint = digest([settings, {p: self._fingerprints[p] for p in parents}, self.identity])
        self._fingerprints[name] = fingerprint
        if name not in self.order:
            self.order.append(name)
        return fingerprint

    def _adopt(self, name: str, fingerprint: str) -> bool:
        """Whether a finished stage only had to be put in its place, as after a kill; one of other settings is put
        there, too, unless a finished one stands there. Leftovers of other settings are removed."""
        folder, partial = self.path / name, self.path / f"{name}.partial"
        if not partial.exists():
            return False
        whole = fingerprint_of(partial, forgiving=True)
        if whole == fingerprint or (whole and not fingerprint_of(folder, forgiving=True)):
            self._forget_figures(name)
            folders.put_in_place(partial, folder)
            if whole == fingerprint:
                self.say(f"{name} was finished before")
            return whole == fingerprint
        if whole or _read_started(partial).fingerprint != fingerprint:
            folders.discard(partial)
        return False

    def _build(
        self, name: str, build: Callable[[Path], dict[str, Any]], settings: Any, parents: Sequence[str], partial: Path
    ) -> tuple[dict[str, Any], float]:
        """Build in `partial`, up to the stage.json that makes it a finished stage; metrics and seconds."""
        partial.mkdir(exist_ok=True)
        before = _read_started(partial)
        begin, peak_memory, on_device = time.perf_counter(), begin_peak_memory(), begin_device_memory()

        def spent() -> tuple[float, float | None, float | None]:
            memory = [
                round(max(known)) if (known := [mb for mb in two if mb is not None]) else None
                for two in ((before.peak_memory_mb, peak_memory()), (before.device_memory_mb, on_device()))
            ]
            return before.seconds + time.perf_counter() - begin, *memory  # type: ignore[return-value]

        def write_started() -> None:
            started = _Started(self._fingerprints[name], *spent())
            write_atomic(partial / "started.json", json.dumps(dataclasses.asdict(started)))

        write_started()
        self.say(f"{name} ...")
        try:
            metrics = plain(build(partial), f"{name}: metrics")
        except BaseException:
            with contextlib.suppress(LabError, OSError):  # a full disk must not hide the first error
                write_started()
            raise
        for left in partial.rglob("*.tmp"):
            left.unlink()
        seconds, memory, device_memory = spent()
        record = {
            "name": name,
            "fingerprint": self._fingerprints[name],
            "settings": settings,
            "parents": list(parents),
            "number": self.order.index(name),
            "seconds": round(seconds, 1),
            "peak_memory_mb": memory,
            **({"device_memory_mb": device_memory} if device_memory is not None else {}),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "sums": sums(partial),
            "metrics": metrics,
        }
        write_atomic(partial / "stage.json", json.dumps(record, indent=1, default=named, allow_nan=False))
        return metrics, seconds

    def note(
        self,
        name: str,
        measure: Callable[[], dict[str, Any]],
        settings: Any,
        files: Sequence[str] = (),
        against: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Metrics measured on a finished stage after it was built, kept in RUN/<stage>/notes.json by what they were
        measured with: `settings`, the stage as it stands, and the stages `against` which it is compared.

        `files` names rows that `measure` writes into `measured(name, settings, against)`. They are kept there, and
        RUN/<stage>/ holds a copy of those that the metrics of results.json come from.
        """
        self._is_ours()
        folder = self.path / name
        notes = read_notes(folder)
        key = self._note_key(name, settings, against)
        rows = self.measured(name, settings, against)
        if key in notes and len(notes) == 1:  # a run of before kept one copy: with one note, it can be no other's
            for file in files:
                if not (rows / file).exists() and (folder / file).exists():
                    copy_atomic(folder / file, rows / file)
        known = key in notes and all((rows / file).exists() for file in files)
        distributed.from_first(known)
        later = [note.metrics for k, note in list(notes.items())[list(notes).index(key) + 1 :]] if known else []
        if not known:
            begin = time.perf_counter()
            metrics = plain(measure(), f"{name}: measured")
            notes.pop(key, None)
            notes[key] = Note(metrics, round(time.perf_counter() - begin, 1))
            self._write_notes(folder, notes)
            self.say(f"{name} measured in {notes[key].seconds:.0f} s" + _headline(notes[key].metrics))
        elif any(notes[key].metrics.keys() & metrics.keys() for metrics in later):  # the last one counts
            notes[key] = notes.pop(key)
            self._write_notes(folder, notes)
        for file in files:
            copy_atomic(rows / file, folder / file)
        self._notes.setdefault(name, {})[key] = notes[key]
        return distributed.from_first(notes[key].metrics)

    def _write_notes(self, folder: Path, notes: dict[str, Note]) -> None:
        self._forget_figures()
        text = json.dumps({k: dataclasses.asdict(note) for k, note in notes.items()}, indent=1, allow_nan=False)
        write_atomic(folder / "notes.json", text)

    def _forget_figures(self, stage: str = "") -> None:
        """What results.json says no longer holds: until all is gathered again, the stages speak for themselves. Nor do
        experiments, where `stage` is about to take the place of one with other settings: they are put aside."""
        experiments = self.path / "experiments"
        with disk_errors(self.path):
            (self.path / "results.json").unlink(missing_ok=True)
            folders.clear_up(experiments)
            before = fingerprint_of(self.path / stage, forgiving=True) if stage else ""
            if before not in ("", self._fingerprints.get(stage)) and experiments.is_dir():
                aside = experiments.with_name("experiments.before")
                if aside.exists():
                    folders.discard(aside)
                os.replace(experiments, aside)
                self.say(f"experiments/ is experiments.before/ now: it was measured before {stage} was built anew")

    def measured(self, name: str, settings: Any, against: Sequence[str] = ()) -> Path:
        """The folder of the rows that were measured with these settings on a finished stage."""
        return self.path / name / "measured" / self._note_key(name, settings, against)

    def _note_key(self, name: str, settings: Any, against: Sequence[str]) -> str:
        return digest([settings, self._fingerprints[name], *(self._fingerprints[a] for a in against)])

    def folder(self, name: str) -> Path:
        """The folder of a finished stage; LabError that lists the ones there are."""
        return stage_folder(self.path, name)

    def results(self, machine: dict[str, Any], split: str = "test") -> dict[str, Any]:
        """Gather RUN/results.json: `preset`, `seed`, `machine`, `split` (of the prompts that it was measured on), and
        `stages` in order, each with `seconds` (building and measuring), `peak_memory_mb` (None where the system does
        not say), on a GPU `device_memory_mb`, and `metrics`."""
        self._is_ours()
        stages = {}
        for name in self.order:
            asked = self._notes.get(name, {}).values()  # not what other settings measured before
            stages[name] = with_notes(read_record(self.path / name), asked)
        whole = {**self.identity, "machine": machine, "split": split, "stages": stages}
        text = json.dumps(whole, indent=1, allow_nan=False)
        write_atomic(self.path / "results.json", text)
        return distributed.from_first(json.loads(text))


def _read_started(partial: Path) -> _Started:
    """started.json; of a missing or damaged one that nothing is known, so that the stage starts over."""
    path = partial / "started.json"
    with contextlib.suppress(LabError):
        if path.exists():
            return read_as(_Started, path, "")
    return _Started()


def _tidy(folder: Path, partial: Path) -> None:
    """Remove what a finished stage was only built with, and the one that it took the place of. A finished one that
    waits for its place, for its settings are not those of now, still has its started.json."""
    (folder / "started.json").unlink(missing_ok=True)
    if (folder / "resume").exists():
        shutil.rmtree(folder / "resume")
    if (partial / "stage.json").exists() and not (partial / "started.json").exists():
        folders.discard(partial)


def _headline(metrics: dict[str, Any]) -> str:
    """The first few measured figures, for the log."""
    figures = {name: value.get("mean") if isinstance(value, dict) else value for name, value in metrics.items()}
    words = [f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float)]
    return ": " + ", ".join(words[:8]) if words else ""
