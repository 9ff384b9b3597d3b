"""What a GPU would be waited for, seen on a CPU: steps run on the meta device, where no number can be read, and the
questions that a loop asks are counted."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llama2lab.engine import device, parallel
from llama2lab.engine.device import Machine, on_device
from llama2lab.engine.errors import LabError
from llama2lab.engine.finite import all_finite
from llama2lab.engine.optim import Optim, make_optimizer
from llama2lab.engine.packing import pack
from llama2lab.engine.runs import Run
from llama2lab.model import generate as sampling
from llama2lab.model.generate import generate
from llama2lab.model.logprobs import token_logprobs
from llama2lab.model.network import SIZES, Llama
from llama2lab.stages.ppo import Critic, policy_loss, value_loss
from llama2lab.stages.pretrain import rows_loss
from llama2lab.stages.reward import RewardModel, ranking_loss, safety_auxiliary_loss

NANO, CPU, META = SIZES["nano"], torch.device("cpu"), torch.device("meta")
READS = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::nonzero_numpy")  # int(), bool() ... too
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_")


class Asked(TorchDispatchMode):
    """Counts the operations that a GPU would have to end its work for."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.questions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.counts[name] += 1
        by_mask = name in INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.questions += name in READS or by_mask  # how many a mask picks has to be counted first
        return func(*args, **(kwargs or {}))


@contextmanager
def asked():
    """Within, what is asked in this thread, which does all of the work."""
    with parallel.limited_to(1), Asked() as mode:
        yield mode


def on_meta() -> Llama:
    with META:
        return Llama(NANO)


def test_a_question_on_the_meta_device_is_an_error() -> None:
    """Or the tests below would prove nothing."""
    x = torch.ones(3, device=META)
    for question in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: x[x > 0], lambda: int(x[0])):
        with pytest.raises((RuntimeError, NotImplementedError)):
            question()
    with asked() as mode:
        torch.ones(3)[torch.ones(3) > 0].sum().item()
    assert mode.questions == 2


def test_a_step_of_pretraining_asks_nothing_until_its_end() -> None:
    model, machine = on_meta(), Machine(META, "fp32")
    data = pack([(list(range(10, 10 + n)), [1] * n) for n in range(5, 30)], 32, 0, 3)
    parameters = list(model.parameters())

    def loss_of(rows):
        loss, count = rows_loss(model, data, rows, machine)
        return loss, float(count), {"loss": parallel.figure(loss)}

    parts = parallel.split(range(len(data)), META)
    loss, metrics = parallel.backward(loss_of, parts, parameters, META)
    assert loss.is_meta and metrics["loss"].is_meta and all(p.grad.is_meta for p in parameters)
    parallel.backward(loss_of, parts, parameters, META, add=True)
    assert torch.nn.utils.clip_grad_norm_(parameters, 1.0).is_meta
    assert len(make_optimizer(model, Optim(lr=1e-3)).param_groups) == 4


def test_what_reward_models_learn_from_asks_nothing() -> None:
    model = RewardModel(on_meta()).to(META)
    tokens, lengths = torch.ones(4, 9, dtype=torch.long), torch.tensor([9, 8, 7, 9])
    scores = model(on_device(tokens, META), on_device(lengths, META))
    chosen, rejected = scores.chunk(2)
    safe = torch.tensor([1, 0, -1, -1])  # labels stay where they are known
    loss = ranking_loss(chosen, rejected, torch.zeros(2, device=META)) + safety_auxiliary_loss(scores, safe)
    loss.backward()
    assert model.score.weight.grad.is_meta
    assert safety_auxiliary_loss(scores, torch.full((4,), -1)).is_meta


def test_a_minibatch_of_ppo_asks_nothing() -> None:
    policy, critic = on_meta(), Critic(RewardModel(on_meta())).to(META)
    tokens, wanted = torch.ones(4, 9, dtype=torch.long, device=META), torch.ones(4, 9, dtype=torch.bool)
    mask = wanted.to(META)
    new = token_logprobs(policy, tokens, wanted)
    old = torch.zeros(4, 9, device=META)
    loss, metrics = policy_loss(new, old, old, mask)
    assert loss.is_meta and all(x.is_meta for x in metrics.values())
    loss.backward()
    value_loss(critic(tokens), old, old, mask).backward()


def test_figures_come_over_together() -> None:
    with asked() as mode:
        read = parallel.numbers({"a": torch.tensor(1.5), "b": 2.0, "c": torch.tensor(0.25)})
    assert read == {"a": 1.5, "b": 2.0, "c": 0.25} and list(read) == ["a", "b", "c"]
    with asked() as mode:
        assert all_finite([torch.ones(3), torch.ones(2), torch.arange(3)]) and not all_finite([torch.tensor(torch.inf)])
    assert mode.questions == 2
    assert parallel.figure(torch.tensor(1.5)) == 1.5 and parallel.figure(torch.ones((), device=META)).is_meta


@pytest.fixture(scope="module")
def model() -> Llama:
    model = Llama(NANO, seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.ndim > 1 else 1)
    return model.eval()


def test_a_gpu_is_not_asked_after_every_token(model, monkeypatch) -> None:
    """Whatever the number of tokens between two looks, what is written is the same."""
    prompts = [[1, *range(10, 12 + i % 7)] for i in range(40)]
    settings = {"seed": 3, "precision": "fp32", "eos_id": 20, "batch_size": 12}
    found, questions = {}, {}
    for every in (1, 5, 16):
        monkeypatch.setattr(sampling, "look_every", lambda device, every=every: every)
        with asked() as mode:
            found[every] = [(g.tokens, g.finished) for g in generate(model, prompts, 24, **settings)]
        questions[every] = mode.questions
    assert found[1] == found[5] == found[16] and any(finished for _, finished in found[1])
    assert questions[16] < questions[5] < questions[1]


def test_one_batch_asks_twice_in_thirty_tokens(model, monkeypatch) -> None:
    monkeypatch.setattr(sampling, "look_every", lambda device: sampling.LOOK_EVERY)
    with asked() as mode:
        generate(model, [[1, 30]] * 4, 30, eos_id=-1, precision="fp32")
    of_hidden = mode.counts["aten::max"]  # a CPU looks for tokens that the model does not have, a GPU does not
    assert mode.questions - of_hidden <= 3, mode.counts


def test_a_row_that_is_done_does_not_leave_the_context(model) -> None:
    """One old row ends early and stays, for it is few, while seven fresh ones use all of their tokens: its positions
    went on past the rotary tables."""
    new, eos, context = 32, 2, NANO.max_seq_len
    prompts = [[1] * (context - new)] * 15
    wanted = torch.full((15, new), 9.0)
    wanted[:7, 20] = eos  # seven of the first eight are done together, and seven fresh ones take their places
    wanted[7, 22] = eos
    written = sampling._write(
        model,
        model.lm_head.weight.detach(),
        prompts,
        wanted,
        lambda longest: 8,
        lambda logits, uniform: (uniform.long(), torch.zeros(len(uniform))),
        eos,
        3,
        None,
    )
    assert [len(g.tokens) for g in written] == [21] * 7 + [23] + [new] * 7


# ---- what a GPU is asked of its memory, by a stand-in ----------------------------------------------------------------


class Card:
    """torch.cuda, as of one GPU of 80 GB."""

    def __init__(self, initialized=True):
        self.resets, self.initialized = [], initialized

    def device_count(self):
        return 1

    def is_initialized(self):
        return self.initialized

    def get_device_properties(self, device):
        return type("Properties", (), {"total_memory": 80 * 10**9})

    def reset_peak_memory_stats(self, card):
        self.resets.append(card)

    def max_memory_allocated(self, card):
        return 3_500_000_000


CUDA = torch.device("cuda")


def test_memory_is_that_of_the_device(monkeypatch) -> None:
    card = Card()
    monkeypatch.setattr(device.torch, "cuda", card)
    assert device.device_memory_gb(CUDA) == 80 and device.device_memory_gb(CPU) == 0
    assert device.begin_device_memory()() == 3500 and card.resets == [0]
    device.check_memory(79 * 10**9, "weights", CUDA)
    with pytest.raises(LabError, match=r"^weights take 81\.0 GB, this GPU has 80\.0; choose a smaller model$"):
        device.check_memory(81 * 10**9, "weights", CUDA)
    monkeypatch.setattr(device, "memory_gb", lambda: 16.0)
    with pytest.raises(LabError, match=r"^weights take 17\.0 GB, this machine has 16\.0"):
        device.check_memory(17 * 10**9, "weights")
    assert device.most_memory_gb() == 80
    assert sampling.larger(CUDA) == 9 and sampling.larger(CPU) == 1


def test_a_stage_keeps_what_it_took_on_the_gpu(monkeypatch, tmp_path) -> None:
    for at, card in (("with", Card()), ("without", Card(initialized=False))):
        monkeypatch.setattr(device.torch, "cuda", card)
        with Run(tmp_path / at, {}, say=lambda line: None) as run:
            run.stage("base", lambda folder: {"x": 1.0}, {})
            stage = run.results({})["stages"]["base"]
        assert stage.get("device_memory_mb") == (3500 if at == "with" else None)


def test_a_process_without_a_gpu_has_no_figure_of_one(monkeypatch) -> None:
    monkeypatch.setattr(device.torch, "cuda", Card(initialized=False))
    assert device.begin_device_memory()() is None


def test_batches_are_pinned_for_a_gpu_alone() -> None:
    class Tensor:
        device, calls = CPU, []

        def pin_memory(self):
            self.calls.append("pinned")
            return self

        def to(self, where, **how):
            self.calls.append((where.type, how))
            return self

    x = Tensor()
    on_device(x, CUDA)
    assert x.calls == ["pinned", ("cuda", {"non_blocking": True})]
    y = torch.ones(2)
    assert on_device(y, CPU) is y and on_device(y, META).is_meta


def test_batches_are_whole_where_there_is_one_worker() -> None:
    assert [len(b) for b in parallel.batches_of(range(100), 128, META)] == [100]
