"""Checkpoints are transformers folders: AutoModel opens ours, and we open any Llama's.

    config.json  model.safetensors  generation_config.json  tokenizer.json ...

What opens a folder also opens a GGUF file (gguf_file.py); what is saved is always a folder.
Rotary pairs lie in halves, as everywhere in transformers; Meta's own files interleave them and have to go through
transformers' conversion first. Only safetensors are read: unpickling a file can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llama2lab.engine.device import check_memory
from llama2lab.engine.distributed import is_first
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.finite import check_tensors
from llama2lab.engine.stagefiles import check_file
from llama2lab.engine.validation import shown, validated
from llama2lab.model.config_json import CAUSAL, REWARD, config_json, read_config, read_json
from llama2lab.model.gguf_file import gguf_shapes, gguf_tensors
from llama2lab.model.network import Block, Llama, ModelConfig
from llama2lab.model.tokenizer import find_folder, load_tokenizer

CHECKPOINT_FILES = ("*config.json", "model*.safetensors*", "tokenizer.json", "chat_template.jinja")
EXTRA = "llama2lab"  # the key of config.json for what transformers has no place for


def save_model(path: str | Path, model: Llama, tokenizer: Any = None) -> None:
    """Write the folder `path`, each file whole or not at all; other files in it stay. LabError if it cannot."""
    _write_folder(Path(path), config_json(model.config, CAUSAL, tokenizer), _to_hf(model), {}, tokenizer)


def save_reward_model(
    path: str | Path, backbone: Llama, score: nn.Linear, tokenizer: Any, extra: dict | None = None
) -> None:
    """Write a reward model that AutoModelForSequenceClassification opens: one label, read at the last token.

    `extra` (JSON) is kept in config.json. The backbone's own language-model head goes to a file of its own.
    """
    config = config_json(backbone.config, REWARD, tokenizer)
    config |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, EXTRA: extra or {}}
    tensors = _to_hf(backbone)
    head = {name: tensors.pop(name) for name in ["lm_head.weight"] if name in tensors}
    tensors["score.weight"] = score.weight.detach()
    _write_folder(Path(path), config, tensors, head, tokenizer)


def link_model(source: Path, path: Path) -> None:
    """A second name for the files of a finished checkpoint, which takes no room on the disk; copies, where the file
    system has no links. Checkpoints are replaced, never written into, so neither folder changes with the other. Of
    several processes the first does it."""
    if not is_first():
        return
    try:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        for pattern in CHECKPOINT_FILES:
            for file in source.glob(pattern):
                try:
                    os.link(file, path / file.name)
                except OSError:
                    shutil.copyfile(file, path / file.name)
    except OSError as e:
        raise LabError(f"cannot write {path}: {e.strerror or e}; free some space or choose another folder") from e


def load_model(path_or_name: str | Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The language model of a transformers folder, hub name or GGUF file. LabError, one line, for whatever is wrong.

    Names, shapes and the memory needed are checked before a tensor is read. Weights of the wanted dtype are the file's
    own pages, which take memory of their own only once they are changed; others, and those of a GGUF file, are
    converted one by one.
    """
    folder = find_folder(path_or_name)
    config, _ = read_config(folder, CAUSAL)
    if folder.is_file():
        _check_tensors(config, gguf_shapes(folder), folder, dtype)
        return _build(config, gguf_tensors(folder, config.n_heads, config.n_kv_heads, dtype), dtype)
    files = _weight_files(folder)
    _check_tensors(config, _headers(files), folder, dtype)
    return _build(config, _read_files(files), dtype)


def load_checkpoint(path_or_name: str | Path) -> tuple[Llama, Any]:
    """The language model and its tokenizer."""
    folder = find_folder(path_or_name)
    return load_model(folder), load_tokenizer(folder)


def load_reward_parts(path_or_name: str | Path) -> tuple[Llama, nn.Linear, dict]:
    """(backbone, score, extra) as given to `save_reward_model`; score is a linear map (dim -> 1) without bias.

    The backbone's language-model head is zero if the folder has none, as in folders from elsewhere.
    """
    folder = find_folder(path_or_name)
    config, raw = read_config(folder, REWARD)
    files, head = _weight_files(folder), folder / "lm_head.safetensors"
    if not config.tie_embeddings and head.exists():
        files.append(head)
    headers = _headers(files)
    shape = headers.pop("score.weight", None)
    if shape != (1, config.dim):
        found = "missing" if shape is None else f"of shape {shape}"
        raise LabError(
            f"{folder}: score.weight is {found}, expected (1, {config.dim}); give a reward model with one label"
        )
    if not config.tie_embeddings and not head.exists():
        headers["lm_head.weight"] = (config.vocab_size, config.dim)
    _check_tensors(config, headers, folder, torch.float32)
    tensors = _read_files(files)
    score = nn.Linear(config.dim, 1, bias=False)
    score.weight = nn.Parameter(tensors.pop("score.weight").float())
    if not config.tie_embeddings and not head.exists():
        tensors["lm_head.weight"] = torch.zeros(config.vocab_size, config.dim)
    return _build(config, tensors, torch.float32), score, raw.get(EXTRA, {})


def checkpoint_digest(path_or_name: str | Path) -> str:
    """Changes when a checkpoint does, wherever it lies: a hash of all that is read of it, its settings, tokenizer and
    weights. Where it is a stage of a run, what was measured on it and when does not count."""
    folder = find_folder(path_or_name)
    whole = hashlib.sha256()
    patterns = ("*.json", "*.jinja", "*.safetensors", "*.model")
    files = {folder} if folder.is_file() else {file for pattern in patterns for file in folder.glob(pattern)}
    for file in sorted(f for f in files if f.name not in ("stage.json", "notes.json")):
        try:
            with open(file, "rb") as f:
                whole.update(f"{file.name} {file.stat().st_size} ".encode())
                whole.update(hashlib.file_digest(f, "sha256").digest())
        except OSError as e:
            raise LabError(f"{file}: cannot be read ({e.strerror}); fetch the model again") from e
    return whole.hexdigest()[:16]


def parameters_of(path_or_name: str | Path, upper_layers: int = 0) -> int:
    """The number of parameters of a checkpoint's language model, from its config.json or its file's head alone; or of
    so many upper layers alone."""
    shape = shape_of(path_or_name)
    if not upper_layers:
        return count_parameters(shape)
    lower = replace(shape, n_layers=max(1, shape.n_layers - upper_layers))
    return count_parameters(shape) - count_parameters(lower)


def context_of(path_or_name: str | Path) -> int:
    """The longest sequence that a checkpoint's language model reads, in tokens, without reading its weights."""
    return shape_of(path_or_name).context


def shape_of(path_or_name: str | Path) -> ModelConfig:
    """The shape of a checkpoint's language model, without reading its weights."""
    return read_config(find_folder(path_or_name), CAUSAL)[0]


# --- names and shapes -------------------------------------------------------------------------------------------


def _to_hf(model: Llama) -> dict[str, Tensor]:
    """Tensors under transformers' names; queries, keys and values apart."""
    c = model.config
    split = [c.n_heads * c.head_size, c.n_kv_heads * c.head_size, c.n_kv_heads * c.head_size]
    tensors = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    if not c.tie_embeddings:
        tensors["lm_head.weight"] = model.lm_head.weight
    for i, block in enumerate(cast(list[Block], model.layers)):
        parts = dict(zip("qkv", block.attention.qkv.weight.split(split), strict=True))
        layer = {f"self_attn.{name}_proj": part for name, part in parts.items()} | {
            "self_attn.o_proj": block.attention.out.weight,
            "mlp.gate_proj": block.ffn.gate.weight,
            "mlp.up_proj": block.ffn.up.weight,
            "mlp.down_proj": block.ffn.down.weight,
            "input_layernorm": block.attention_norm.weight,
            "post_attention_layernorm": block.ffn_norm.weight,
        }
        tensors |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in layer.items()}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a model's file, by transformers' names."""
    c, dim = config, config.dim
    heads, kv_heads = c.n_heads * c.head_size, c.n_kv_heads * c.head_size
    layer = {
        "self_attn.q_proj": (heads, dim),
        "self_attn.k_proj": (kv_heads, dim),
        "self_attn.v_proj": (kv_heads, dim),
        "self_attn.o_proj": (dim, heads),
        "mlp.gate_proj": (c.ffn_dim, dim),
        "mlp.up_proj": (c.ffn_dim, dim),
        "mlp.down_proj": (dim, c.ffn_dim),
        "input_layernorm": (dim,),
        "post_attention_layernorm": (dim,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, dim), "model.norm.weight": (dim,)}
    if not c.tie_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, dim)
    return shapes | {
        f"model.layers.{i}.{name}.weight": shape for i in range(c.n_layers) for name, shape in layer.items()
    }


def count_parameters(config: ModelConfig) -> int:
    """The numbers in a model's file, a tied head counted once."""
    return sum(map(math.prod, expected_shapes(config).values()))


def _check_tensors(config: ModelConfig, found: dict[str, tuple[int, ...]], folder: Path, dtype: torch.dtype) -> None:
    """LabError if a tensor is missing, left over or misshapen, or if the model does not fit in this machine's memory.
    `found` are the shapes in the files, by transformers' names."""
    belong = "config.json and weights do not belong together"
    expected = expected_shapes(config)
    # Old files carry the rotary frequencies, and some the tied head a second time.
    ignored = {n for n in found if n.endswith("rotary_emb.inv_freq")}
    if config.tie_embeddings:
        ignored.add("lm_head.weight")
    for kind, names in (
        ("missing", expected.keys() - found.keys()),
        ("not of a Llama", found.keys() - expected.keys() - ignored),
    ):
        if names:
            raise LabError(
                f"{folder}: {len(names)} tensors {kind}, e.g. {min(names)}; {belong} or the download is incomplete"
            )
    for name, shape in expected.items():
        if found[name] != shape:
            raise LabError(f"{folder}: {name} has shape {found[name]}, config.json says {shape}; {belong}")
    check_memory(count_parameters(config) * dtype.itemsize, f"{folder}: the model's weights")


def _build(config: ModelConfig, tensors: dict[str, Tensor], dtype: torch.dtype) -> Llama:
    """A model with these tensors (transformers' names), which `_check_tensors` has seen."""
    with torch.device("meta"):
        model = Llama(config)

    def take(name: str) -> Tensor:  # each once, so that what is copied is not held twice
        return tensors.pop(name).to(dtype)

    state = {"embed.weight": take("model.embed_tokens.weight"), "norm.weight": take("model.norm.weight")}
    state["lm_head.weight"] = state["embed.weight"] if config.tie_embeddings else take("lm_head.weight")
    for i in range(config.n_layers):
        hf, ours = f"model.layers.{i}.", f"layers.{i}."
        state[ours + "attention.qkv.weight"] = torch.cat([take(f"{hf}self_attn.{n}_proj.weight") for n in "qkv"])
        state[ours + "attention.out.weight"] = take(hf + "self_attn.o_proj.weight")
        for n in ("gate", "up", "down"):
            state[f"{ours}ffn.{n}.weight"] = take(f"{hf}mlp.{n}_proj.weight")
        state[ours + "attention_norm.weight"] = take(hf + "input_layernorm.weight")
        state[ours + "ffn_norm.weight"] = take(hf + "post_attention_layernorm.weight")
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed.weight
    return model


# --- files ------------------------------------------------------------------------------------------------------


class IndexJson(BaseModel):
    weight_map: dict[str, str]


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that its index names."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if not index.exists():
        pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
        if pickles:
            raise LabError(
                f"{folder} holds {pickles[0].name} but no model.safetensors; pickled files can run code and "
                "are not opened: convert it with transformers (save_pretrained)"
            )
        raise LabError(f"{folder} has no model.safetensors; fetch or save the model again")
    cure = "fetch the model again"
    shards = sorted(
        set(validated(IndexJson, read_json(index, cure), f"{index}: broken index", cure).weight_map.values())
    )
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise LabError(f"{index}: names {shown(shard)}, which is not in the folder; {cure}")
    if not shards:
        raise LabError(f"{index}: broken index: it names no file; {cure}")
    return [folder / shard for shard in shards]


def _headers(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in the files, none of which is read. LabError for one that stands in two of them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with _opened(path) as f:
            found = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}  # noqa: SIM118 (no mapping)
        twice = shapes.keys() & found.keys()
        if twice:  # which of them is meant, nobody can tell
            raise LabError(f"{path}: {min(twice)} stands in another file of the model, too; fetch the model again")
        shapes |= found
    return shapes


def _read_files(files: Sequence[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        with _opened(path) as f:
            tensors |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise LabError(
                f"{files[0].parent}: {name} holds {tensor.dtype}, not numbers with a fraction; choose a "
                "checkpoint that is not quantised"
            )
    return tensors


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    check_file(path)
    try:
        with safe_open(path, framework="pt") as f:
            yield f
    except (SafetensorError, OSError) as e:
        raise LabError(f"{path}: damaged or cut short ({first_line(e)}); fetch or save the model again") from e


def _write_folder(
    path: Path, config: dict[str, Any], tensors: dict[str, Tensor], head: dict[str, Tensor], tokenizer: Any
) -> None:
    """Write all files aside, then move them into place: a kill leaves the old checkpoint or the new one. Of several
    processes the first writes."""
    check_tensors({**tensors, **head}, f"{path}: the model is not saved")
    if not is_first():
        return
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
        raise LabError(
            f"cannot write {path}: {getattr(e, 'strerror', None) or e}; free some space or choose another folder"
        ) from e
