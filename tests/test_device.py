"""What is measured of the machine."""

import time

import pytest
import torch

from llama2lab.engine.device import (
    autocast,
    describe_machine,
    matmul_ceiling,
    peak_memory_mb,
    pick_device,
    pick_precision,
)
from llama2lab.engine.errors import LabError

CPU = torch.device("cpu")


def test_devices():
    assert pick_device("cpu") == CPU
    assert pick_device().type in ("cpu", "cuda", "mps")
    for name in ("tpu", "" if torch.cuda.is_available() else "cuda"):
        with pytest.raises(LabError, match="not on this machine"):
            pick_device(name)


def test_precision_is_measured_once():
    assert pick_precision(CPU) in ("fp32", "bf16")
    assert pick_precision(CPU) == pick_precision(CPU)
    assert pick_precision(CPU, "fp32") == "fp32"
    with pytest.raises(LabError, match="precision 'fp8' is unknown"):
        pick_precision(CPU, "fp8")


def test_autocast():
    x = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (x @ x).dtype == torch.float32


def test_ceiling_is_plausible():
    assert 1e9 < matmul_ceiling(CPU, torch.float32) < 1e15


def test_peak_memory_sees_an_allocation():
    before = peak_memory_mb()
    block = torch.ones(int(before * 1e6 / 4) + 25_000_000)  # more than all so far, and 100 MB on top
    assert peak_memory_mb() > before + 50
    del block


def test_doctor_has_its_figures():
    machine = describe_machine()
    assert machine["cores"] >= 1 and machine["memory_gb"] > 0 and machine["cpu"]
    assert set(machine["gflops"]) == {"fp32", "bf16"}


def test_a_ceiling_is_measured_however_busy_the_machine(monkeypatch):
    """Another process may have the processor for all of the time that measuring should take."""
    times = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(times)))
    assert matmul_ceiling.__wrapped__(CPU, torch.float32) > 0  # not what was measured before
