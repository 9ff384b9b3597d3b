"""Experiments: the report's claims, put to the test on a finished run. One module for each notebook
(lessons/n*/experiments.py); an experiment is a function of a finished run (`lab.finished.Finished`) that gives plain figures, {"mean", "low", "high", "n"}.

`llama2lab experiments RUN` measures all of them, keeps each in RUN/experiments/ and can be stopped and started again.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import disk_error, write_atomic

if TYPE_CHECKING:
    from llama2lab.lab.finished import Experiment

TOPICS = ("n02_transformer", "n03_pretraining", "n04_sft", "n05_preferences", "n06_rewards", "n07_rejection", "n08_ppo",
          "n09_gatt", "n10_rounds", "n11_evaluation")


def all_experiments() -> dict[str, Experiment]:
    """Every experiment by its name, in the order of the notebooks."""
    modules = [importlib.import_module(f"llama2lab.lessons.{topic}.experiments") for topic in TOPICS]
    return {f.__name__: f for module in modules for f in module.EXPERIMENTS}


def measure(run: Path, names: Sequence[str] = (), again: bool = False) -> None:
    """Measure the named experiments, or all, on a finished run; what is in RUN/experiments already is left, unless
    `again`."""
    from llama2lab.lab.finished import Finished

    known = all_experiments()
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
