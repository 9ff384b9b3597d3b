"""What a run takes is counted before it is taken."""

import dataclasses

import pytest
import torch

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.parallel import limited_to
from llama2lab.model.checkpoint import expected_shapes
from llama2lab.model.fused import token_nll
from llama2lab.model.lower import KEPT_BYTES
from llama2lab.model.network import SIZES, Llama, ModelConfig
from llama2lab.run import memory
from llama2lab.run.memory import check_fits, kept_numbers, planned, stage_bytes
from llama2lab.run.presets import RealRecipe

CPU = Machine(torch.device("cpu"), "fp32")
SMOLLM2 = ModelConfig(49152, 576, 30, 9, 3, 1536, max_seq_len=8192, tie_embeddings=True)


@pytest.mark.parametrize("config", [SIZES["mini"], dataclasses.replace(SIZES["nano"], n_layers=4, vocab_size=2000)])
def test_what_a_token_keeps_is_what_autograd_keeps(config):
    model, rows, seq = Llama(config), 2, 96
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(config.vocab_size, (rows, seq))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.hidden(tokens)
        loss = token_nll(states.flatten(0, 1), model.lm_head.weight, tokens.flatten()).mean()
    assert loss.requires_grad
    counted = rows * seq * kept_numbers(config, seq) * 4
    assert counted == pytest.approx(sum(kept.values()), rel=0.1)


def test_smollm2_is_counted_as_it_was_measured():
    """docs/your_own_data.md: SFT takes 3.9 GB, PPO 7.3; what Python and torch take themselves is in those."""
    recipe = dataclasses.replace(RealRecipe(), sft=dataclasses.replace(RealRecipe().sft, seq_len=256))
    with limited_to(2):  # workers, as there
        sizes, upper = (planned(recipe, SMOLLM2, CPU, share) for share in (1.0, 0.25))
    assert sizes["sft"] == pytest.approx(3.9e9, rel=0.3) and sizes["ppo"] == pytest.approx(7.3e9, rel=0.3)
    assert all(KEPT_BYTES < upper[stage] < sizes[stage] for stage in sizes)
    parameters = sum(torch.Size(s).numel() for s in expected_shapes(SMOLLM2).values())
    more = stage_bytes(SMOLLM2, CPU, 1, 1, 8, 1) - stage_bytes(SMOLLM2, CPU, 1, 0, 8, 1)
    assert more == 4 * parameters


def test_a_run_that_will_not_fit_is_one_line_with_what_to_change(monkeypatch):
    assert "will take about" in check_fits(RealRecipe(), SMOLLM2, CPU)
    monkeypatch.setattr(memory, "memory_bytes", lambda device: 4e9)
    with pytest.raises(LabError, match=r"ppo will take about \d\.\d GB, cpu has 4\.0; start from a smaller") as e:
        check_fits(RealRecipe(), SMOLLM2, CPU)
    assert "ppo.minibatch" in str(e.value) and "\n" not in str(e.value)
