"""A run in the processes beside the first (distributed.py): they build with it, and write nothing into its folder.

Every call here meets the same call of `runs.Run` in the first process, which says what is to be built. What a stage
writes while it is built goes into a scratch folder and is thrown away; finished stages are read where the first process
has put them. So all must see the same folder: they run on one machine, or it is on a disk that all machines share.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llama2lab.engine import distributed
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import copy_atomic, disk_errors
from llama2lab.engine.runs import Run

# Of an interrupted attempt a follower wants what a stage may ask for; the loop's state comes from the first process.
NOT_ASKED_FOR = shutil.ignore_patterns("resume", "*.safetensors", "*.tmp", "started.json")


def open_run(path: str | Path, identity: dict[str, Any]) -> Run:
    """The run, for the first process or for one beside it."""
    return Run(path, identity) if distributed.is_first() else Follower(path, identity)


class Follower(Run):
    """The run as seen from a process beside the first."""

    def __init__(self, path: str | Path, identity: dict[str, Any]):
        self.path, self.identity = Path(path), identity
        self.say = lambda line: None
        self.order: list[str] = []
        self._fingerprints: dict[str, str] = {}
        scratch = tempfile.TemporaryDirectory(prefix="llama2lab-")
        self.scratch, self.close = Path(scratch.name), weakref.finalize(self, scratch.cleanup)
        distributed.barrier()
        if not (self.path / "run.json").exists():
            raise LabError(
                f"process {distributed.rank()} on {socket.gethostname()} does not see {self.path.absolute()}; give a "
                "folder on a disk that all machines share with --out"
            )

    def picked(self, name: str, pick: Callable[[], str]) -> str:
        return distributed.from_first("")

    def stage(
        self, name: str, build: Callable[[Path], dict[str, Any]], settings: Any, parents: Sequence[str] = ()
    ) -> Path:
        fingerprint = self._begin(name, settings, parents)
        theirs, stands = distributed.from_first(("", False))
        if theirs != fingerprint:
            raise LabError(
                f"{name}: process {distributed.rank()} on {socket.gethostname()} has other settings or data than the "
                "first one; give all processes the same files and the same version of llama2lab"
            )
        if not stands:
            partial, mine = self.path / f"{name}.partial", self.scratch / f"{name}.partial"
            with disk_errors(mine):
                if partial.exists():
                    shutil.copytree(partial, mine, ignore=NOT_ASKED_FOR)
                mine.mkdir(exist_ok=True)
                distributed.barrier()
                build(mine)
                shutil.rmtree(mine)
        distributed.barrier()
        return self.path / name

    def note(
        self,
        name: str,
        measure: Callable[[], dict[str, Any]],
        settings: Any,
        files: Sequence[str] = (),
        against: Sequence[str] = (),
    ) -> dict[str, Any]:
        if not distributed.from_first(False):
            measure()
        metrics = distributed.from_first(dict[str, Any]())
        theirs, mine = (run.measured(self, name, settings, against) for run in (Run, Follower))
        for file in files:  # what is read again is what was kept
            copy_atomic(theirs / file, mine / file)
        return metrics

    def measured(self, name: str, settings: Any, against: Sequence[str] = ()) -> Path:
        return self.scratch / super().measured(name, settings, against).relative_to(self.path)

    def results(self, machine: dict[str, Any], split: str = "test") -> dict[str, Any]:
        return distributed.from_first(dict[str, Any]())
