"""Starting from somebody's checkpoint instead of pretraining: the control tokens that it lacks, and room for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from llama2lab.chat import CHAT_TEMPLATE
from llama2lab.errors import LabError
from llama2lab.model import Llama
from llama2lab.tokenizer import BOS, CONTROL_TOKENS, EOS, PAD, UNK


def find_checkpoint(name: str, folder: Path | None) -> str:
    """The folder `name` in the data folder if it is there, else `name` itself: a path or a hub name."""
    return str(folder / name) if folder and (folder / name).is_dir() else name


def with_control_tokens(tokenizer: Any) -> tuple[Any, list[str]]:
    """The tokenizer with the chat format's eight control tokens, and the list of those it lacked. Known tokens keep
    their ids; new ones get new ids after the last."""
    before = len(tokenizer)
    lacked = [t for t in CONTROL_TOKENS if t not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK,
                                  "extra_special_tokens": list(CONTROL_TOKENS[4:])})
    if len(tokenizer) != before + len(lacked):
        raise LabError(f"start_from: the tokenizer took {len(tokenizer) - before} of {len(lacked)} control tokens; "
                       "choose a checkpoint with an ordinary tokenizer.json")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer, lacked


@torch.no_grad()
def grow_vocabulary(model: Llama, vocab_size: int, copies: dict[int, int], seed: int) -> Llama:
    """The model with rows for new tokens. A row in `copies` (new id -> old id) starts as the old token's, the others
    as the mean of all old rows with a little noise: an untrained row far from the others would take or lose
    probability at once, which tells nothing about language."""
    old = model.config.vocab_size
    if vocab_size <= old:
        return model
    grown = Llama(dataclasses.replace(model.config, vocab_size=vocab_size), seed)
    tables = ("embed.weight", "lm_head.weight")
    grown.load_state_dict({k: v for k, v in model.state_dict().items() if k not in tables}, strict=False)
    generator = torch.Generator().manual_seed(seed)
    for name in tables[:1] if model.config.tie_embeddings else tables:
        rows, new = model.get_parameter(name), grown.get_parameter(name)
        noise = torch.randn(vocab_size - old, rows.shape[1], generator=generator)
        new[:old] = rows
        new[old:] = rows.mean(0) + 0.1 * rows.std(0) * noise
        for to, source in copies.items():
            new[to] = rows[source]
    return grown
