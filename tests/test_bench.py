"""The benchmark measures what the lab does: in the precision that it picks on this machine, on both sides."""

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from llama2lab.engine import parallel
from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import epoch_batches
from llama2lab.engine.parallel import limited_to
from llama2lab.model.checkpoint import save_model
from llama2lab.model.network import Llama, ModelConfig
from llama2lab.run import bench, bench_tuning, presets, turns
from llama2lab.stages import reward
from llama2lab.stages.ppo import PPOSettings
from llama2lab.stages.pretrain import training_flops_per_token

CPU = torch.device("cpu")
TINY = ModelConfig(64, 16, 1, 2, 1, 32, max_seq_len=128)
TALKING = ModelConfig(320, 16, 1, 2, 1, 32, max_seq_len=2048)  # has room for a tokenizer


@pytest.fixture
def small(monkeypatch):
    """Seconds are not what these tests look at."""
    for name, value in (("ROWS", 2), ("SEQ", 8), ("STEPS", 1), ("BATCHES", (1, 32)), ("NEW_TOKENS", 2)):
        monkeypatch.setattr(bench, name, value)
    for name, value in (("CONVERSATIONS", 12), ("PAIRS", 6), ("WORDS", 2000), ("ANSWER_TOKENS", 3)):
        monkeypatch.setattr(bench_tuning, name, value)
    mini = presets.PRESETS["mini"]
    rlhf = replace(
        mini.rlhf,
        helpfulness=replace(mini.rlhf.helpfulness, batch_pairs=3),
        ppo=PPOSettings(batch=8, minibatch=4, replay_tokens=256),
    )
    monkeypatch.setitem(presets.PRESETS, "mini", replace(mini, rlhf=rlhf))
    monkeypatch.setattr(bench, "MODELS", {"tiny": TALKING})
    monkeypatch.setattr(bench, "describe_machine", dict)
    monkeypatch.setattr(turns, "matmul_ceiling", lambda device, dtype: 1e12)
    pick(monkeypatch, "fp32")


def pick(monkeypatch, precision):
    """The lab picks this precision from now on."""
    monkeypatch.setattr(bench, "this_machine", lambda: Machine(CPU, precision))
    monkeypatch.setattr(
        "llama2lab.model.generate.pick_precision", lambda device, name: precision if name == "auto" else name
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_sides_compute_in_the_precision_that_the_lab_picks(precision, small, tmp_path, monkeypatch, capsys):
    seen = {"ours": [], "theirs": [], "ceiling": [], "autocast": []}

    def ours(model, prompts, n, **settings):
        seen["ours"].append(settings["precision"])
        return real_generate(model, prompts, n, **settings)

    def theirs(self, tokens, **settings):
        seen["theirs"].append(self.dtype)
        return tokens

    def forward(self, *args, **kwargs):
        seen["autocast"].append(torch.is_autocast_enabled("cpu"))
        return real_forward(self, *args, **kwargs)

    def hidden(self, *args, **kwargs):
        if torch.is_grad_enabled():  # training
            seen["autocast"].append(torch.is_autocast_enabled("cpu"))
        return real_hidden(self, *args, **kwargs)

    def ceiling(device, dtype):
        seen["ceiling"].append(dtype)
        return 1e12

    real_generate, real_forward, real_hidden = bench.generate, LlamaForCausalLM.forward, Llama.hidden
    monkeypatch.setattr(bench, "generate", ours)
    monkeypatch.setattr(LlamaForCausalLM, "generate", theirs)
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    monkeypatch.setattr(Llama, "hidden", hidden)
    monkeypatch.setattr(turns, "matmul_ceiling", ceiling)
    monkeypatch.setattr(bench, "MODELS", {"tiny": TINY})
    pick(monkeypatch, precision)
    result = bench.run_bench(tmp_path / "bench.json", repeats=1, sections=("training", "generation"))
    dtype = turns.DTYPES[precision]
    assert set(seen["ours"][:3]) == {"fp32"} and set(seen["ours"][3:]) == {precision}  # one row, then 32
    assert set(seen["theirs"][:3]) == {torch.float32} and set(seen["theirs"][3:]) == {dtype}
    assert seen["ceiling"] == [dtype] and set(seen["autocast"]) == {precision == "bf16"}
    assert result["precision"] == result["training"][0]["precision"] == precision
    assert [row["precision"] for row in result["generation"]] == ["fp32", precision]
    assert result["sft"] == result["reward"] == result["ppo"] == result["workers"] == []
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert f"this machine's precision is {precision}" in capsys.readouterr().out


class Trainer:
    """Stands for TRL's trainers: keeps what it was given, and takes the steps that its settings ask for."""

    made: ClassVar[list]

    def __init__(self, model, args, train_dataset, processing_class, callbacks):
        self.model, self.args, self.rows, self.callbacks = model, args, list(train_dataset), callbacks
        self.made.append(self)

    def remove_callback(self, callback):
        pass

    def train(self):
        for callback in self.callbacks:
            callback.on_train_begin()
        for _ in range(0, len(self.rows), self.args.per_device_train_batch_size):
            for callback in self.callbacks:
                callback.on_step_end()


class SFTTrainer(Trainer):
    made: ClassVar[list]


class RewardTrainer(Trainer):
    made: ClassVar[list]


@pytest.fixture
def trl(monkeypatch):
    fake = SimpleNamespace(
        SFTTrainer=SFTTrainer, SFTConfig=SimpleNamespace, RewardTrainer=RewardTrainer, RewardConfig=SimpleNamespace
    )
    SFTTrainer.made, RewardTrainer.made = [], []
    monkeypatch.setattr(bench_tuning, "find_trl", lambda: fake)
    return fake


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trl_gets_our_weights_rows_precision_and_optimiser(precision, small, trl, monkeypatch, capsys):
    pick(monkeypatch, precision)
    read = []
    real = bench_tuning.train_reward

    def train_reward(chat, tokenizer, rows, settings, seed, machine):
        model, metrics = real(chat, tokenizer, rows, settings, seed, machine)
        read.append((metrics["steps"], metrics["head"], machine.precision))
        return model, metrics

    monkeypatch.setattr(bench_tuning, "train_reward", train_reward)
    asked = []
    for module in (bench_tuning, reward):
        monkeypatch.setattr(module, "epoch_batches", lambda *args: asked.append(args) or epoch_batches(*args))
    result = bench.run_bench(repeats=1, sections=("sft", "reward"))
    ours = bench.pair(TALKING, CPU)[1].state_dict()
    mini = presets.PRESETS["mini"]
    for section, made, optim in (
        ("sft", SFTTrainer.made, mini.sft.optim),
        ("reward", RewardTrainer.made, mini.rlhf.helpfulness.optim),
    ):
        [row] = result[section]
        assert row["precision"] == precision and row["trl"] > 0 and 0 < row["share"] < 1
        assert row["ratio"] > 0 and len({id(trainer.model) for trainer in made}) == 3  # a copy in each turn
        for trainer in made:
            assert trainer.args.bf16 == (precision == "bf16") and trainer.args.use_cpu
            assert (trainer.args.save_strategy, trainer.args.report_to) == ("no", "none")
            assert (trainer.args.learning_rate, trainer.args.weight_decay) == (optim.lr, optim.weight_decay)
            weights = trainer.model.state_dict()
            for name in ("model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"):
                assert torch.equal(weights[name], ours[name])
    assert len(asked) == 4 and all(args == asked[0] for args in asked)  # the same batches: TRL's, and ours by turns
    assert read == [(2, "linear", precision)] * 3  # as many steps as TRL's: 6 pairs, 3 a batch
    chats, pairs = SFTTrainer.made[0].rows, RewardTrainer.made[0].rows
    assert len(chats) == 12 and all(r["labels"][0] == -100 and r["labels"][-1] == 2 for r in chats)  # answers alone
    assert isinstance(RewardTrainer.made[0].model, LlamaForSequenceClassification)
    assert len(pairs) == 6 and all(r["chosen_ids"][-1] == 2 and 0 <= r["margin"] <= 1 for r in pairs)
    assert "trl" in capsys.readouterr().out


def test_without_trl_the_row_says_what_to_install(small, monkeypatch, capsys):
    monkeypatch.setattr(bench_tuning, "find_trl", lambda: None)
    result = bench.run_bench(repeats=1, sections=("sft", "reward"))
    printed = capsys.readouterr().out
    assert printed.count("no peer installed: pip install 'llama2lab[peers]'") == 2 and "ratio" not in printed
    for [row] in (result["sft"], result["reward"]):
        assert row["ours"] > 0 and row["trl"] is None and row["ratio"] is None


@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install 'llama2lab[peers]'"
)
def test_trl_trains_in_as_many_steps(small, monkeypatch):
    import trl

    steps = {}
    for kind in (trl.SFTTrainer, trl.RewardTrainer):

        def train(self, *args, real=kind.train, **kwargs):
            result = real(self, *args, **kwargs)
            steps[type(self).__name__] = self.state.global_step
            assert self.accelerator.mixed_precision == "no" and not self.args.gradient_checkpointing
            return result

        monkeypatch.setattr(kind, "train", train)
    result = bench.run_bench(repeats=1, sections=("sft", "reward"))
    assert steps == {"SFTTrainer": 2, "RewardTrainer": 2}
    assert result["sft"][0]["ratio"] > 0 and result["reward"][0]["ratio"] > 0


def test_ppo_measures_a_whole_iteration(small, monkeypatch, capsys):
    seen = []
    real = bench_tuning.ppo

    def ppo(policy, *args, **kwargs):
        before = policy.lm_head.weight.clone()
        metrics = real(policy, *args, **kwargs)
        seen.append((metrics["iterations"], metrics["log"][0]["length"], torch.equal(before, policy.lm_head.weight)))
        return metrics

    monkeypatch.setattr(bench_tuning, "ppo", ppo)
    [row] = bench.run_bench(repeats=1, sections=("ppo",))["ppo"]
    assert set(seen) == {(1, 3.0, False)}  # the policy learns
    assert row["ours"] > 0 and row["ratio"] is None and row["precision"] == "fp32"
    assert "answers/s" in capsys.readouterr().out


def test_speed_by_workers_only_where_there_are_more_than_two(small, monkeypatch, capsys):
    most, threads = 6, []
    real = bench._seconds_of_ours

    def seconds(ours, machine):
        threads.append(parallel.workers(CPU))
        real(ours, machine)
        return 1.0 / threads[-1]

    monkeypatch.setattr(bench, "_seconds_of_ours", seconds)
    with limited_to(2):
        assert bench.run_bench(repeats=2, sections=("workers",))["workers"] == [] and not threads
        assert "worker" not in capsys.readouterr().out
    with limited_to(most):
        rows = bench.run_bench(repeats=2, sections=("workers",))["workers"]
    assert threads == [1, 2, 4, 6] * 3  # by turns, the first of which does not count
    assert [(row["workers"], row["speedup"]) for row in rows] == [(n, pytest.approx(n)) for n in (1, 2, 4, 6)]
    assert [row["ours"] for row in rows] == [pytest.approx(16 * n) for n in (1, 2, 4, 6)]
    assert "training, workers: 6" in capsys.readouterr().out


def test_a_ratio_is_the_median_of_the_turns_ratios():
    ours, theirs = iter([9, 1.0, 4.0, 2.0]), iter([9, 3.0, 8.0, 2.0])  # the first turn does not count
    took = turns.take_turns({"ours": lambda: next(ours), "peer": lambda: next(theirs)}, 3)
    assert took.seconds == {"ours": [1.0, 4.0, 2.0], "peer": [3.0, 8.0, 2.0]}
    row = turns.compared(12, took, "peer", "fp32")
    assert row == {"ours": 6.0, "peer": 4.0, "ratio": 2.0, "precision": "fp32"}  # of 3, 2 and 1; the medians' is 1.5


def test_turns_alternate():
    order = []
    turns.take_turns({"ours": lambda: order.append("a") or 1.0, "peer": lambda: order.append("b") or 1.0}, 2)
    assert order == ["a", "b"] * 3


def test_only_the_steps_of_a_loop_are_timed(monkeypatch):
    clock, model = [0.0], torch.nn.Linear(1, 1)
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def loss(rows):
        clock[0] += 1
        return model(torch.ones(1, 1)).sum(), 1.0, {}

    def train():
        clock[0] += 10
        bench.fit(model, lambda step: [0], loss, 3, Optim(lr=0.1), Machine(CPU, "fp32"))
        clock[0] += 10

    assert turns.seconds_of_loop(train, CPU) == 3
    assert turns.seconds_of(train, CPU) == 23


def test_operations_of_tokens_that_predict_nothing():
    """By hand: a document of n tokens takes n times what `training_flops_per_token` says, less the head's 6 dim vocab
    operations for each token whose prediction is not asked for."""
    whole = 3 * training_flops_per_token(TINY, 3) + 5 * training_flops_per_token(TINY, 5)
    assert bench_tuning.training_flops(TINY, [3, 5], 8) == whole
    assert bench_tuning.training_flops(TINY, [3, 5], 1) == whole - 7 * 6 * 16 * 64


def test_nothing_is_asked_of_the_network(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with turns.offline():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()


def test_mistakes_are_one_line(small, tmp_path):
    with pytest.raises(LabError, match=r"cannot write .*; give another file") as told:
        bench.run_bench(tmp_path, repeats=1, sections=("training",))  # a folder
    assert "\n" not in str(told.value)
    with pytest.raises(LabError, match="unknown section sftt; choose of training,"):
        bench.run_bench(sections=("training", "sftt"))
    with pytest.raises(LabError, match="unknown section ''; choose of"):
        bench.run_bench(sections=("",))


@pytest.mark.long
@pytest.mark.slow
def test_a_checkpoint_is_measured_beside_transformers(small, monkeypatch, tmp_path, capsys):
    from llama2lab.run import bench_checkpoint as checkpoint

    save_model(tmp_path / "m", Llama(TALKING))
    monkeypatch.setattr(checkpoint, "TRAINED", bench.Work(2, 8, 1))
    monkeypatch.setattr(checkpoint, "this_machine", lambda: Machine(CPU, "fp32"))
    monkeypatch.setattr(checkpoint, "describe_machine", dict)
    asked = []

    def loaded(side, place, dtype):
        asked.append((side, dtype))
        return {"seconds": 1.0 if side == "ours" else 3.0, "peak_mb": 5.0}

    real = checkpoint.loaded
    monkeypatch.setattr(checkpoint, "loaded", loaded)
    found = checkpoint.bench_checkpoint(str(tmp_path / "m"), tmp_path / "bench.json", repeats=1)
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    assert [row["ratio"] for row in found["loading"]] == [3.0, 3.0]
    assert asked[:4] == [("ours", "float32"), ("transformers", "float32")] * 2
    assert [row["batch"] for row in found["generation"]] == [1, 16] and found["training"][0]["ratio"] > 0
    out = capsys.readouterr().out
    assert "loading bfloat16" in out and "generation  16 rows" in out and "training 2 x 8" in out
    told = real("ours", tmp_path / "m", "bfloat16")
    assert told["seconds"] > 0 and told["peak_mb"] >= 0
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(LabError, match=r"loading failed: .*has no config.json"):
        real("ours", tmp_path / "m", "bfloat16")
    assert real("transformers", tmp_path / "m", "bfloat16") is None
