"""The benchmark measures what the lab does: in the precision that it picks on this machine, on both sides."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

from llama2lab.engine.device import Machine
from llama2lab.model.network import ModelConfig
from llama2lab.run import bench


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_sides_compute_in_the_precision_that_the_lab_picks(precision, tmp_path, monkeypatch, capsys):
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

    def ceiling(device, dtype):
        seen["ceiling"].append(dtype)
        return 1e12

    real_generate, real_forward = bench.generate, LlamaForCausalLM.forward
    monkeypatch.setattr(bench, "generate", ours)
    monkeypatch.setattr(LlamaForCausalLM, "generate", theirs)
    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    monkeypatch.setattr(bench, "matmul_ceiling", ceiling)
    monkeypatch.setattr(bench, "this_machine", lambda: Machine(torch.device("cpu"), precision))
    monkeypatch.setattr(
        "llama2lab.model.generate.pick_precision", lambda device, name: precision if name == "auto" else name
    )
    monkeypatch.setattr(bench, "describe_machine", dict)
    monkeypatch.setattr(bench, "MODELS", {"tiny": ModelConfig(64, 16, 1, 2, 1, 32, max_seq_len=128)})
    for name, value in (("ROWS", 2), ("SEQ", 8), ("BATCHES", (1, 32)), ("NEW_TOKENS", 2)):
        monkeypatch.setattr(bench, name, value)
    result = bench.run_bench(tmp_path / "bench.json", repeats=1)
    dtype = bench.DTYPES[precision]
    assert set(seen["ours"][:3]) == {"fp32"} and set(seen["ours"][3:]) == {precision}  # one row, then 32
    assert set(seen["theirs"][:3]) == {torch.float32} and set(seen["theirs"][3:]) == {dtype}
    assert seen["ceiling"] == [dtype] and set(seen["autocast"]) == {precision == "bf16"}
    assert result["precision"] == result["training"][0]["precision"] == precision
    assert [row["precision"] for row in result["generation"]] == ["fp32", precision]
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert f"this machine's precision is {precision}" in capsys.readouterr().out
