"""What only a GPU can show; `python -m llama2lab.run.gpu_check` runs these there."""

import copy

import pytest
import torch

from llama2lab.engine.device import Machine, begin_device_memory, matmul_ceiling, on_device, pick_precision
from llama2lab.engine.loop import fit
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import epoch_batches, pack
from llama2lab.model.generate import generate
from llama2lab.model.network import SIZES, Llama
from llama2lab.stages.pretrain import fit_packed, rows_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here that torch can use"),
]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Llama:
    model = Llama(SIZES["nano"], seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.ndim > 1 else 1)
    return model.eval()


@pytest.fixture(scope="module")
def data():
    return pack([(list(range(10, 10 + n)), [1] * n) for n in range(5, 60)], 64, 0, 3)


def test_logits_are_those_of_the_cpu(model) -> None:
    tokens = torch.randint(4, 512, (3, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        there = copy.deepcopy(model).to(CUDA)(tokens.to(CUDA))
        torch.testing.assert_close(there.cpu(), model(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 3}])
def test_the_same_is_written(model, settings) -> None:
    prompts = [[1, *range(10, 12 + i % 9)] for i in range(24)]
    settings = {**settings, "precision": "fp32", "eos_id": 20, "batch_size": 7}
    there = [g.tokens for g in generate(copy.deepcopy(model).to(CUDA), prompts, 40, **settings)]
    here = [g.tokens for g in generate(model, prompts, 40, **settings)]
    same = sum(a == b for a, b in zip(there, here, strict=True))
    assert same >= len(prompts) - 1, same  # sums round differently: a random number may fall between two tokens


def test_a_training_goes_as_on_the_cpu(data) -> None:
    logs = []
    for device in (CPU, CUDA):
        model = Llama(SIZES["nano"]).to(device)
        logs.append(fit_packed(model, data, 2.0, 256, Optim(lr=1e-3), 0, Machine(device, "fp32")))
    for here, there in zip(*logs, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-3)
        assert there["grad_norm"] == pytest.approx(here["grad_norm"], rel=1e-2)


def test_products_are_in_bfloat16_and_weights_are_not(data) -> None:
    machine = Machine(CUDA, "bf16")
    model = Llama(SIZES["nano"]).to(CUDA)
    with machine.autocast():
        assert model.hidden(torch.ones(1, 8, dtype=torch.long, device=CUDA)).dtype == torch.bfloat16
        loss, _ = rows_loss(model, data, range(4), machine)
    assert loss.dtype == torch.float32 and all(p.dtype == torch.float32 for p in model.parameters())
    assert pick_precision(CUDA) == "bf16" or torch.cuda.get_device_capability()[0] < 8


def test_a_step_waits_once(data) -> None:
    """torch raises at a wait, where it is asked to; reading the figures at the end of a step is the one allowed."""
    machine, model = Machine(CUDA, "bf16"), Llama(SIZES["nano"]).to(CUDA)
    rows = epoch_batches(len(data), 4, 0)

    def loss_of(picked):
        torch.cuda.set_sync_debug_mode("error")
        loss, count = rows_loss(model, data, picked, machine)
        torch.cuda.set_sync_debug_mode("default")
        return loss, float(count), {}

    try:
        fit(model, rows, loss_of, 3, Optim(lr=1e-3), machine)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_come_over_from_pinned_memory() -> None:
    x = torch.randn(1000, 1000)
    y = on_device(x, CUDA)
    assert y.device.type == "cuda" and torch.equal(y.cpu(), x) and on_device(y, CUDA) is y


def test_memory_is_that_of_the_gpu() -> None:
    torch.ones(1, device=CUDA)
    peak = begin_device_memory()
    block = torch.ones(25_000_000, device=CUDA)
    del block
    assert 100 <= peak() < 100 + torch.cuda.memory_allocated() / 1e6 + 50


def test_the_ceiling_of_bfloat16_is_the_higher_one() -> None:
    assert matmul_ceiling(CUDA, torch.bfloat16) > matmul_ceiling(CUDA, torch.float32) > 1e12
