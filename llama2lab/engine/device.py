"""The machine: which device, which precision, how fast it multiplies, how much memory the process took."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama2lab.engine.distributed import local_rank, world_size
from llama2lab.engine.errors import LabError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PRECISIONS = ("fp32", "bf16")
SHARD = ("auto", "always", "never")  # auto: where a device should not hold the training
# oneDNN keeps a compiled product for each of the last 1,024 shapes it met, and batches of text have many shapes: half a
# gigabyte. With 64 of them, products in float32 were compiled again and again; 128 is a compromise that was not
# measured. Read at the first product, so it is in time here.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: the next training step asks for the same again, and getting it from the kernel page
    by page costs a tenth of the step (measured on two cores). Elsewhere nothing happens."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 2**27)
        mallopt(mmap_threshold, 2**25)


_keep_freed_memory()


def pick_device(name: str = "auto") -> torch.device:
    """The device called cpu, cuda (or cuda:1 ...) or mps; auto is the GPU if there is one. Of several
    processes each has a GPU of its own. LabError for others."""
    cards = torch.cuda.device_count()
    there = [*(["cuda"] if cards else []), *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if name == "auto":
        name = there[0] if cards or world_size() == 1 else "cpu"  # several processes share no mps
    if name == "cuda" and cards and world_size() > 1:
        return torch.device("cuda", local_rank())
    if name not in (*there, *(f"cuda:{i}" for i in range(cards))):
        raise LabError(f"device {name!r} is not on this machine; there are: auto, {', '.join(reversed(there))}")
    return torch.device(name)


@functools.cache
def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of large matrix products, the best of a few (under half a second).

    On a GPU the numbers are random, for it draws less power, and runs faster, on numbers that are all alike; and the
    products are so large that starting one and waiting for it takes a hundredth of it.
    """
    size = {"cpu": 1024, "cuda": 8192}.get(device.type, 4096)
    if device.type == "cpu":
        a, b = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    else:
        generator = torch.Generator(device).manual_seed(0)
        a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    a @ b  # the first product sets things up
    best, tried, end = float("inf"), 0, time.perf_counter() + 0.3
    while tried < 3 or time.perf_counter() < end:  # three at least: a busy machine may let 0.3 s pass at once
        wait(device)
        begin = time.perf_counter()
        a @ b
        wait(device)
        best, tried = min(best, time.perf_counter() - begin), tried + 1
    return 2 * size**3 / best


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given: a clock would else stop too early. A CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without waiting for it: a GPU copies from pinned memory while it computes."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


@functools.cache
def pick_precision(device: torch.device, name: str = "auto") -> str:
    """fp32 or bf16; auto is bf16 where its products are at least 1.2 times as fast, measured once a process.

    Many CPUs emulate bf16, more slowly than float32. LabError for other names.
    """
    if name != "auto":
        if name not in PRECISIONS:
            raise LabError(f"precision {name!r} is unknown; there are: auto, {', '.join(PRECISIONS)}")
        return name
    faster = matmul_ceiling(device, torch.bfloat16) > 1.2 * matmul_ceiling(device, torch.float32)
    return "bf16" if faster else "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in bfloat16 for "bf16", weights staying float32; nothing for "fp32"."""
    if precision == "bf16":
        # No cache of cast weights: each is used once in a forward pass, and threads would share the cache.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


_highest = 0.0  # MB, of what was measured before Linux was told to forget it


def peak_memory_mb() -> float:
    """The most memory this process has held, in MB (1e6 bytes); its children are not counted. 0 on
    Windows, which does not say."""
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(_highest, peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6)


def begin_peak_memory() -> Callable[[], float | None]:
    """Begin to measure; the function it gives says the most memory, in MB, that this process has held since.

    Linux can forget the peak so far (`/proc/self/clear_refs`). Where that is not to be had, only a process's highest
    peak is known: a new one is told, and None means that the memory stayed below the one before.
    """
    global _highest
    before = _highest = peak_memory_mb()
    forgotten = _forget_peak()

    def peak() -> float | None:
        if forgotten:
            return _status_mb("VmHWM")
        now = peak_memory_mb()
        return now if now > before else None

    return peak


def _forget_peak() -> bool:
    """Whether Linux forgot this process's peak of memory; some containers and sandboxes do not let it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    peak, now = _status_mb("VmHWM"), _status_mb("VmRSS")
    return peak is not None and now is not None and peak < 1.1 * now


def _status_mb(name: str) -> float | None:
    """A size in /proc/self/status, in MB."""
    with contextlib.suppress(ValueError, IndexError):
        return int(_in_proc("self/status", name).split()[0]) * 1024 / 1e6
    return None


def _in_proc(file: str, name: str) -> str:
    """What a file of Linux's /proc says of `name`, "" for nothing."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", file).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def begin_device_memory() -> Callable[[], float | None]:
    """Begin to measure; the function it gives says the most memory, in MB, that tensors of this process have held since
    on its GPUs, all together. None where it uses none."""
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else range(0)
    for card in cards:
        torch.cuda.reset_peak_memory_stats(card)

    def peak() -> float | None:
        if not torch.cuda.is_initialized():
            return None
        return sum(torch.cuda.max_memory_allocated(card) for card in range(torch.cuda.device_count())) / 1e6 or None

    return peak


def check_memory(needed: int, what: str, device: torch.device | None = None) -> None:
    """LabError where `needed` bytes are more than this machine has in all, or than the GPU has: said before they are
    asked for."""
    there = memory_bytes(device)
    if there and needed > there:
        owner = "this GPU" if device and device.type == "cuda" else "this machine"
        raise LabError(f"{what} take {needed / 1e9:,.1f} GB, {owner} has {there / 1e9:,.1f}; choose a smaller model")


def describe_machine() -> dict[str, Any]:
    """What `llama2lab doctor` shows: processor, memory in GB, versions, the precision chosen and the measured
    ceilings in GFLOP/s."""
    device = pick_device()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {
        "cpu": _in_proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_gb": memory_gb(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        **({"device_memory_gb": device_memory_gb(device)} if device.type == "cuda" else {}),
        "precision": pick_precision(device),
        "gflops": {name: round(matmul_ceiling(device, dtype) / 1e9) for name, dtype in dtypes.items()},
    }


def cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb() -> float:
    """The machine's memory in GB (1e9 bytes); 0 where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError):
        return 0.0


def device_memory_gb(device: torch.device) -> float:
    """What a GPU can hold in GB (1e9 bytes); 0 for what has no memory of its own, or does not say."""
    return round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1) if device.type == "cuda" else 0.0


def memory_bytes(device: torch.device | None = None) -> float:
    """What the GPU can hold, or for any other device what this machine can; 0 where the system does not say."""
    return (device_memory_gb(device) if device and device.type == "cuda" else memory_gb()) * 1e9


def most_memory_gb() -> float:
    """The memory in GB of the device that "auto" picks or of the machine, whichever is more: what does not fit there
    fits nowhere here. 0 where the system does not say."""
    there = memory_gb()
    return max(there, device_memory_gb(pick_device())) if there else 0.0


@dataclass(frozen=True)
class Machine:
    """Where to compute and how precisely: what every stage is given. `shard`, one of SHARD, says whether several
    processes divide a model that they train (sharded.py)."""

    device: torch.device
    precision: str
    shard: str = "auto"

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.device, self.precision)


def machine_of(run: Any, device: str = "auto", precision: str = "auto") -> Machine:
    """`this_machine`, in the precision that the run (runs.Run) began with where none is asked for."""
    machine = this_machine(device, precision)
    if precision != "auto":
        return machine
    return Machine(machine.device, run.picked(f"precision_{machine.device.type}", lambda: machine.precision))


def this_machine(device: str = "auto", precision: str = "auto") -> Machine:
    """The machine at hand, or the part of it that is asked for; LabError as `pick_device` and `pick_precision`."""
    picked = pick_device(device)
    return Machine(picked, pick_precision(picked, precision))
