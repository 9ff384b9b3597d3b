"""Folders that transformers writes and reads, and what is wrong with broken ones."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from llama2lab.engine.errors import LabError
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.checkpoint import load_checkpoint, load_model, load_reward_parts, save_model, save_reward_model
from llama2lab.model.generate import generate
from llama2lab.model.network import SIZES, Llama
from llama2lab.model.tokenizer import encode_text, train_tokenizer

NANO = SIZES["nano"]
TOKENIZER = train_tokenizer(["the mill on the hill"] * 9, 280, chat_template=CHAT_TEMPLATE)


def tokens(batch: int, seq: int) -> torch.Tensor:
    return torch.randint(8, 512, (batch, seq), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path) -> Path:
    save_model(tmp_path / "m", Llama(NANO, seed=1), TOKENIZER)
    return tmp_path / "m"


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_round_trip_is_exact(saved):
    model, tokenizer = load_checkpoint(saved)
    original = Llama(NANO, seed=1)
    assert model.config == NANO
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), original.state_dict().values(), strict=True)
    )
    assert all(p.requires_grad for p in model.parameters())
    assert encode_text(tokenizer, "the mill") == encode_text(TOKENIZER, "the mill")


def test_tied_weights_stay_tied(tmp_path):
    save_model(tmp_path / "m", Llama(replace(NANO, tie_embeddings=True)))
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")
    model = load_model(tmp_path / "m")
    assert model.lm_head.weight is model.embed.weight


def test_transformers_generates_the_same_with_left_padding(saved):
    theirs = AutoModelForCausalLM.from_pretrained(saved).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved)
    assert (theirs.config.pad_token_id, theirs.generation_config.eos_token_id, tokenizer.pad_token) == (3, 2, "<pad>")
    prompts = [[1, 50, 60, 70], [1, 99]]
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    out = theirs.generate(**batch, max_new_tokens=12, do_sample=False)[:, 4:].tolist()
    ours = generate(load_model(saved), prompts, 12, temperature=0, precision="fp32")
    for row, generation in zip(out, ours, strict=True):
        assert row[: len(generation.tokens)] == generation.tokens


def test_reads_what_transformers_writes_in_shards(tmp_path):
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    assert (tmp_path / "m" / "model.safetensors.index.json").exists()
    x = tokens(2, 50)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "m")(x), theirs(x).logits, atol=1e-4, rtol=0)
    next((tmp_path / "m").glob("model-00002*")).unlink()
    with pytest.raises(LabError, match="not in the folder"):
        load_model(tmp_path / "m")


def test_reads_the_older_form_of_config(saved):
    config = json.loads((saved / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}, "head_dim": None}
    (saved / "config.json").write_text(json.dumps(config))
    model = load_model(saved)
    assert (model.config.rope_theta, model.config.rope_scaling["factor"]) == (500.0, 4.0)
    x = tokens(1, 40)
    with torch.no_grad():
        expected = LlamaForCausalLM.from_pretrained(saved)(x).logits
        torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tie", [False, True])
def test_reward_model_opens_in_transformers(tmp_path, tie):
    backbone = Llama(replace(NANO, tie_embeddings=tie), seed=2)
    score = nn.Linear(32, 1, bias=False)
    save_reward_model(tmp_path / "r", backbone, score, TOKENIZER, {"margin": "small"})
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "r").eval()
    backbone2, score2, extra = load_reward_parts(tmp_path / "r")
    x = torch.cat([tokens(2, 20), torch.full((2, 5), 3)], 1)  # right padding: the score is that of token 19
    with torch.no_grad():
        ours = score2(backbone2.hidden(x[:, :20]))[:, -1]
        torch.testing.assert_close(theirs(x, attention_mask=(x != 3).long()).logits, ours, atol=1e-4, rtol=0)
        torch.testing.assert_close(backbone2(x), backbone(x))
    assert extra == {"margin": "small"}
    with pytest.raises(LabError, match="holds a LlamaForSequenceClassification, expected LlamaForCausalLM"):
        load_model(tmp_path / "r")


def test_saving_again_replaces_the_files_and_leaves_others(saved):
    (saved / "rows.jsonl").write_text("{}\n")
    save_model(saved, Llama(NANO, seed=5), TOKENIZER)
    assert torch.equal(load_model(saved).embed.weight, Llama(NANO, seed=5).embed.weight)
    assert (saved / "rows.jsonl").exists()
    assert [p.name for p in saved.parent.iterdir()] == ["m"]


def test_a_failed_save_leaves_the_old_checkpoint(saved, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabError, match="No space left"):
        save_model(saved, Llama(NANO, seed=5))
    assert torch.equal(load_model(saved).embed.weight, Llama(NANO, seed=1).embed.weight)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model_type": "mistral"}, "'mistral'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": 3}, "9 tensors missing"),
        ({"num_hidden_layers": 1}, "9 tensors not of a Llama"),
        ({"vocab_size": 500}, r"embed_tokens.weight has shape \(512, 32\)"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}}, "longrope"),
        ({"num_key_value_heads": 3}, "not divisible by n_kv_heads"),
        ({"architectures": ["LlamaModel"]}, "LlamaModel"),
    ],
)
def test_configs_of_other_models(saved, changes, words):
    edit_config(saved, **changes)
    with pytest.raises(LabError, match=words) as error:
        load_model(saved)
    assert "\n" not in str(error.value)


ODD = [None, "x", -1, 0, 2.5, True, [], {}, 1e400, float("nan"), 10**18]


@pytest.mark.parametrize(
    "field",
    [
        "num_attention_heads",
        "num_key_value_heads",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "vocab_size",
        "max_position_embeddings",
        "head_dim",
        "rms_norm_eps",
        "rope_theta",
        "rope_parameters",
        "rope_scaling",
        "architectures",
        "tie_word_embeddings",
        "llama2lab",
        "model_type",
        "attention_bias",
        "quantization_config",
    ],
)
def test_fields_of_any_wrong_kind_are_one_line(saved, field):
    """Each is refused, or means what transformers takes it for: never another exception."""
    refused = 0
    for value in ODD:
        edit_config(saved, **{field: value})
        try:
            load_model(saved)
        except LabError as e:
            refused += 1
            assert "\n" not in str(e) and "config.json" in str(e)
    assert refused >= 5


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": ["default"]},
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": "2"},
        {"rope_type": "linear", "factor": [2.0]},
        {"rope_type": "linear", "factor": 0.0},
        {"rope_theta": "x"},
        {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0},
        {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0.0},
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0},
        {"rope_type": "dynamic", "factor": 1e308},
        {"rope_theta": 1e-320},
    ],
)
def test_impossible_rotary_settings_are_one_line(saved, rope):
    edit_config(saved, rope_parameters=rope)
    with pytest.raises(LabError, match=r"config.json: ") as error:
        load_model(saved)
    assert "\n" not in str(error.value)


# ---- memory is planned before it is taken
@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_hidden_layers": 300_000}, "num_hidden_layers: input should be less than or equal to 1024"),
        ({"num_hidden_layers": 1000}, "tensors missing"),
        ({"vocab_size": 10**9}, "has shape"),
        ({"hidden_size": 10**9, "head_dim": 8}, "has shape"),
        ({"intermediate_size": 2**31}, "has shape"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(saved, changes, words):
    edit_config(saved, **changes)
    begin = time.process_time()
    with pytest.raises(LabError, match=words):
        load_model(saved)
    assert time.process_time() - begin < 5


def test_a_model_larger_than_the_memory_is_refused(saved, monkeypatch):
    monkeypatch.setattr("llama2lab.engine.device.memory_gb", lambda: 1e-4)
    with pytest.raises(LabError, match=r"the model's weights take 0\.\d GB, this machine has 0\.0"):
        load_model(saved)


def test_a_context_of_a_billion_takes_no_memory(saved):
    x = tokens(1, 30)
    before = load_model(saved)(x)
    edit_config(saved, max_position_embeddings=10**9)
    model = load_model(saved)
    torch.testing.assert_close(model(x), before)
    with torch.no_grad():  # far positions are there when they are asked for
        far = model(x, positions=torch.arange(100_000, 100_030)[None])
    torch.testing.assert_close(far, before, atol=2e-3, rtol=0)
    assert len(model._rope[0]) < 200_000


def test_a_tensor_in_two_shards_is_refused(saved):
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    first = min(tensors)
    save_file(tensors, saved / "a.safetensors")
    save_file({first: 0 * tensors[first]}, saved / "b.safetensors")  # read last, it would win
    index = {"weight_map": {name: "a.safetensors" for name in tensors} | {"other": "b.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LabError, match=rf"b\.safetensors: {re.escape(first)} stands in another file"):
        load_model(saved)


@pytest.mark.parametrize(
    "index",
    [
        '{"weight_map": {"a": 5}}',
        '{"weight_map": []}',
        "[]",
        '{"weight_map": {}}',
        "5",
        '{"weight_map": {"a": null}}',
        "{",
        '{"weight_map": {"a": ""}}',
    ],
)
def test_shard_indexes_of_the_wrong_shape(saved, index):
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(index)
    with pytest.raises(LabError, match=r"model.safetensors.index.json: .*fetch the model again") as error:
        load_model(saved)
    assert "\n" not in str(error.value)


def test_weights_that_are_whole_numbers_are_refused(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int64)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(LabError, match="not quantised"):
        load_model(saved)


def test_damaged_folders(saved, tmp_path):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(LabError, match=r"model.safetensors: damaged or cut short"):
        load_model(saved)
    weights.unlink()
    with pytest.raises(LabError, match=r"has no model.safetensors"):
        load_model(saved)
    (saved / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(LabError, match=r"pytorch_model.bin .* can run code"):
        load_model(saved)
    index = saved / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(LabError, match=r"not in the folder"):
        load_model(saved)
    index.write_text("{}")
    with pytest.raises(LabError, match="broken index"):
        load_model(saved)
    (saved / "config.json").write_text('{\n"model_type": ')
    with pytest.raises(LabError, match=r"config.json: broken JSON \(.*line 2\)"):
        load_model(saved)
    (saved / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(LabError, match="vocab_size: field required"):
        load_model(saved)
    (saved / "config.json").unlink()
    with pytest.raises(LabError, match=r"no config.json"):
        load_model(saved)
    with pytest.raises(LabError, match="is a file"):
        load_model(weights.with_name("pytorch_model.bin"))
    with pytest.raises(LabError, match="no such folder"):
        load_model(tmp_path / "nowhere")


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(LabError, match=r"owner/model: .* \(no route\)"):
        load_model("owner/model")


def test_inverse_frequencies_of_old_files_are_ignored(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, saved / "model.safetensors")
    load_model(saved)


@pytest.mark.realdata
def test_a_real_checkpoint_tells_its_story():
    data = os.environ.get("LLAMA2LAB_DATA")
    if not data or not (Path(data) / "stories260k").is_dir():
        pytest.skip("LLAMA2LAB_DATA names no folder with stories260k")
    folder = Path(data) / "stories260k"
    model, tokenizer = load_checkpoint(folder)
    [story] = generate(model, [[1]], 200, temperature=0, precision="fp32")
    assert story.tokens == json.loads((folder / "greedy_ids.json").read_text())
    assert tokenizer.decode(story.tokens) == (folder / "expected_greedy_200.txt").read_text()
