"""Checkpoints are transformers folders: AutoModel opens ours, and we open any Llama's.

    config.json  model.safetensors  generation_config.json  tokenizer.json ...

Rotary pairs lie in halves, as everywhere in transformers; Meta's own files interleave them and have to go through
transformers' conversion first. Only safetensors are read: unpickling a file can run code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llama2lab.errors import LabError, first_line
from llama2lab.finite import check_tensors
from llama2lab.model import Block, Llama, ModelConfig
from llama2lab.runs import check_file
from llama2lab.tokenizer import load_tokenizer

CAUSAL, REWARD = "LlamaForCausalLM", "LlamaForSequenceClassification"
EXTRA = "llama2lab"  # the key of config.json for what transformers has no place for


def save_model(path: str | Path, model: Llama, tokenizer: Any = None) -> None:
    """Write the folder `path`, each file whole or not at all; other files in it stay. LabError if it cannot."""
    _write_folder(Path(path), _config_json(model.config, CAUSAL, tokenizer), _to_hf(model), {}, tokenizer)


def save_reward_model(path: str | Path, backbone: Llama, score: nn.Linear, tokenizer: Any,
                      extra: dict | None = None) -> None:
    """Write a reward model that AutoModelForSequenceClassification opens: one label, read at the last token.

    `extra` (JSON) is kept in config.json. The backbone's own language-model head goes to a file of its own.
    """
    config = _config_json(backbone.config, REWARD, tokenizer)
    config |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, EXTRA: extra or {}}
    tensors = _to_hf(backbone)
    head = {name: tensors.pop(name) for name in ["lm_head.weight"] if name in tensors}
    tensors["score.weight"] = score.weight.detach()
    _write_folder(Path(path), config, tensors, head, tokenizer)


def load_model(path_or_name: str | Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The language model of a transformers folder or of a hub name. LabError, one line, for whatever is wrong."""
    folder = find_folder(path_or_name)
    config, _ = _read_config(folder, CAUSAL)
    return _build(config, _read_tensors(folder), folder, dtype)


def load_checkpoint(path_or_name: str | Path) -> tuple[Llama, Any]:
    """The language model and its tokenizer."""
    folder = find_folder(path_or_name)
    return load_model(folder), load_tokenizer(folder)


def load_reward_parts(path_or_name: str | Path) -> tuple[Llama, nn.Linear, dict]:
    """(backbone, score, extra) as given to `save_reward_model`; score is a linear map (dim -> 1) without bias.

    The backbone's language-model head is zero if the folder has none, as in folders from elsewhere.
    """
    folder = find_folder(path_or_name)
    config, raw = _read_config(folder, REWARD)
    tensors = _read_tensors(folder)
    weight = tensors.pop("score.weight", None)
    if weight is None or weight.shape != (1, config.dim):
        found = "missing" if weight is None else f"of shape {tuple(weight.shape)}"
        raise LabError(f"{folder}: score.weight is {found}, expected (1, {config.dim}); give a reward model "
                       "with one label")
    if not config.tie_embeddings:
        head = folder / "lm_head.safetensors"
        tensors |= _read_file(head) if head.exists() else {"lm_head.weight": torch.zeros(config.vocab_size, config.dim)}
    score = nn.Linear(config.dim, 1, bias=False)
    score.weight = nn.Parameter(weight.float())
    return _build(config, tensors, folder, torch.float32), score, raw.get(EXTRA, {})


def find_folder(path_or_name: str | Path) -> Path:
    """The folder itself, or the local copy of the hub's model of that name, fetched if need be."""
    path, name = Path(path_or_name), str(path_or_name)
    if path.is_dir():
        return path
    if path.exists():
        raise LabError(f"{path} is a file; give the folder of a model")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise LabError(f"{path}: no such folder; give the folder of a model or a name on the hub (owner/model)")
    from huggingface_hub import snapshot_download  # only here, for nothing else needs the network

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model"]))
    except Exception as e:  # network, missing, gated, ...: the hub's own errors are many
        raise LabError(f"{name}: no such folder, and not to be had from the hub ({first_line(e)}); check the path, "
                       "the name and the network") from e


# --- names and shapes -------------------------------------------------------------------------------------------


def _to_hf(model: Llama) -> dict[str, Tensor]:
    """Tensors under transformers' names; queries, keys and values apart."""
    c = model.config
    split = [c.n_heads * c.head_size, c.n_kv_heads * c.head_size, c.n_kv_heads * c.head_size]
    tensors = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    if not c.tie_embeddings:
        tensors["lm_head.weight"] = model.lm_head.weight
    for i, block in enumerate(cast(list[Block], model.layers)):
        parts = dict(zip("qkv", block.attention.qkv.weight.split(split)))
        layer = {f"self_attn.{name}_proj": part for name, part in parts.items()} | {
            "self_attn.o_proj": block.attention.out.weight,
            "mlp.gate_proj": block.ffn.gate.weight, "mlp.up_proj": block.ffn.up.weight,
            "mlp.down_proj": block.ffn.down.weight,
            "input_layernorm": block.attention_norm.weight, "post_attention_layernorm": block.ffn_norm.weight,
        }
        tensors |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in layer.items()}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _build(config: ModelConfig, tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> Llama:
    """A model with these tensors (transformers' names); LabError if one is missing, left over or misshapen."""
    with torch.device("meta"):
        model = Llama(config)
        expected = {name: tuple(tensor.shape) for name, tensor in _to_hf(model).items()}
    # Old files carry the rotary frequencies, and some the tied head a second time.
    ignored = {n for n in tensors if n.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings:
        ignored.add("lm_head.weight")
    for kind, names in (("missing", expected.keys() - tensors.keys()),
                        ("not of a Llama", tensors.keys() - expected.keys() - ignored)):
        if names:
            raise LabError(f"{folder}: {len(names)} tensors {kind}, e.g. {min(names)}; config.json and weights do not "
                           "belong together or the download is incomplete")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise LabError(f"{folder}: {name} has shape {tuple(tensors[name].shape)}, config.json says {shape}; "
                           "config.json and weights do not belong together")
    t = {name: tensors[name].to(dtype) for name in expected}
    state = {"embed.weight": t["model.embed_tokens.weight"], "norm.weight": t["model.norm.weight"]}
    state["lm_head.weight"] = state["embed.weight"] if config.tie_embeddings else t["lm_head.weight"]
    for i in range(config.n_layers):
        hf, ours = f"model.layers.{i}.", f"layers.{i}."
        state[ours + "attention.qkv.weight"] = torch.cat([t[f"{hf}self_attn.{n}_proj.weight"] for n in "qkv"])
        state[ours + "attention.out.weight"] = t[hf + "self_attn.o_proj.weight"]
        for n in ("gate", "up", "down"):
            state[f"{ours}ffn.{n}.weight"] = t[f"{hf}mlp.{n}_proj.weight"]
        state[ours + "attention_norm.weight"] = t[hf + "input_layernorm.weight"]
        state[ours + "ffn_norm.weight"] = t[hf + "post_attention_layernorm.weight"]
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed.weight
    return model


# --- config.json ------------------------------------------------------------------------------------------------


def _config_json(config: ModelConfig, architecture: str, tokenizer: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta}
    ids = [1, 2, None] if tokenizer is None else [getattr(tokenizer, f"{t}_token_id") for t in ("bos", "eos", "pad")]
    return {
        "architectures": [architecture], "model_type": "llama", "dtype": "float32",
        "vocab_size": config.vocab_size, "hidden_size": config.dim, "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads, "head_dim": config.head_size,
        "max_position_embeddings": config.max_seq_len, "rms_norm_eps": config.norm_eps, "rope_parameters": rope,
        "tie_word_embeddings": config.tie_embeddings, "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False, "initializer_range": 0.02, "use_cache": True,
        "bos_token_id": ids[0], "eos_token_id": ids[1], "pad_token_id": ids[2],
    }


def _read_config(folder: Path, architecture: str) -> tuple[ModelConfig, dict[str, Any]]:
    path = folder / "config.json"
    if not path.exists():
        raise LabError(f"{folder} has no config.json; give the folder of a model in transformers' format")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, OSError) as e:
        raise LabError(f"{path}: cannot be read ({e}); fetch or save the model again") from e
    except json.JSONDecodeError as e:
        raise LabError(f"{path}:{e.lineno}: broken JSON ({e.msg}); fetch or save the model again") from e
    if not isinstance(raw, dict) or raw.get("model_type") != "llama":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise LabError(f"{path}: model_type is {kind!r}, this reads 'llama' only; choose a Llama model")
    if architecture not in (raw.get("architectures") or [CAUSAL]):
        raise LabError(f"{path}: holds a {raw['architectures'][0]}, expected {architecture}; choose another folder")
    for key, allowed in (("attention_bias", (False, None)), ("mlp_bias", (False, None)), ("hidden_act", ("silu", None)),
                         ("quantization_config", (None,))):
        if raw.get(key) not in allowed:
            raise LabError(f"{path}: {key} is {raw[key]!r}, which Llama 2 does not have; choose another model")
    # transformers 5 has one rope_parameters; before, rope_theta and rope_scaling stood apart.
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    head_dim = raw.get("head_dim")
    try:
        if head_dim == raw["hidden_size"] / raw["num_attention_heads"]:
            head_dim = None
        config = ModelConfig(
            vocab_size=raw["vocab_size"], dim=raw["hidden_size"], n_layers=raw["num_hidden_layers"],
            n_heads=raw["num_attention_heads"], ffn_dim=raw["intermediate_size"],
            n_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            max_seq_len=raw.get("max_position_embeddings") or 2048, rope_theta=float(theta),
            rope_scaling=rope if rope_type != "default" else None, norm_eps=raw.get("rms_norm_eps", 1e-6),
            tie_embeddings=bool(raw.get("tie_word_embeddings", False)), head_dim=head_dim)
    except KeyError as e:
        raise LabError(f"{path}: {e.args[0]} is missing; fetch or save the model again") from e
    except LabError as e:
        raise LabError(f"{path}: {e}") from e
    return config, raw


# --- files ------------------------------------------------------------------------------------------------------


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors or of the shards that its index names."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return _read_file(whole)
    if not index.exists():
        pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
        if pickles:
            raise LabError(f"{folder} holds {pickles[0].name} but no model.safetensors; pickled files can run code and "
                           "are not opened: convert it with transformers (save_pretrained)")
        raise LabError(f"{folder} has no model.safetensors; fetch or save the model again")
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
        raise LabError(f"{index}: broken index ({e}); fetch the model again") from e
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).exists():
            raise LabError(f"{index}: names {shard}, which is not in the folder; fetch the model again")
        tensors |= _read_file(folder / shard)
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    check_file(path)
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as e:
        raise LabError(f"{path}: damaged or cut short ({e}); fetch or save the model again") from e


def _write_folder(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], head: dict[str, Tensor],
                  tokenizer: Any) -> None:
    """Write all files aside, then move them into place: a kill leaves the old checkpoint or the new one."""
    check_tensors({**tensors, **head}, f"{path}: the model is not saved")
    aside = path.with_name(f".{path.name}.saving")
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, content in (("model", tensors), ("lm_head", head)):
            if content:
                content = {key: tensor.cpu().contiguous() for key, tensor in content.items()}
                save_file(content, aside / f"{name}.safetensors", metadata={"format": "pt"})
        if config["architectures"] == [CAUSAL]:
            (aside / "generation_config.json").write_text(json.dumps(ids, indent=2))
        (aside / "config.json").write_text(json.dumps(config, indent=2))
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        files = sorted(aside.iterdir())
        for file in files:
            with open(file, "rb+") as f:
                os.fsync(f.fileno())
        if not path.exists():
            os.replace(aside, path)
            return
        for file in files:
            os.replace(file, path / file.name)
        aside.rmdir()
    except (OSError, SafetensorError) as e:
        shutil.rmtree(aside, ignore_errors=True)
        raise LabError(f"cannot write {path}: {getattr(e, 'strerror', None) or e}; free some space or choose another "
                       "folder") from e
