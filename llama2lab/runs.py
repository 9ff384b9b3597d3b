"""A run is a folder of stages; a stage is built once, from recorded settings and recorded parents.

Interrupt a run at any moment (Ctrl-C, kill -9, power cut) and give the same command again: finished
stages are kept, the one under way goes on from its last saved step. Change a setting, and that stage and
what was built from it are built anew, nothing else.

    RUN/run.json            what the run is: preset or recipe, seed
    RUN/<stage>/            a finished stage: a checkpoint, rows of data, stage.json
    RUN/<stage>.partial/    the stage under way
    RUN/results.json        every figure of every stage
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llama2lab.device import peak_memory_mb
from llama2lab.errors import LabError


def write_atomic(path: Path, text: str) -> None:
    """Write a file whole or not at all, even if the power fails half way."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise disk_error(e, path) from e


def disk_error(e: OSError, path: Path) -> LabError:
    return LabError(f"cannot write {path}: {e.strerror or e}; free some space or mend the folder's permissions, "
                    "then give the same command again: nothing already made is lost")


def read_json(path: Path) -> Any:
    """The contents of a JSON file; LabError with file and line if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, OSError) as e:
        raise LabError(f"{path}: cannot be read ({e}); is this the right file?") from e
    except json.JSONDecodeError as e:
        raise LabError(f"{path}:{e.lineno}: broken JSON ({e.msg}); remove the file and run the command again") from e


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Rows of data as JSON lines."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path, cure: str = "remove the stage's folder and run again") -> list[dict]:
    """Rows written by `write_rows`; LabError with file, line and `cure` at the first damaged one."""
    rows = []
    try:
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):  # noqa: B007 - the handler below names it
                rows.append(json.loads(line))
    except json.JSONDecodeError as e:
        raise LabError(f"{path}:{number}: broken row ({e.msg}); {cure}") from e
    except (OSError, UnicodeDecodeError) as e:
        raise LabError(f"{path}: cannot be read ({e}); {cure}") from e
    return rows


def _copy(source: Path, target: Path) -> None:
    """Copy a file whole or not at all; nothing happens where the copy is there already."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(target.name + ".tmp")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as e:
        raise disk_error(e, target) from e


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Run:
    """The folder of one run.

    `identity` says what the run is (preset or recipe, seed, ...). Opening the folder of another run is a
    LabError: two runs never mix.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any], say: Callable[[str], None] | None = None):
        self.path = Path(path)
        self.identity = identity
        self.say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.order: list[str] = []
        self._fingerprints: dict[str, str] = {}
        self._notes: dict[str, dict[str, dict[str, Any]]] = {}  # stage -> notes that were asked for, by key
        if self.path.is_file():
            raise LabError(f"{self.path} is a file; give a folder with --out")
        marker = self.path / "run.json"
        if marker.exists():
            known = read_json(marker)
            different = [k for k in identity if known.get(k) != identity[k]]
            if different:
                what = ", ".join(f"{k} {known.get(k)!r} (now {identity[k]!r})" for k in different)
                raise LabError(f"{self.path} holds another run: {what}; choose another folder with --out")
        elif self.path.exists() and any(self.path.iterdir()):
            raise LabError(f"{self.path} is not empty and not a run of llama2lab; choose another folder with --out")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise disk_error(e, self.path) from e
        write_atomic(marker, json.dumps(identity, indent=2))

    def stage(self, name: str, build: Callable[[Path], dict[str, Any]], settings: Any,
              parents: Sequence[str] = ()) -> Path:
        """Build the stage unless it stands already, and return its folder.

        `build(folder)` writes into the folder and returns the stage's metrics. It may find there what an
        interrupted attempt with the same settings left, and go on from it.
        """
        fingerprint = digest([settings, {p: self._fingerprints[p] for p in parents}, self.identity])
        self._fingerprints[name] = fingerprint
        if name not in self.order:
            self.order.append(name)
        folder, partial = self.path / name, self.path / f"{name}.partial"
        if (folder / "stage.json").exists() and read_json(folder / "stage.json")["fingerprint"] == fingerprint:
            return folder
        if partial.exists() and self._started(partial).get("fingerprint") != fingerprint:
            shutil.rmtree(partial)
        try:
            partial.mkdir(exist_ok=True)
            started = {"fingerprint": fingerprint, "seconds": self._started(partial).get("seconds", 0.0)}
            write_atomic(partial / "started.json", json.dumps(started))
            begin = time.perf_counter()
            self.say(f"{name} ...")
            try:
                metrics = build(partial)
            finally:
                seconds = started["seconds"] + time.perf_counter() - begin
                with contextlib.suppress(LabError):  # a full disk must not hide the first error
                    write_atomic(partial / "started.json", json.dumps({**started, "seconds": seconds}))
            record = {"name": name, "fingerprint": fingerprint, "settings": settings, "parents": list(parents),
                      "seconds": round(seconds, 1), "peak_memory_mb": round(peak_memory_mb()), "metrics": metrics}
            write_atomic(partial / "stage.json", json.dumps(record, indent=1, default=str))
            (partial / "started.json").unlink()
            shutil.rmtree(partial / "resume", ignore_errors=True)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(partial, folder)
        except OSError as e:
            raise disk_error(e, partial) from e
        self.say(f"{name} done in {seconds:.0f} s" + _headline(metrics))
        return folder

    def note(self, name: str, measure: Callable[[], dict[str, Any]], settings: Any, files: Sequence[str] = (),
             against: Sequence[str] = ()) -> dict[str, Any]:
        """Metrics measured on a finished stage after it was built, kept in RUN/<stage>/notes.json by what they were
        measured with: `settings`, the stage as it stands, and the stages `against` which it is compared.

        `files` names rows that `measure` writes into `measured(name, settings, against)`. They are kept there, and
        RUN/<stage>/ holds a copy of those that the metrics of results.json come from.
        """
        path = self.path / name / "notes.json"
        notes = read_json(path) if path.exists() else {}
        key = self._note_key(name, settings, against)
        rows = self.measured(name, settings, against)
        if key in notes and len(notes) == 1:  # a run of before kept one copy: with one note, it can be no other's
            for file in files:
                if not (rows / file).exists() and (self.path / name / file).exists():
                    _copy(self.path / name / file, rows / file)
        if key not in notes or not all((rows / file).exists() for file in files):
            begin = time.perf_counter()
            notes[key] = {"metrics": measure(), "seconds": round(time.perf_counter() - begin, 1)}
            write_atomic(path, json.dumps(notes, indent=1))
            self.say(f"{name} measured in {notes[key]['seconds']:.0f} s" + _headline(notes[key]["metrics"]))
        for file in files:
            _copy(rows / file, self.path / name / file)
        self._notes.setdefault(name, {})[key] = notes[key]
        return notes[key]["metrics"]

    def measured(self, name: str, settings: Any, against: Sequence[str] = ()) -> Path:
        """The folder of the rows that were measured with these settings on a finished stage."""
        return self.path / name / "measured" / self._note_key(name, settings, against)

    def _note_key(self, name: str, settings: Any, against: Sequence[str]) -> str:
        return digest([settings, self._fingerprints[name], *(self._fingerprints[a] for a in against)])

    def folder(self, name: str) -> Path:
        """The folder of a finished stage; LabError that lists the ones there are."""
        return stage_folder(self.path, name)

    def _started(self, partial: Path) -> dict[str, Any]:
        path = partial / "started.json"
        return read_json(path) if path.exists() else {}

    def results(self, machine: dict[str, Any]) -> dict[str, Any]:
        """Gather RUN/results.json: `preset`, `seed`, `machine`, and `stages` in order, each with `seconds`
        (building and measuring), `peak_memory_mb` and `metrics`."""
        stages = {}
        for name in self.order:
            record = read_json(self.path / name / "stage.json")
            metrics, seconds = dict(record["metrics"]), record["seconds"]
            for note in self._notes.get(name, {}).values():  # not what other settings measured before
                metrics.update(note["metrics"])
                seconds += note["seconds"]
            stages[name] = {"seconds": round(seconds, 1), "peak_memory_mb": record["peak_memory_mb"],
                            "metrics": metrics}
        text = json.dumps({**self.identity, "machine": machine, "stages": stages}, indent=1)
        write_atomic(self.path / "results.json", text)
        return json.loads(text)


def stage_folder(run: str | Path, name: str) -> Path:
    """RUN/<stage>; LabError that names the stages there are."""
    run = Path(run)
    if not (run / "run.json").exists():
        raise LabError(f"{run} is not a run of llama2lab (no run.json); make one with: llama2lab run --out {run}")
    if not (run / name / "stage.json").exists() or "/" in name or name in ("", ".", ".."):
        there = ", ".join(sorted(finished_stages(run))) or "none yet"
        raise LabError(f"{run} has no finished stage {name!r}; there are: {there}")
    return run / name


def finished_stages(run: Path) -> Iterator[str]:
    for path in run.glob("*/stage.json"):
        if not path.parent.name.endswith(".partial"):
            yield path.parent.name


def _headline(metrics: dict[str, Any]) -> str:
    """The first few measured figures, for the log."""
    words = []
    for name, value in metrics.items():
        if isinstance(value, dict) and "mean" in value:
            words.append(f"{name} {value['mean']:.3f}")
        elif isinstance(value, float):
            words.append(f"{name} {value:.3f}")
    return ": " + ", ".join(words[:8]) if words else ""
