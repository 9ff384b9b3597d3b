"""What the folder of a run holds, for those who read it: stages and their records, in order, and whole.

RUN/run.json               what the run is
RUN/<stage>/stage.json     the record of a finished stage, with the sums of its files
RUN/<stage>/notes.json     what was measured on it afterwards
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama2lab.engine import folders
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import Number, read_as


@dataclass(frozen=True)
class Record:
    """stage.json, as far as it is read again; files of earlier versions lack some of it."""

    fingerprint: str = ""
    parents: list[str] = field(default_factory=list)
    number: int | None = None  # its place in the run
    seconds: Number | None = None
    peak_memory_mb: Number | None = None  # the most that the process held while the stage was built; None: unknown
    device_memory_mb: Number | None = None  # the same of tensors on its GPUs; None: it used none
    metrics: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file that the stage was built with
    finished: str = ""  # ISO, UTC


@dataclass(frozen=True)
class Note:
    """An entry of notes.json."""

    metrics: dict[str, Any]
    seconds: Number


@dataclass(frozen=True)
class _Listed:
    """results.json, as far as it names the stages in their order."""

    stages: dict[str, Any]


def read_record(folder: Path) -> Record:
    """stage.json of a finished stage; LabError if it is damaged."""
    return read_as(Record, folder / "stage.json", f"remove {folder} and run again: this stage is built anew")


def read_notes(folder: Path) -> dict[str, Note]:
    """What was measured on a finished stage; LabError if notes.json is damaged."""
    path = folder / "notes.json"
    return read_as(dict[str, Note], path, "remove it and run again: it is measured anew") if path.exists() else {}


def read_marker(run: Path) -> dict[str, Any]:
    """RUN/run.json; LabError if the folder is no run, or it is damaged."""
    path = run / "run.json"
    try:
        there = path.exists()
    except OSError as e:  # no name that a file can have
        raise LabError(f"{run}: {e.strerror or e}; give the folder of a run") from e
    if not there:
        raise LabError(f"{run} is not a run of llama2lab (no run.json); make one with: llama2lab run --out {run}")
    cure = 'let it say what the run is, such as {"preset": "mini", "seed": 0}, or choose another folder'
    return read_as(dict[str, Any], path, cure)


def check_sums(folder: Path) -> None:
    """LabError if a file of a finished stage is not as it was when the stage was built. Each is read once a process."""
    for name, expected in (read_record(folder).sums if (folder / "stage.json").exists() else {}).items():
        path = folder / name
        try:
            good = not path.exists() or folders.has_sum(path, expected)  # what is left out on purpose is not damaged
        except OSError as e:
            raise LabError(f"{path}: cannot be read ({e.strerror or e}); see to its disk and permissions") from e
        if not good:
            wrong = "damaged or changed, it is not as it was when the stage was built"
            raise LabError(f"{path}: {wrong}; remove {folder} and run again: this stage is built anew")


def check_file(path: Path) -> None:
    """`check_sums` of the stage that a file belongs to, if it belongs to one."""
    for folder in (path.parent, path.parent.parent):  # reference/ lies within
        if (folder / "stage.json").exists():
            check_sums(folder)


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a stage's folder, hidden ones and stage.json aside."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    not_its_own = ("stage.json", "started.json")
    counted = (n for n in files if n not in not_its_own and not n.startswith((".", "resume/")))
    return {name: folders.sum_of(files[name]) for name in counted}


def with_notes(record: Record, notes: Iterable[Note]) -> dict[str, Any]:
    """A stage's entry in results.json, strictly JSON."""
    notes = list(notes)
    metrics = {k: v for part in (record.metrics, *(note.metrics for note in notes)) for k, v in part.items()}
    seconds = None if record.seconds is None else round(record.seconds + sum(note.seconds for note in notes), 1)
    on_gpu = {} if record.device_memory_mb is None else {"device_memory_mb": record.device_memory_mb}
    return {"seconds": seconds, "peak_memory_mb": record.peak_memory_mb, **on_gpu, "metrics": metrics}


def fingerprint_of(folder: Path, forgiving: bool = False) -> str:
    """Of a finished stage, "" where there is none; a damaged stage.json is a LabError, or `forgiving` is no stage."""
    if not (folder / "stage.json").exists():
        return ""
    with contextlib.suppress(*((LabError,) if forgiving else ())):
        return read_record(folder).fingerprint
    return ""


def finished_at(run: Path) -> str:
    """When the last of a run's stages was finished (ISO, UTC); "" of runs made before that was kept."""
    return max((read_record(run / name).finished for name in finished_stages(run)), default="")


def stage_folder(run: str | Path, name: str) -> Path:
    """RUN/<stage>; LabError that names the stages there are, or the file that is not as the stage left it."""
    run = Path(run)
    read_marker(run)
    if name not in finished_stages(run):
        there = ", ".join(sorted(finished_stages(run))) or "none yet"
        raise LabError(f"{run} has no finished stage {name!r}; there are: {there}")
    check_sums(run / name)
    return run / name


def finished_stages(run: Path) -> Iterator[str]:
    for path in run.glob("*/stage.json"):
        if "." not in path.parent.name:
            yield path.parent.name


def stages_in_order(run: Path) -> list[str]:
    """The finished stages, each after those it was built from; among the others as results.json lists them, or as the
    run built them. File times, which a copy changes, say nothing."""
    records = {name: read_record(run / name) for name in finished_stages(run)}
    listed: dict[str, int] = {}
    with contextlib.suppress(LabError):  # an unfinished run has none; a damaged one is for its readers to name
        listed = {name: i for i, name in enumerate(read_as(_Listed, run / "results.json", "").stages)}
    many = len(listed) + len(records)
    number = {name: many if r.number is None else r.number for name, r in records.items()}
    left = sorted(records, key=lambda name: (listed.get(name, many), number[name], name))
    order: list[str] = []
    while left:
        ready = (name for name in left if not any(parent in left for parent in records[name].parents))
        order.append(next(ready, left[0]))  # parents that go round in a circle are nobody's
        left.remove(order[-1])
    return order
