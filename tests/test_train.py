"""The trainer: schedule, packing, loss masks, and resume equal to no interruption."""

import json
import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.loop import fit, resumable_loop
from llama2lab.engine.optim import Optim, cosine_lr, make_optimizer
from llama2lab.engine.packing import epoch_batches, pack
from llama2lab.engine.state import load_state, module_tensors, restore_module, save_state
from llama2lab.model.checkpoint import save_model
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.stages.pretrain import fit_packed, packed_lm_loss

CPU = Machine(torch.device("cpu"), "fp32")

TINY = ModelConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, max_seq_len=64)


def tiny():
    return Llama(TINY)


def documents(n=40, seed=0, longest=20):
    g = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(n):
        length = int(torch.randint(2, longest, (1,), generator=g))
        result.append((torch.randint(4, 64, (length,), generator=g).tolist(), [1] * length))
    return result


def test_schedule_warms_up_and_ends_at_ten_percent():
    optim = Optim(lr=1.0, warmup=0.1)
    rates = [cosine_lr(s, 100, optim) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_norms_are_not_decayed():
    groups = make_optimizer(tiny(), Optim(lr=1e-3)).param_groups
    assert all(p.dim() >= 2 for p in groups[0]["params"]) and groups[0]["weight_decay"] == 0.1
    assert all(p.dim() == 1 for p in groups[1]["params"]) and groups[1]["weight_decay"] == 0.0


@given(st.lists(st.integers(1, 70), min_size=1, max_size=40), st.integers(0, 5))
def test_packing_keeps_every_token_once(lengths, seed):
    docs = [([4 + i % 50] * n, [i % 2] * n) for i, n in enumerate(lengths)]
    packed = pack(docs, 32, seed, pad_id=3)
    real = packed.segments > 0
    assert int(real.sum()) == sum(lengths)
    assert sorted(packed.tokens[real].tolist()) == sorted(t for ids, _ in docs for t in ids)
    assert int(packed.loss_mask.sum()) == sum(sum(m) for _, m in docs)
    assert (packed.tokens[~real] == 3).all() and not packed.loss_mask[~real].any()


def test_packed_documents_do_not_see_each_other():
    """The loss of packed documents is that of each document alone."""
    model, docs = tiny(), documents(6)
    packed = pack(docs, 64, 0, 3)
    loss, count = packed_lm_loss(model, packed.tokens, packed.segments, packed.loss_mask)
    alone, n = 0.0, 0
    for ids, _ in docs:
        logits = model(torch.tensor([ids]))[0, :-1]
        alone += torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        n += len(ids) - 1
    assert int(count) == n
    assert loss.item() == pytest.approx(alone / n, abs=1e-4)


def test_loss_counts_only_masked_tokens():
    model = tiny()
    ids = list(range(4, 16))
    packed = pack([(ids, [0] * 8 + [1] * 4)], 16, 0, 3)
    loss, count = packed_lm_loss(model, packed.tokens, packed.segments, packed.loss_mask)
    logits = model(torch.tensor([ids]))[0]
    expected = torch.nn.functional.cross_entropy(logits[7:11], torch.tensor(ids[8:12]))
    assert int(count) == 4
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


def test_nothing_to_train_on_is_said():
    with pytest.raises(LabError, match="empty"):
        epoch_batches(0, 4, 0)


def test_epochs_are_other_shuffles_of_all_rows():
    rows = epoch_batches(10, 4, 1)
    first = [i for s in range(3) for i in rows(s)]
    second = [i for s in range(3, 6) for i in rows(s)]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert rows(1) == first[4:8]  # a step's rows do not depend on what was asked before


def test_batches_by_length_hold_all_rows_and_waste_less():
    rng = random.Random(0)
    lengths = [rng.randint(1, 60) for _ in range(200)]
    plain, sorted_ = epoch_batches(200, 8, 3), epoch_batches(200, 8, 3, lengths)
    assert sorted(i for s in range(25) for i in sorted_(s)) == list(range(200))

    def padded(batches):
        return sum(len(b) * max(lengths[i] for i in b) for b in map(batches, range(25)))

    assert padded(sorted_) < 0.75 * padded(plain)
    assert [sorted_(s) for s in range(25)] != [sorted_(s) for s in range(25, 50)]


def test_the_last_gain_learns_at_a_rate_of_its_own():
    """Adam's first step is as long as the learning rate."""
    model = tiny()
    before = {name: w.detach().clone() for name, w in model.named_parameters()}
    optim = Optim(1e-3, weight_decay=0.0, eps=1e-12, gain_lr=7.0)
    fit_packed(model, pack(documents(), 32, 0, 3), 0.01, 64, optim, 0, CPU)
    for name, w in model.named_parameters():
        step = (w.detach() - before[name]).abs().max().item()
        assert step == pytest.approx(7e-3 if name == "norm.weight" else 1e-3, rel=1e-3), name


class Killed(BaseException):
    """As sudden as kill -9."""


@pytest.mark.parametrize("kill_at", [1, 5, 11])
def test_resume_equals_no_interruption(tmp_path, monkeypatch, kill_at):
    monkeypatch.setattr("llama2lab.engine.loop.SAVE_EVERY", 0.0)
    data, optim = pack(documents(), 32, 0, 3), Optim(lr=1e-2)

    def train(folder, on_step=None):
        model = tiny()
        log = fit_packed(model, data, 2.0, 64, optim, 7, CPU, folder, "t", on_step)
        return model.state_dict(), [e["loss"] for e in log]

    undisturbed, losses = train(None)

    def die(step):
        if step == kill_at:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path, die)
    resumed, resumed_losses = train(tmp_path)
    assert resumed_losses == losses
    assert all(torch.equal(undisturbed[k], resumed[k]) for k in undisturbed)


def test_training_learns_and_saved_state_is_whole_or_absent(tmp_path):
    model, data = tiny(), pack([([4, 5, 6, 7, 8, 9], [1] * 6)] * 20, 32, 0, 3)
    log = fit_packed(model, data, 30, 64, Optim(lr=1e-2), 0, CPU, tmp_path)
    assert log[-1]["loss"] < 0.1 < log[0]["loss"]
    save_state(tmp_path / "s.safetensors", {"x": torch.ones(3)}, {"step": 2})
    tensors, facts = load_state(tmp_path / "s.safetensors")
    assert facts == {"step": 2} and tensors["x"].tolist() == [1, 1, 1]
    (tmp_path / "s.safetensors").write_bytes((tmp_path / "s.safetensors").read_bytes()[:-4])
    assert load_state(tmp_path / "s.safetensors") is None


def test_a_loss_that_is_not_a_number_stops_with_a_cure():
    model = tiny()
    with pytest.raises(LabError, match="lower the learning rate"):
        fit(
            model,
            lambda step: [0, 1],
            lambda rows: (model(torch.tensor([[5, 6]])).sum() * math.nan, 1.0, {}),
            3,
            Optim(lr=1.0),
            CPU,
        )


# ---- numbers that are none -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss", "pg_loss", "kl", "grad_norm", "seconds"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_any_metric_that_is_not_finite_stops_any_loop_before_its_state_is_kept(tmp_path, monkeypatch, name, value):
    monkeypatch.setattr("llama2lab.engine.loop.SAVE_EVERY", 0.0)
    steps = []

    def step(number):
        steps.append(number)
        return {"score": 1.0, name: value if number == 2 else 0.5}

    with pytest.raises(LabError, match=rf"PPO, iteration 3 of 9: .*{name} is -?(nan|inf); lower the learning rate"):
        resumable_loop(9, step, lambda: {"w": torch.zeros(2)}, lambda saved: None, tmp_path, "PPO", "iteration")
    assert steps == [0, 1, 2]
    assert len(load_state(tmp_path / "resume" / "state.safetensors")[1]["log"]) == 2  # nothing of the third


@pytest.mark.parametrize("folder", [True, False])
def test_weights_that_are_not_finite_are_neither_saved_nor_given_back(tmp_path, folder):
    """Every metric may be finite when the last step spoils the weights."""
    model = tiny()

    def spoil(step):
        if step == 3:
            with torch.no_grad():
                model.layers[1].attention_norm.weight[3] = math.inf

    with pytest.raises(
        LabError,
        match=r"t, step 4 of 4: model\.layers\.1\.attention_norm\.weight: 1 of 32 values are "
        r"not finite \(inf\); lower",
    ):
        fit(
            model,
            lambda step: [0, 1],
            lambda rows: (model(torch.tensor([[5, 6]])).square().mean(), 1.0, {}),
            4,
            Optim(lr=1e-3),
            CPU,
            tmp_path if folder else None,
            "t",
            spoil,
        )
    assert not (tmp_path / "resume" / "state.safetensors").exists()


def test_a_metric_that_cannot_be_told_is_left_out(tmp_path):
    log = resumable_loop(
        2,
        lambda step: {"loss": 1.0, "explained_variance": None if step else 0.5},
        dict,
        lambda saved: None,
        tmp_path,
        "t",
    )
    assert log == [{"loss": 1.0, "explained_variance": 0.5}, {"loss": 1.0}]


def test_a_checkpoint_that_is_not_finite_is_not_written(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    with pytest.raises(LabError, match=r"model is not saved: model\.norm\.weight: 1 of 32 values are not finite"):
        save_model(tmp_path / "m", model)
    assert not (tmp_path / "m").exists()


# ---- damaged states --------------------------------------------------------------------------------------------


@pytest.fixture
def every_step_is_saved(monkeypatch):
    monkeypatch.setattr("llama2lab.engine.loop.SAVE_EVERY", 0.0)


def trained(folder, steps=6, what="t"):
    return resumable_loop(
        steps,
        lambda step: {"loss": 1.0 / (step + 1)},
        lambda: {"w": torch.arange(8.0), "n": torch.tensor(3)},
        lambda saved: saved["w"] + saved["n"],
        folder,
        what,
    )


def test_every_flipped_bit_of_a_state_is_noticed_or_costs_the_stage_its_restart(tmp_path, every_step_is_saved):
    trained(tmp_path)
    path = tmp_path / "resume" / "state.safetensors"
    whole, noticed = path.read_bytes(), 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        try:
            found = load_state(path)
        except LabError as e:
            noticed += 1
            assert str(path) in str(e) and "remove" in str(e) and "\n" not in str(e)
        else:  # the header's length, or padding that says nothing
            assert found is None or (found[0]["w"].tolist() == list(range(8)) and found[1]["what"] == "t"), at
    assert noticed > 0.95 * len(whole)


def test_a_state_that_is_cut_short_costs_the_stage_its_restart(tmp_path, capsys, every_step_is_saved):
    trained(tmp_path)
    path = tmp_path / "resume" / "state.safetensors"
    whole = path.read_bytes()
    for length in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert load_state(path) is None
        assert len(trained(tmp_path)) == 6 and "cut short: this stage starts over" in capsys.readouterr().err


@pytest.mark.parametrize(
    "tensors, facts",
    [
        ({"w": torch.zeros(8)}, {"what": "t", "log": []}),
        ({}, {"what": "t", "log": []}),
        ({"w": torch.zeros(2), "n": torch.zeros(3)}, {"what": "t", "log": [{}]}),
        ({"w": torch.zeros(8), "n": torch.tensor(3)}, {"what": "t"}),
        ({"w": torch.zeros(8), "n": torch.tensor(3)}, {"what": "t", "log": 5}),
        ({"w": torch.zeros(8), "n": torch.tensor(3)}, {"what": "t", "log": [{"loss": "x"}]}),
        ({"w": torch.zeros(8), "n": torch.tensor(3)}, {"what": "t", "log": [{"loss": 1.0}] * 7}),
        ({"w": torch.zeros(8), "n": torch.tensor(3)}, {}),
        ({"w": torch.zeros(8)}, []),
    ],
)
def test_a_state_of_another_shape_is_one_line(tmp_path, tensors, facts):
    save_state(tmp_path / "resume" / "state.safetensors", tensors, facts)
    with pytest.raises(LabError, match=r"state\.safetensors.*; remove .*resume and give the same command again"):
        trained(tmp_path)


def test_states_without_a_sum_and_of_another_training_are_read_as_before(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "resume").mkdir()
    path = tmp_path / "resume" / "state.safetensors"
    facts = {"what": "t", "log": [{"loss": 9.0}] * 4}
    save_file({"w": torch.zeros(8), "n": torch.tensor(3)}, path, {"facts": json.dumps(facts)})
    assert [row["loss"] for row in trained(tmp_path)] == [9.0] * 4 + [0.2, 0.166667]
    assert [row["loss"] for row in trained(tmp_path, 1, "another")] == [1.0]


def test_missing_moments_of_an_optimiser_are_noticed():
    model = tiny()
    optimizer = make_optimizer(model, Optim(1e-3))
    model(torch.tensor([[5, 6]])).sum().backward()
    optimizer.step()
    tensors = module_tensors("m", model, optimizer)
    del tensors["m.adam.exp_avg_sq.norm.weight"]
    with pytest.raises(KeyError):
        restore_module("m", model, make_optimizer(model, Optim(1e-3)), tensors)


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    """As two notebooks would that train the same."""
    from concurrent.futures import ThreadPoolExecutor

    def step(number):
        with ThreadPoolExecutor(1) as pool, pytest.raises(LabError, match="in use by another thread"):
            pool.submit(trained, tmp_path).result()
        return {"loss": 1.0}

    assert len(resumable_loop(1, step, lambda: {"w": torch.zeros(1)}, lambda saved: None, tmp_path, "t")) == 1
