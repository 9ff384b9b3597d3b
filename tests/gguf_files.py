"""Small GGUF files for the tests, written as llama.cpp's converter writes a Llama."""

import functools
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llama2lab.model.gguf_file import gguf_config

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the"]
TOKENS = [*CONTROL, *BYTES, "th", "the", "Ġthe"]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{{ message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_llama(tie: bool = False, context: int = 256) -> LlamaForCausalLM:
    """transformers' Llama with random weights; grouped queries, so that a wrong order of rows shows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tie,
        rope_parameters={"rope_type": "default", "rope_theta": 12345.0},
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(1 + 0.1 * torch.randn(weight.shape) if weight.ndim == 1 else 0.2 * torch.randn(weight.shape))
    return model


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: str = "F32",
    template: str | None = CHATML,
    more: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
    architecture: str = "llama",
) -> Path:
    """The model with the tokens of `TOKENS`; matrices of `kind` (F32, F16, BF16, Q8_0, Q4_1). `more` are further keys
    of its metadata, `tensors` further tensors."""
    import gguf

    c = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(c.hidden_size // c.num_attention_heads)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in CONTROL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    for name, token in (("unk", 0), ("bos", 1), ("eos", 2), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
    for key, value in (more or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
        add(key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        part = name.split(".")[-2]
        values = interleaved(weight, heads[part]) if part in heads else weight
        stored = gguf.GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
        data = gguf.quants.quantize(values.numpy(), stored)
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=stored)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def transformers_model(path: Path) -> LlamaForCausalLM:
    """The same file through transformers' own loader, in float32. It makes the same table of names for every module of
    the model, which here is made once."""
    import gguf
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with torch.device("meta"):
        names = LlamaForCausalLM(LlamaConfig(**gguf_config(path)))  # of its tensors; nothing else of it counts
    with patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)):
        found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=names)
    whole, tensors = LlamaForCausalLM(LlamaConfig(**found["config"])).eval(), found["tensors"]
    missing, unexpected = whole.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return whole
