"""Measure experiments on a finished run. An experiment is a function of the run that puts one of the report's claims to
the test and gives plain figures, {"mean", "low", "high", "n"}; `lessons.catalogue` lists them.

`llama2lab experiments RUN` measures all of them, keeps each in RUN/experiments/ and can be stopped and started again.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import disk_error, write_atomic
from llama2lab.lab.finished import Experiment, Finished


def measure(run: Path, known: Mapping[str, Experiment], names: Sequence[str] = (), again: bool = False) -> None:
    """Measure the named experiments of the `known` ones, or all, on a finished run; what is in RUN/experiments already
    is left, unless `again`."""
    for name in names:
        if name not in known:
            raise LabError(f"unknown experiment {name!r}; choose one of {', '.join(known)}")
    lab = Finished(run)
    folder = run / "experiments"
    try:
        folder.mkdir(exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as e:  # said now, not after the first has been measured
        raise disk_error(e, folder) from e
    for name in names or known:
        path = folder / f"{name}.json"
        if path.is_file() and not again:
            continue
        begin = time.perf_counter()
        print(f"{name} ...", flush=True)
        result = known[name](lab)
        write_atomic(path, json.dumps(result, indent=1))
        print(f"{name} measured in {time.perf_counter() - begin:.0f} s", flush=True)
