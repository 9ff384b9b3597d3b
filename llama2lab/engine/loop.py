"""A training loop that can be killed: a batch is a function of (seed, step) alone, so a run goes on from its last saved
step with the same numbers as if nothing had happened."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Strict
from torch import Tensor, nn

from llama2lab.engine import distributed, sharded
from llama2lab.engine.bar import bar
from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.files import disk_error
from llama2lab.engine.finite import check_numbers, check_tensors
from llama2lab.engine.folders import one_writer, sum_of
from llama2lab.engine.optim import Optim, cosine_lr, make_optimizer
from llama2lab.engine.parallel import Figure, is_large, numbers, shared_cores, sharing_products, split
from llama2lab.engine.state import load_state, module_tensors, restore_module, save_state, start_over
from llama2lab.engine.validation import validated

SAVE_EVERY = 10.0  # seconds of work that a kill -9 can cost; more where saving takes long
SAVE_SHARE = 0.05  # of the time may go into saving


@contextlib.contextmanager
def patient_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the end of the step, so that the work can be saved; a second Ctrl-C does not wait."""
    pressed = [False]

    def note(number: int, frame: Any) -> None:
        if pressed[0]:
            raise KeyboardInterrupt
        pressed[0] = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed[0]
    finally:
        signal.signal(signal.SIGINT, before)


Watch = Callable[[str, Sequence[dict[str, float]], int], bool]
_watching = threading.local()


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Within, every training loop of this thread calls `watch(what, log, steps)`: at its start (the log then holds
    what was done before), and after each step, whose row is the log's last. Where it returns True the loop ends as at
    Ctrl-C: its state is saved, KeyboardInterrupt is raised. A live panel stands on this (lab/job.py)."""
    before = getattr(_watching, "watch", None)
    _watching.watch = watch
    try:
        yield
    finally:
        _watching.watch = before


def resumable_loop(
    steps: int,
    step_fn: Callable[[int], dict[str, float]],
    tensors: Callable[[], dict[str, Tensor]],
    restore: Callable[[dict[str, Tensor]], None],
    folder: Path | None,
    what: str,
    unit: str = "step",
) -> list[dict[str, float]]:
    """Run `step_fn(0..steps-1)` and return its metrics by step.

    With a folder, the state is saved in FOLDER/resume every ten seconds (more rarely where that would take more than
    SAVE_SHARE of the time), at Ctrl-C, and before the loop returns; called again with the same folder it goes on from
    there. One process at a time trains in a folder; where several run (distributed.py), the first of them keeps the
    state, and all go on from it.

    A step's metrics are numbers; one that cannot be told at that step is left out or None.

    Raises:
        LabError: a metric, or at a save or the end a tensor, is not finite: it is named with the step, and nothing of
            it is kept; or the saved state is damaged.
    """
    path = folder / "resume" / "state.safetensors" if folder and distributed.is_first() else None
    with contextlib.ExitStack() as stack:
        if path:
            try:
                stack.enter_context(one_writer(path.parent))
            except OSError as e:
                raise disk_error(e, path.parent.parent) from e
        log = _restored(path, tensors, restore, what, steps) if folder else []
        watch: Watch | None = getattr(_watching, "watch", None)
        if watch and watch(what, log, steps) and len(log) < steps:
            raise KeyboardInterrupt
        interrupted = stack.enter_context(patient_interrupt())
        progress = stack.enter_context(bar(steps, what, unit, initial=len(log)))
        saved_at, pause = time.monotonic(), SAVE_EVERY
        while len(log) < steps:
            metrics = {k: v for k, v in step_fn(len(log)).items() if v is not None}
            at = f"{what}, {unit} {len(log) + 1} of {steps}"
            check_numbers(metrics, at)
            log.append({k: round(v, 6) for k, v in metrics.items()})
            progress.update(1)
            progress.set_postfix({k: f"{v:.3g}" for k, v in list(metrics.items())[:2]}, refresh=False)
            stop = bool(watch and watch(what, log, steps)) or interrupted()
            due, stop = distributed.agreed(bool(path) and time.monotonic() - saved_at > pause, stop)
            if (folder and (due or stop)) or len(log) == steps:
                begin = time.monotonic()
                state = tensors()
                check_tensors({name: sharded.local(tensor) for name, tensor in state.items()}, at)
                if len(log) == steps:  # no step will ask for Adam's moments, two thirds of it
                    state = {name: tensor for name, tensor in state.items() if ".adam." not in name}
                if folder:
                    _save(path, state, what, log)
                saved_at = time.monotonic()
                pause = max(SAVE_EVERY, min((saved_at - begin) / SAVE_SHARE, 60 * SAVE_EVERY))
            if stop and len(log) < steps:
                raise KeyboardInterrupt
    return log


@dataclass
class _Facts:
    """What a saved state says beside its tensors."""

    what: str
    log: list[dict[str, Annotated[float, Strict()]]]
    shares: str = ""  # the folder beside it of what ranks keep their shares of
    sums: dict[str, str] = field(default_factory=dict)  # SHA-256 of the files in it


def _save(path: Path | None, state: dict[str, Tensor], what: str, log: list[dict[str, float]]) -> None:
    """Keep a training's state: the first rank, which has a path, all of it, and each its share of what is divided."""
    facts: dict[str, Any] = {"what": what, "log": log}
    shares = f"shares-{len(log)}"
    if sums := sharded.save_shares(path and path.parent, shares, state):
        facts |= {"shares": shares, "sums": sums}
    if path:
        save_state(path, {name: t for name, t in state.items() if not sharded.is_divided(t)}, facts)
        for old in path.parent.glob("shares-*"):
            if old.name != shares:
                shutil.rmtree(old)


def _restored(
    path: Path | None,
    tensors: Callable[[], dict[str, Tensor]],
    restore: Callable[[dict[str, Tensor]], None],
    what: str,
    steps: int,
) -> list[dict[str, float]]:
    """Restore a saved state of this very training; the log up to there, which is empty where there is no such state.
    The first rank reads it, and alone has a path."""
    read = _saved(path, what) if path else None
    saved, (facts, where) = read[0] if read else {}, distributed.from_first((read and read[1], path))
    if facts is None or where is None:
        return []
    saved = distributed.tensors_from_first(saved)
    try:
        if len(facts.log) > steps:
            raise ValueError(f"{len(facts.log)} steps, not {steps}")
        restore(saved | sharded.load_shares(where.parent / facts.shares, tensors()) if facts.shares else saved)
    except (KeyError, ValueError, TypeError, RuntimeError) as e:
        raise LabError(f"{where}: is of another training ({first_line(e)}); {start_over(where)}") from e
    return facts.log


def _saved(path: Path, what: str) -> tuple[dict[str, Tensor], _Facts] | None:
    """The saved state of this very training, and what it says."""
    saved = load_state(path)
    if saved is None:
        if path.exists():
            print(f"{path} was cut short: this stage starts over", file=sys.stderr)
        return None
    tensors, facts = saved[0], validated(_Facts, saved[1], str(path), start_over(path))
    if facts.what != what:  # of an earlier training in the same stage
        return None
    for name, expected in facts.sums.items():
        share = path.parent / facts.shares / name
        if not share.exists() or sum_of(share) != expected:
            raise LabError(f"{share}: missing or damaged; {start_over(path)}")
    return tensors, replace(facts, log=saved[1]["log"])


def fit(
    model: nn.Module,
    rows_of: Callable[[int], list[int]],
    loss_of: Callable[[Sequence[int]], tuple[Tensor, Figure, Mapping[str, Figure]]],
    steps: int,
    optim: Optim,
    machine: Machine,
    folder: Path | None = None,
    what: str = "training",
    on_step: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Minimise a loss for `steps` steps; returns the log, one dict a step.

    `rows_of(step)` names the rows of a step's batch; `loss_of(rows) -> (mean loss, weight, metrics)` is called with
    parts of them, in several threads at once: see `parallel.backward`. Where several processes run, each computes its
    share of the rows, and all take the same step.
    """
    with sharded.divided(model, machine):
        optimizer = make_optimizer(model, optim)
        parameters = [p for p in model.parameters() if p.requires_grad]
        large = is_large(parameters)
        model.train()

        def part_loss(rows: Sequence[int]) -> tuple[Tensor, Figure, Mapping[str, Figure]]:
            with machine.autocast():
                return loss_of(rows)

        def step_fn(step: int) -> dict[str, float]:
            begin = time.perf_counter()
            lr = cosine_lr(step, steps, optim)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            mine = split(distributed.shared(rows_of(step)), machine.device, large)
            loss, metrics = sharded.backward(part_loss, mine, parameters, machine.device)
            with sharing_products(machine.device) if large else contextlib.nullcontext():
                norm = sharded.clip_gradients(model.parameters(), optim.clip)
                optimizer.step()
            if on_step:
                on_step(step)
            # The one place of a step that waits for a GPU, when it has been given all of it.
            read = numbers({"loss": loss, "lr": lr, "grad_norm": norm, **metrics})
            return {**read, "seconds": time.perf_counter() - begin}

        with shared_cores(machine.device):
            log = resumable_loop(
                steps,
                step_fn,
                lambda: module_tensors("model", model, optimizer),
                lambda tensors: restore_module("model", model, optimizer, tensors),
                folder,
                what,
            )
    model.eval()
    return log
