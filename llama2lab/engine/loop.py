"""What every training stage shares: the optimiser, the schedule, packing, and a loop that can be killed.

The optimiser and schedule are the report's (section 2.2): AdamW with beta 0.9 and 0.95, cosine decay to 10 %
of the peak, weight decay 0.1, gradient clipping at 1.0. A batch is a function of (seed, step) alone, so a run
that was killed goes on from its last saved step with the same numbers as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, Strict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llama2lab.engine.bar import bar
from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.files import disk_error
from llama2lab.engine.finite import check_numbers, check_tensors
from llama2lab.engine.folders import one_writer
from llama2lab.engine.parallel import backward, is_large, shared_cores, split
from llama2lab.engine.settings import Limit, Rate, Share, ShareBelowOne, Weight, checked
from llama2lab.engine.validation import parse_json, validated

SCALAR_LR = 50.0
SAVE_EVERY = 10.0  # seconds of work that a kill -9 can cost; more where saving takes long
SAVE_SHARE = 0.05  # of the time may go into saving


@checked
@dataclass(frozen=True)
class Optim:
    """The optimiser's settings; the defaults are the report's, apart from the learning rate (a small model
    trained for minutes wants a larger one)."""

    lr: Rate
    warmup: Share = 0.02  # share of the steps
    final: Share = 0.1  # the last learning rate as a share of the peak
    weight_decay: Weight = 0.1
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    eps: Annotated[float, Field(ge=1e-20, le=1)] = 1e-5  # 0 would divide by 0 where a gradient is 0
    clip: Limit = 1.0
    gain_lr: Weight = 1.0  # learning rate of the norms' gains, in units of `lr`


def cosine_lr(step: int, steps: int, optim: Optim) -> float:
    """Learning rate at `step` of `steps`: linear warmup, then a cosine down to `final` of the peak."""
    warmup = max(1, round(optim.warmup * steps))
    if step < warmup:
        return optim.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return optim.lr * (optim.final + (1 - optim.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def make_optimizer(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only: norms' gains and single scalars are not decayed.

    Adam's steps are as long as the learning rate, so what is large and has some hundred steps to change needs one of
    its own: a single scalar (the likelihood head's `a`), `SCALAR_LR` times the others'; the gains, `optim.gain_lr`
    times. A group's `lr_scale` says so to schedules."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    scales = {2: 1.0, 1: optim.gain_lr, 0: SCALAR_LR}
    groups = [{"params": [p for p in parameters if min(p.dim(), 2) == dim], "lr": optim.lr * scale, "lr_scale": scale,
               "weight_decay": optim.weight_decay if dim == 2 else 0.0} for dim, scale in scales.items()]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


# ---- packing ---------------------------------------------------------------------------------------------


# ---- a loop that can be killed ---------------------------------------------------------------------------


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """One file, written whole or not at all: tensors, and `facts` as JSON and the sum of both in its header. Nothing is
    pickled."""
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        text = json.dumps(facts, allow_nan=False)
        save_file(there, temporary, metadata={"facts": text, "sha256": state_sum(there, text)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(e if isinstance(e, OSError) else OSError(str(e)), path) from e


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_state` wrote, or None where there is nothing or only the beginning of it: then the stage starts over.

    Raises:
        LabError: the file is whole, but not as it was written: a damaged disk or memory, or another program's file.
    """
    if not path.exists() or cut_short(path):
        return None
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
            header = f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise LabError(f"{path}: damaged ({first_line(e)}); {_start_over(path)}") from e
    facts = parse_json(header.get("facts", ""), str(path), _start_over(path))
    if "sha256" in header and header["sha256"] != state_sum(tensors, header["facts"]):  # older states have none
        raise LabError(f"{path}: damaged, it is not as it was written; {_start_over(path)}")
    return tensors, validated(dict[str, Any], facts, str(path), _start_over(path))


def _start_over(path: Path) -> str:
    return f"remove {path.parent} and give the same command again: this stage starts over, finished ones are kept"


def state_sum(tensors: dict[str, Tensor], facts: str) -> str:
    """SHA-256 of contiguous tensors on the CPU, with their names and shapes, and of `facts`."""
    total = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def cut_short(path: Path) -> bool:
    """Whether a safetensors file ends before the end that its header names, as after a power cut or half a copy."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > 10**8 and size >= 8:  # more than the format allows: damaged
            return False
        if size < 8 + length:
            return True
        try:
            header = json.loads(f.read(length))
            end = max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"),
                      default=0)
            return bool(size < 8 + length + end)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):  # no header at all: damaged
            return False


def module_tensors(prefix: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and Adam's moments (themselves, no copies) under plain names, for `save_state`."""
    tensors = {f"{prefix}.{name}": p.detach() for name, p in module.named_parameters()}
    for name, p in module.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"{prefix}.adam.{key}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_module(prefix: str, module: nn.Module, optimizer: torch.optim.Optimizer,
                   tensors: dict[str, Tensor]) -> None:
    """The reverse of `module_tensors`."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(tensors[f"{prefix}.{name}"])
            names = {key: f"{prefix}.adam.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            state = {key: tensors[full].to(p.device) for key, full in names.items() if full in tensors}
            if state:
                if len(state) < len(names):
                    raise KeyError(f"{prefix}.adam of {name}")
                optimizer.state[p] = state


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
    there. One process at a time trains in a folder.

    A step's metrics are numbers; one that cannot be told at that step is left out or None.

    Raises:
        LabError: a metric, or at a save or the end a tensor, is not finite: it is named with the step, and nothing of
            it is kept; or the saved state is damaged.
    """
    if folder is None:
        return _loop(steps, step_fn, tensors, restore, None, what, unit)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(one_writer(folder / "resume"))
        except OSError as e:
            raise disk_error(e, folder) from e
        return _loop(steps, step_fn, tensors, restore, folder / "resume" / "state.safetensors", what, unit)


def _loop(steps: int, step_fn: Callable[[int], dict[str, float]], tensors: Callable[[], dict[str, Tensor]],
          restore: Callable[[dict[str, Tensor]], None], path: Path | None, what: str, unit: str,
          ) -> list[dict[str, float]]:
    log = _restored(path, restore, what, steps) if path else []
    saved_at, pause = time.monotonic(), SAVE_EVERY
    watch: Watch | None = getattr(_watching, "watch", None)
    if watch and watch(what, log, steps) and len(log) < steps:
        raise KeyboardInterrupt
    with patient_interrupt() as interrupted, bar(steps, what, unit, initial=len(log)) as progress:
        while len(log) < steps:
            metrics = {k: v for k, v in step_fn(len(log)).items() if v is not None}
            at = f"{what}, {unit} {len(log) + 1} of {steps}"
            check_numbers(metrics, at)
            log.append({k: round(v, 6) for k, v in metrics.items()})
            progress.update(1)
            progress.set_postfix({k: f"{v:.3g}" for k, v in list(metrics.items())[:2]}, refresh=False)
            stop = bool(watch and watch(what, log, steps)) or interrupted()
            if (path and (time.monotonic() - saved_at > pause or stop)) or len(log) == steps:
                begin = time.monotonic()
                state = tensors()
                check_tensors(state, at)
                if len(log) == steps:  # no step will ask for Adam's moments, two thirds of it
                    state = {name: tensor for name, tensor in state.items() if ".adam." not in name}
                if path:
                    save_state(path, state, {"what": what, "log": log})
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


def _restored(path: Path, restore: Callable[[dict[str, Tensor]], None], what: str, steps: int,
              ) -> list[dict[str, float]]:
    """Restore a saved state of this very training; the log up to there, which is empty where there is no such state."""
    saved = load_state(path)
    if saved is None:
        if path.exists():
            print(f"{path} was cut short: this stage starts over", file=sys.stderr)
        return []
    tensors, facts = saved
    state = validated(_Facts, facts, str(path), _start_over(path))
    if state.what != what:  # of an earlier training in the same stage
        return []
    try:
        if len(state.log) > steps:
            raise ValueError(f"{len(state.log)} steps, not {steps}")
        restore(tensors)
    except (KeyError, ValueError, TypeError, RuntimeError) as e:
        raise LabError(f"{path}: is of another training ({first_line(e)}); {_start_over(path)}") from e
    return facts["log"]


def fit(
    model: nn.Module,
    rows_of: Callable[[int], list[int]],
    loss_of: Callable[[Sequence[int]], tuple[Tensor, float, dict[str, float]]],
    steps: int,
    optim: Optim,
    machine: Machine,
    folder: Path | None = None,
    what: str = "training",
    on_step: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """Minimise a loss for `steps` steps; returns the log, one dict a step.

    `rows_of(step)` names the rows of a step's batch; `loss_of(rows) -> (mean loss, weight, metrics)` is called with
    parts of them, in several threads at once: see `parallel.backward`.
    """
    optimizer = make_optimizer(model, optim)
    parameters = [p for p in model.parameters() if p.requires_grad]
    large = is_large(parameters)
    model.train()

    def part_loss(rows: Sequence[int]) -> tuple[Tensor, float, dict[str, float]]:
        with machine.autocast():
            return loss_of(rows)

    def step_fn(step: int) -> dict[str, float]:
        begin = time.perf_counter()
        lr = cosine_lr(step, steps, optim)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        loss, metrics = backward(part_loss, split(rows_of(step), machine.device, large), parameters, machine.device)
        norm = nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        if on_step:
            on_step(step)
        return {"loss": loss, "lr": lr, "grad_norm": norm.item(), **metrics,
                "seconds": time.perf_counter() - begin}

    with shared_cores(machine.device):
        log = resumable_loop(steps, step_fn, lambda: module_tensors("model", model, optimizer),
                             lambda tensors: restore_module("model", model, optimizer, tensors), folder, what)
    model.eval()
    return log

