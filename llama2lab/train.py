"""What every training stage shares: the optimiser, the schedule, packing, and a loop that can be killed.

The optimiser and schedule are the report's (section 2.2): AdamW with beta 0.9 and 0.95, cosine decay to 10 %
of the peak, weight decay 0.1, gradient clipping at 1.0. A batch is a function of (seed, step) alone, so a run
that was killed goes on from its last saved step with the same numbers as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llama2lab.device import Machine
from llama2lab.errors import LabError
from llama2lab.model import Llama, document_mask, document_positions
from llama2lab.parallel import backward, is_large, shared_cores, split
from llama2lab.progress import bar
from llama2lab.runs import disk_error

SCALAR_LR = 50.0
SAVE_EVERY = 10.0  # seconds of work that a kill -9 can cost; more where saving takes long
SAVE_SHARE = 0.05  # of the time may go into saving


@dataclass(frozen=True)
class Optim:
    """The optimiser's settings; the defaults are the report's, apart from the learning rate (a small model
    trained for minutes wants a larger one)."""

    lr: float
    warmup: float = 0.02  # share of the steps
    final: float = 0.1  # the last learning rate as a share of the peak
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    clip: float = 1.0
    gain_lr: float = 1.0  # learning rate of the norms' gains, in units of `lr`


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


@dataclass
class Packed:
    """Documents packed in rows. `segments` numbers the documents of a row from 1, with 0 for padding."""

    tokens: Tensor  # (rows, seq)
    segments: Tensor  # (rows, seq)
    loss_mask: Tensor  # (rows, seq), True where the token is to be predicted

    def __len__(self) -> int:
        return len(self.tokens)


Ids = list[int] | np.ndarray


def pack(documents: Sequence[tuple[Ids, Ids]], seq_len: int, seed: int, pad_id: int) -> Packed:
    """Pack (ids, loss_mask) documents in rows of `seq_len`, in an order shuffled by `seed`.

    First fit over the most recent 64 open rows. A document longer than a row is split, and its pieces are
    separate documents. Packing wastes little: padding is usually under 3 %.
    """
    rng = random.Random(seed)
    pieces = [(ids[i:i + seq_len], mask[i:i + seq_len]) for ids, mask in documents
              for i in range(0, len(ids), seq_len)]
    rng.shuffle(pieces)
    rows: list[list[tuple[Ids, Ids]]] = []
    room: list[int] = []
    open_rows: list[int] = []
    for piece in pieces:
        need = len(piece[0])
        place = next((r for r in open_rows if room[r] >= need), None)
        if place is None:
            rows.append([])
            room.append(seq_len)
            place = len(rows) - 1
            open_rows.append(place)
            if len(open_rows) > 64:
                open_rows.remove(min(open_rows, key=room.__getitem__))
        rows[place].append(piece)
        room[place] -= need
        if room[place] < 4:
            open_rows.remove(place)
    rng.shuffle(rows)
    tokens = torch.full((len(rows), seq_len), pad_id)
    segments = torch.zeros((len(rows), seq_len), dtype=torch.long)
    loss_mask = torch.zeros((len(rows), seq_len), dtype=torch.bool)
    for r, row in enumerate(rows):
        at = 0
        for number, (ids, mask) in enumerate(row, 1):
            tokens[r, at:at + len(ids)] = torch.tensor(ids)
            segments[r, at:at + len(ids)] = number
            loss_mask[r, at:at + len(ids)] = torch.tensor(mask, dtype=torch.bool)
            at += len(ids)
    return Packed(tokens, segments, loss_mask)


def packed_lm_loss(model: Llama, tokens: Tensor, segments: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats of the tokens that `loss_mask` marks, and their number.

    The first token of a document is predicted from nothing, so it never counts; the logits are computed only
    where a prediction is asked for.
    """
    hidden = model.hidden(tokens, document_positions(segments), document_mask(segments))  # (batch, seq, dim)
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    wanted = same & loss_mask[:, 1:]
    logits = model.lm_head(hidden[:, :-1][wanted])  # (wanted, vocab)
    targets = tokens[:, 1:][wanted]
    count = torch.tensor(len(targets))
    if len(targets) == 0:
        return hidden.sum() * 0.0, count
    return F.cross_entropy(logits.float(), targets), count


def rows_loss(model: Llama, data: Packed, rows: Sequence[int], machine: Machine) -> tuple[Tensor, Tensor]:
    """`packed_lm_loss` of some rows of `data`, on the model's device."""
    return packed_lm_loss(model, *(part[rows].to(machine.device) for part in (data.tokens, data.segments,
                                                                              data.loss_mask)))


def epoch_batches(n: int, batch: int, seed: int, lengths: Sequence[int] = ()) -> Callable[[int], list[int]]:
    """`f(step)` gives the rows of that step: every epoch is another shuffle, drawn from (seed, epoch).

    With `lengths`, rows of about the same length come together, so that little is spent on padding: the shuffled rows
    are sorted within groups of 16 batches, and the batches are shuffled again.
    """
    if n < 1:
        raise LabError("there is nothing to train on: the data set is empty; give more rows")
    per_epoch = max(1, math.ceil(n / batch))
    orders: dict[int, list[list[int]]] = {}

    def rows(step: int) -> list[int]:
        epoch, at = divmod(step, per_epoch)
        if epoch not in orders:
            orders.clear()
            order = list(range(n))
            rng = random.Random(f"{seed} {epoch}")
            rng.shuffle(order)
            if lengths:
                order = [i for start in range(0, n, 16 * batch)
                         for i in sorted(order[start:start + 16 * batch], key=lengths.__getitem__)]
            batches = [order[start:start + batch] for start in range(0, n, batch)]
            if lengths:
                rng.shuffle(batches)
            orders[epoch] = batches
        return orders[epoch][at]

    return rows


# ---- a loop that can be killed ---------------------------------------------------------------------------


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """One file, written whole or not at all: tensors, and `facts` as JSON in its header. Nothing is pickled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary,
                  metadata={"facts": json.dumps(facts)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as e:
        error = e if isinstance(e, OSError) else OSError(str(e))
        raise disk_error(error, path) from e


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_state` wrote, or None where there is nothing (or only a damaged file: then the stage starts
    over)."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()["facts"])  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
        return None


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
    Ctrl-C: its state is saved, KeyboardInterrupt is raised. A live panel stands on this (widgets/training.py)."""
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
    SAVE_SHARE of the time), at Ctrl-C, and before the loop returns, unless what it would keep is so little work;
    called again with the same folder it goes on from there.
    """
    path = folder / "resume" / "state.safetensors" if folder else None
    log: list[dict[str, float]] = []
    saved = load_state(path) if path else None
    if saved and saved[1].get("what") == what:
        restore(saved[0])
        log = saved[1]["log"]
    saved_at, pause = time.monotonic(), SAVE_EVERY
    watch: Watch | None = getattr(_watching, "watch", None)
    if watch and watch(what, log, steps) and len(log) < steps:
        raise KeyboardInterrupt
    with patient_interrupt() as interrupted, bar(steps, what, unit, initial=len(log)) as progress:
        while len(log) < steps:
            metrics = step_fn(len(log))
            if not math.isfinite(metrics.get("loss", 0.0)):
                raise LabError(f"{what}: the loss is {metrics['loss']} at step {len(log)}; lower the learning rate")
            log.append({k: round(v, 6) for k, v in metrics.items()})
            progress.update(1)
            progress.set_postfix({k: f"{v:.3g}" for k, v in list(metrics.items())[:2]}, refresh=False)
            stop = bool(watch and watch(what, log, steps)) or interrupted()
            due = time.monotonic() - saved_at > pause or stop
            if path and due:
                begin = time.monotonic()
                kept = tensors()
                if len(log) == steps:  # no step will ask for Adam's moments, two thirds of it
                    kept = {name: tensor for name, tensor in kept.items() if ".adam." not in name}
                save_state(path, kept, {"what": what, "log": log})
                saved_at = time.monotonic()
                pause = max(SAVE_EVERY, min((saved_at - begin) / SAVE_SHARE, 60 * SAVE_EVERY))
            if stop and len(log) < steps:
                raise KeyboardInterrupt
    return log


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


def fit_packed(model: Llama, data: Packed, epochs: float, batch_tokens: int, optim: Optim, seed: int,
               machine: Machine, folder: Path | None = None, what: str = "training",
               on_step: Callable[[int], None] | None = None) -> list[dict[str, float]]:
    """Language-model training on packed rows, `batch_tokens` (padding counted) a step."""
    batch = max(1, batch_tokens // data.tokens.shape[1])
    steps = max(1, round(epochs * math.ceil(len(data) / batch)))
    rows = epoch_batches(len(data), batch, seed)

    def loss_of(r: Sequence[int]) -> tuple[Tensor, float, dict[str, float]]:
        loss, count = rows_loss(model, data, r, machine)
        return loss, float(count), {}

    log = fit(model, rows, loss_of, steps, optim, machine, folder, what, on_step)
    sizes = (data.segments > 0).sum(1)  # (rows,)
    return [{**entry, "tokens": float(sizes[rows(step)].sum())} for step, entry in enumerate(log)]
