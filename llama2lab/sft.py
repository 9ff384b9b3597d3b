"""Supervised fine-tuning (Llama 2, section 3.1): prompts and answers packed, loss on the answers' tokens only.

From the report: cosine schedule, weight decay 0.1, 2 epochs, prompt and answer concatenated to fill the sequence,
loss zeroed on the prompts' tokens. Our learning rate is larger, for a model 7,000 times smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from llama2lab.chat import encode_chats
from llama2lab.device import Machine
from llama2lab.errors import LabError
from llama2lab.model import Llama
from llama2lab.pretrain import curve
from llama2lab.train import Optim, fit_packed, pack


@dataclass(frozen=True)
class SFTSettings:
    examples: int = 1500
    epochs: float = 2.0
    seq_len: int = 512
    batch_tokens: int = 2048
    optim: Optim = Optim(lr=1e-3, warmup=0.05)


def sft(model: Llama, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict], settings: SFTSettings, seed: int,
        machine: Machine, folder: Path | None = None, what: str = "fine-tuning",
        ) -> dict[str, Any]:
    """Fine-tune `model` in place on rows `{"messages": [...]}`; returns metrics with the loss curve.

    A row may say `"loss": "last"`: then only its last answer is learnt (Ghost Attention, section 3.3).
    The packed rows have `seq_len` tokens, or as many as the longest conversation, so that none is cut.

    Raises:
        LabError: a conversation is longer than the model's context.
    """
    model.to(machine.device)
    encoded: list[tuple[list[int], list[int]]] = []
    for turns in ("all", "last"):
        chosen = [row["messages"] for row in rows if row.get("loss", "all") == turns]
        encoded += encode_chats(tokenizer, chosen, mask_turns=turns)
    longest = max(len(ids) for ids, _ in encoded)
    if longest > model.config.context:
        raise LabError(f"{what}: a conversation has {longest} tokens, the model's context is {model.config.context}; "
                       "shorten or leave out such rows")
    seq_len = min(max(settings.seq_len, longest), model.config.context)
    data = pack(encoded, seq_len, seed, tokenizer.pad_token_id)
    log = fit_packed(model, data, settings.epochs, settings.batch_tokens, settings.optim, seed, machine,
                     folder, what)
    return {"loss": curve(log), "examples": len(rows), "steps": len(log),
            "answer_tokens": int(data.loss_mask.sum())}
