import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama2lab.engine.parallel import LARGE_ROWS, backward, batches_of, in_parallel, limited_to, split, workers
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.stages.pretrain import packed_lm_loss

CPU = torch.device("cpu")


def test_the_gradient_of_the_parts_is_that_of_the_whole_batch():
    model = Llama(ModelConfig(32, 16, 2, 4, 2, 32))
    tokens = torch.randint(4, 32, (6, 20), generator=torch.Generator().manual_seed(0))
    segments = torch.ones_like(tokens)
    segments[1, 5:] = 0  # rows of unequal numbers of tokens: the weights matter
    mask = torch.ones_like(tokens, dtype=torch.bool)
    parameters = list(model.parameters())

    def loss_of(rows):
        loss, count = packed_lm_loss(model, tokens[rows], segments[rows], mask[rows])
        return loss, float(count), {"tokens": float(count)}

    loss, metrics = backward(loss_of, [[1, 3], [0, 2, 4, 5]], parameters, CPU)
    found = [p.grad.clone() for p in parameters]
    whole, count = packed_lm_loss(model, tokens, segments, mask)
    expected = torch.autograd.grad(whole, parameters)
    assert loss == pytest.approx(whole.item(), rel=1e-5)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    n = [19 * 2 - 15, 19 * 4]  # predicted tokens of each part
    assert sum(n) == count and metrics["tokens"] == pytest.approx(sum(x * x for x in n) / sum(n))


def test_a_large_model_s_parts_are_of_a_few_rows_and_its_gradient_the_same(monkeypatch):
    monkeypatch.setattr("llama2lab.engine.parallel.LARGE", 0)
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))

    def loss_of(rows):
        return ((x[list(rows)] @ weight) ** 2).mean(), float(len(rows)), {}

    for at_once in (1, 2, 3):
        with limited_to(at_once):
            parts = split(range(7), CPU, large=True)
            assert sorted(i for part in parts for i in part) == [*range(7)]
            assert len(parts) == 4 and max(map(len, parts)) == LARGE_ROWS
            assert [len(part) for part in split(range(2), CPU, large=True)] == ([2] if at_once == 1 else [1, 1])
            for some in (parts, split(range(7), CPU)):
                backward(loss_of, some, [weight], CPU)
                torch.testing.assert_close(weight.grad, 2 * x.T @ (x @ weight.detach()) / 7)
    assert len(split(range(7), torch.device("meta"), large=True)) == 1


def test_a_parameter_that_no_part_uses_gets_no_gradient():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    unused.grad = torch.ones(2)  # of an earlier step
    backward(lambda x: ((used * x).sum(), 1.0, {}), [1.0, 3.0], [used, unused], CPU)
    assert used.grad.tolist() == [2.0, 2.0] and unused.grad is None


@pytest.mark.parametrize("at_once", [1, 2])
def test_parts_of_no_weight_at_all_count_alike(at_once):
    p = torch.nn.Parameter(torch.ones(1))
    with limited_to(at_once):
        loss, _ = backward(lambda x: ((p * x).sum(), 0.0, {}), [1.0, 3.0], [p], CPU)
    assert loss == 2.0 and p.grad.tolist() == [2.0]


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("parts", [[(7.0, 0.0), (1.0, 1.0), (3.0, 3.0)], [(1.0, 1.0), (7.0, 0.0), (3.0, 3.0)]])
def test_parts_of_no_weight_do_not_count_beside_others(at_once, parts):
    p = torch.nn.Parameter(torch.ones(1))
    with limited_to(at_once):
        loss, _ = backward(lambda part: ((p * part[0]).sum(), part[1], {}), parts, [p], CPU)
    assert loss == 2.5 and p.grad.tolist() == [2.5]


def test_results_keep_their_order_and_main_keeps_its_threads():
    before = torch.get_num_threads()
    assert in_parallel(lambda x: x * x, range(20), CPU) == [x * x for x in range(20)]
    assert torch.get_num_threads() == before


@pytest.mark.skipif(workers(CPU) == 1, reason="one thread: there is nothing at once")
def test_two_parts_are_worked_on_at_the_same_time():
    both = threading.Barrier(2, timeout=120)
    in_parallel(lambda _: both.wait(), range(2), CPU)


@pytest.mark.skipif(workers(CPU) == 1, reason="one thread: there is nothing at once")
def test_every_worker_has_its_share_of_threads():
    """Else the last bits of a sum depend on who took which part, and no run could be repeated."""
    code = (
        "import threading, torch\n"
        "from llama2lab.engine.parallel import in_parallel\n"
        "cpu, both = torch.device('cpu'), threading.Barrier(2)\n"
        "def work(_):\n"
        "    both.wait()\n"
        "    torch.ones(300, 300) @ torch.ones(300, 300)\n"
        "    return torch.get_num_threads()\n"
        "before = torch.get_num_threads()\n"
        "found = [in_parallel(work, range(2), cpu) for _ in range(3)]\n"
        "assert found == [[max(1, before // min(8, before))] * 2] * 3, found\n"
        "assert torch.get_num_threads() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_there_is_a_worker_for_each_core():
    """Four at once where torch has four threads, one where it has one; and the number can be limited for a while."""
    code = (
        "import threading, torch\n"
        "from llama2lab.engine.parallel import batches_of, in_parallel, limited_to, split, workers\n"
        "cpu, _ = torch.device('cpu'), torch.set_num_threads(4)\n"
        "def all_at_once(n):\n"
        "    assert workers(cpu) == n and len(split(range(9), cpu)) == n\n"
        "    assert len(batches_of(range(9), 9, cpu)) >= min(n, 3)\n"
        "    together = threading.Barrier(n, timeout=120)\n"
        "    in_parallel(lambda _: together.wait(), range(n), cpu)\n"
        "all_at_once(4)\n"
        "with limited_to(2):\n"
        "    all_at_once(2)\n"
        "with limited_to(1):\n"
        "    all_at_once(1)\n"
        "all_at_once(4)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_error_of_a_part_is_raised_and_nothing_runs_on():
    running = []

    def work(x):
        running.append(x)
        if x == 0:
            raise ValueError("part 0")
        running.remove(x)

    with pytest.raises(ValueError, match="part 0"):
        in_parallel(work, range(6), CPU)
    assert running == [0]


@given(st.lists(st.integers(), max_size=40), st.integers(1, 9))
def test_no_row_is_lost_and_none_comes_twice(rows, batch):
    assert [x for part in batches_of(rows, batch, CPU) for x in part] == rows
    assert all(1 <= len(part) <= batch for part in batches_of(rows, batch, CPU))
    if rows:
        hands = split(rows, CPU)
        assert sorted(x for hand in hands for x in hand) == sorted(rows) and all(hands)
