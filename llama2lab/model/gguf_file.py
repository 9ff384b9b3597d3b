"""A GGUF file of Llama architecture, as llama.cpp uses it: its shape, its tensors and its tokenizer.

transformers' own reader maps the file and unpacks its blocks; each tensor is converted on its own, so that no second
copy of the model is held. What llama.cpp changes in a Llama is changed back: the rows of queries and keys, whose rotary
pairs it interleaves, and the names. Everything that asks for a checkpoint's folder also takes such a file.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.stagefiles import check_file
from llama2lab.engine.validation import shown

MAGIC = b"GGUF"
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}  # ggml's types that hold numbers, not blocks
CURE = "fetch the file again"


@dataclass(frozen=True)
class _File:
    """What stands before the tensors."""

    metadata: dict[str, Any]
    header: Any  # transformers' GgufHeader


def is_gguf(path: Path) -> bool:
    """Whether the path is a file that begins as GGUF does."""
    try:
        with open(path, "rb") as f:
            return f.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def gguf_config(path: Path) -> dict[str, Any]:
    """What config.json would say of the file's model. LabError for rotary positions that are scaled in a way which the
    file does not fully state."""
    found = _opened(path)
    said, kind = found.metadata, found.metadata["general.architecture"]

    def get(name: str, default: Any = None) -> Any:
        return said.get(f"{kind}.{name}", default)

    heads, turned = get("attention.head_count"), get("rope.dimension_count")
    head_dim = get("attention.key_length", turned)
    if turned != head_dim:
        raise LabError(f"{path}: only {turned} of a head's {head_dim} numbers turn with the position; choose a Llama")
    names = {tensor.name for tensor in found.header.tensors}
    return {
        "model_type": kind,
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": get("vocab_size", said.get("tokenizer.ggml.tokens")),  # of a list its length is given
        "hidden_size": get("embedding_length"),
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", 1e-5),
        "rope_parameters": {"rope_theta": get("rope.freq_base", 10000.0), **_rope_scaling(path, get, names)},
        "tie_word_embeddings": "output.weight" not in names,
    }


def _rope_scaling(path: Path, get: Any, names: set[str]) -> dict[str, Any]:
    """transformers' rope_scaling; it ignores what a file says of it, and would read long texts wrongly in silence."""
    kind, factor = get("rope.scaling.type", "none"), get("rope.scaling.factor", 1.0)
    if "rope_freqs.weight" in names:
        raise LabError(
            f"{path}: its rotary positions are scaled by a table (rope_freqs, as Llama 3.1's), which is not read; give "
            "the model's folder of safetensors instead of the GGUF file"
        )
    if kind == "none":
        return {"rope_type": "default"}
    scaling = {"rope_type": kind, "factor": factor}
    original = get("rope.scaling.original_context_length")
    return scaling | ({"original_max_position_embeddings": original} if original else {})


def gguf_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the file's tensors, by transformers' names; a name that no Llama has stays llama.cpp's."""
    return {_name(tensor.name): tensor.shape for tensor in _opened(path).header.tensors}


def gguf_tensors(path: Path, n_heads: int, n_kv_heads: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors in `dtype`, by transformers' names, rotary pairs in halves. Blocks are unpacked in float32, one
    tensor at a time. LabError for a file that ends too early."""
    from transformers.integrations.gguf.dequant import dequantize
    from transformers.integrations.gguf.reader import load_gguf_state_dict

    header = _opened(path).header
    heads = {"attn_q": n_heads, "attn_k": n_kv_heads}
    tensors: dict[str, Tensor] = {}
    try:
        stored = load_gguf_state_dict(header)
        for tensor in header.tensors:
            part = tensor.name.split(".")[-2]
            values = stored[tensor.name][...]
            if tensor.ggml_type not in PLAIN:
                values = dequantize(values, tensor.ggml_type).view(tensor.shape)
            if part in heads:
                values = _in_halves(values, heads[part])
            tensors[_name(tensor.name)] = values.to(dtype)
    except (KeyboardInterrupt, MemoryError, LabError):
        raise
    except Exception as e:  # what it raises for damaged files is of many kinds
        raise LabError(f"{path}: damaged or cut short ({first_line(e)}); {CURE}") from e
    return tensors


def gguf_tokenizer(path: Path) -> Any:
    """The tokenizer that the file holds, with its chat template. Nothing beside the file is looked at."""
    _opened(path)
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    try:
        architecture, parts, settings = get_gguf_tokenizer(str(path))
        backend, _ = convert_gguf_tokenizer(architecture, parts)
        return PreTrainedTokenizerFast(tokenizer_object=backend, **settings, clean_up_tokenization_spaces=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # the library beneath panics, which is no Exception
        cure = "give the model's folder with tokenizer.json, or another file"
        raise LabError(f"{path}: no tokenizer could be loaded ({first_line(e)}); {cure}") from e


def _in_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys whose rotary pairs are neighbours, (heads * size, dim), with the pairs in halves: the
    inverse of what llama.cpp's convert_hf_to_gguf.py does (LlamaModel.permute)."""
    return weight.view(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _name(name: str) -> str:
    """transformers' name of a tensor; its own where no Llama has it."""
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if layer and layer[2] in LAYER_NAMES:
        return f"model.layers.{layer[1]}.{LAYER_NAMES[layer[2]]}.weight"
    part = name.removesuffix(".weight")
    return f"{NAMES[part]}.weight" if part in NAMES and part != name else name


def _opened(path: Path) -> _File:
    """What stands before the tensors, read once for a file that stays as it is."""
    check_file(path)
    try:
        state = path.stat()
    except OSError as e:
        raise LabError(f"{path}: cannot be read ({e.strerror}); {CURE}") from e
    return _read(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed: int, size: int) -> _File:
    if not is_gguf(path):
        raise LabError(f"{path} is no GGUF file; give one, or the folder of a model")
    try:
        from transformers.integrations.gguf.reader import GgufHeader, read_gguf_metadata
    except ImportError as e:
        raise LabError(f"{path} is a GGUF file; to read it: pip install 'llama2lab[gguf]'") from e
    try:
        metadata, _ = read_gguf_metadata(str(path))
        if metadata["general.architecture"] != "llama":
            kind = shown(metadata["general.architecture"])
            raise LabError(f"{path}: its architecture is {kind}, this reads 'llama' only; choose a Llama model")
        header = GgufHeader.from_file(str(path))
    except (KeyboardInterrupt, LabError):
        raise
    except Exception as e:  # struct.error, ValueError, UnicodeDecodeError, MemoryError ...: damaged, or a type unknown
        raise LabError(f"{path}: cannot be read as GGUF ({first_line(e)}); {CURE} or choose another") from e
    end = max((header.data_start + t.offset + t.nbytes for t in header.tensors), default=0)
    if end > size or any(math.prod(t.shape) < 1 for t in header.tensors):
        raise LabError(f"{path}: cut short: it has {size:,} bytes of {end:,}; {CURE}")
    return _File(metadata, header)
