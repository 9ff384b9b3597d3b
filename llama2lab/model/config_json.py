"""config.json of a transformers folder: a Llama's shape, written and read; or what a GGUF file says instead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from llama2lab.engine.errors import LabError
from llama2lab.engine.validation import parse_json, shown, validated
from llama2lab.model.gguf_file import gguf_config
from llama2lab.model.network import ModelConfig
from llama2lab.model.rope import rope_kind

CAUSAL, REWARD = "LlamaForCausalLM", "LlamaForSequenceClassification"


def config_json(config: ModelConfig, architecture: str, tokenizer: Any) -> dict[str, Any]:
    """What config.json says of a model."""
    rope = {"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta}
    ids = [1, 2, None] if tokenizer is None else [getattr(tokenizer, f"{t}_token_id") for t in ("bos", "eos", "pad")]
    return {
        "architectures": [architecture],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": ids[0],
        "eos_token_id": ids[1],
        "pad_token_id": ids[2],
    }


Size = Annotated[int, Field(ge=1, le=2**31)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class RopeJson(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    rope_type: str | None = None
    type: str | None = None
    rope_theta: Number | None = None
    factor: Number | None = None
    low_freq_factor: Number | None = None
    high_freq_factor: Number | None = None
    original_max_position_embeddings: Number | None = None
    attention_factor: Number | None = None
    beta_fast: Number | None = None
    beta_slow: Number | None = None
    mscale: Number | None = None
    mscale_all_dim: Number | None = None
    truncate: bool | None = None


class LlamaJson(BaseModel):
    """What is read of config.json; more may stand there."""

    model_config = ConfigDict(strict=True, extra="allow")
    architectures: list[str] | None = None
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=1024)]  # Llama's largest has 126
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Size | None = None
    rms_norm_eps: Number = 1e-6
    rope_theta: Number | None = None
    rope_parameters: RopeJson | None = None
    rope_scaling: RopeJson | None = None
    tie_word_embeddings: bool | None = None
    llama2lab: dict[str, Any] = {}


def read_config(folder: Path, architecture: str) -> tuple[ModelConfig, dict[str, Any]]:
    """The shape of the model of a folder or GGUF file, and all that its config.json says, or would say. LabError for
    what is no Llama of Llama 2's."""
    path, cure = folder / "config.json", "fetch or save the model again"
    if folder.is_file():
        path, raw = folder, gguf_config(folder)
    elif path.exists():
        raw = read_json(path, cure)
    else:
        raise LabError(f"{folder} has no config.json; give the folder of a model in transformers' format")
    if not isinstance(raw, dict) or raw.get("model_type") != "llama":
        kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise LabError(f"{path}: model_type is {shown(kind)}, this reads 'llama' only; choose a Llama model")
    for key, allowed in (
        ("attention_bias", (False, None)),
        ("mlp_bias", (False, None)),
        ("hidden_act", ("silu", None)),
        ("quantization_config", (None,)),
    ):
        if raw.get(key) not in allowed:
            raise LabError(f"{path}: {key} is {shown(raw[key])}, which Llama 2 does not have; choose another model")
    said = validated(LlamaJson, raw, str(path), cure)
    architectures = said.architectures or [CAUSAL]
    if architecture not in architectures:
        raise LabError(
            f"{path}: holds a {shown(architectures[0])[1:-1]}, expected {architecture}; choose another folder"
        )
    # transformers 5 has one rope_parameters; before, rope_theta and rope_scaling stood apart.
    rope = (said.rope_parameters or said.rope_scaling or RopeJson()).model_dump(exclude_unset=True)
    theta = rope.pop("rope_theta", None) or said.rope_theta or 10000.0
    head_dim = None if said.head_dim == said.hidden_size / said.num_attention_heads else said.head_dim
    try:
        config = ModelConfig(
            vocab_size=said.vocab_size,
            dim=said.hidden_size,
            n_layers=said.num_hidden_layers,
            n_heads=said.num_attention_heads,
            ffn_dim=said.intermediate_size,
            n_kv_heads=said.num_key_value_heads or said.num_attention_heads,
            max_seq_len=said.max_position_embeddings or 2048,
            rope_theta=theta,
            rope_scaling=rope if rope_kind(rope) != "default" else None,
            norm_eps=said.rms_norm_eps,
            tie_embeddings=bool(said.tie_word_embeddings),
            head_dim=head_dim,
        )
    except LabError as e:
        raise LabError(f"{path}: {e}") from e
    return config, raw


def read_json(path: Path, cure: str) -> Any:
    try:
        return parse_json(path.read_bytes(), str(path), cure)
    except OSError as e:
        raise LabError(f"{path}: cannot be read ({e.strerror}); {cure}") from e
