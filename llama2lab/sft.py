"""Supervised fine-tuning (Llama 2, section 3.1): prompts and answers packed, loss on the answers' tokens only.

From the report: cosine schedule, weight decay 0.1, 2 epochs, prompt and answer concatenated to fill the sequence,
loss zeroed on the prompts' tokens. Our learning rate is larger, for a model 7,000 times smaller.

**A deviation of ours: replay.** Some pretraining text is mixed in (InstructGPT does the like in its PPO). A model of a
million parameters otherwise often answers a question about a word that the examples never name with one that they do.
In one trial (one seed, dev prompts) it raised correct greedy answers from .72 to .80, and lowered correct answers at
temperature 1 from .55 to .51: it keeps knowledge and flattens the policy.
`replay: 0` shows it.

Not taken up: matrices that learn slower and norms' gains that learn faster (lr 3e-4, gains x 100, replay .3). On dev
prompts (one seed) that SFT model was right in .66 instead of .63. But Ghost Attention, at the rate that it needs to
last twenty turns, then cost single answers .25 of true helpfulness instead of nothing, and V5 ended at 1.43 instead of
1.55.
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
from llama2lab.pretrain import curve, encode_documents
from llama2lab.train import Optim, fit_packed, pack


@dataclass(frozen=True)
class SFTSettings:
    examples: int = 1500
    epochs: float = 2.0
    seq_len: int = 512
    batch_tokens: int = 2048
    optim: Optim = Optim(lr=1e-3, warmup=0.05)
    replay: float = 0.5  # tokens of pretraining text for each token of chat; 0 is the report's


def sft(model: Llama, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict], settings: SFTSettings, seed: int,
        machine: Machine, folder: Path | None = None, what: str = "fine-tuning", documents: Sequence[str] = (),
        ) -> dict[str, Any]:
    """Fine-tune `model` in place on rows `{"messages": [...]}`; returns metrics with the loss curve.

    A row may say `"loss": "last"`: then only its last answer is learnt (Ghost Attention, section 3.3).
    `documents` are pretraining texts, of which so many are replayed as `settings.replay` asks and as there are.
    The packed rows have `seq_len` tokens, or as many as the longest conversation, so that none is cut; a step takes as
    many rows of either, so that long ones keep both threads of `parallel.py` at work too.

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
    encoded += replayed(tokenizer, documents, settings.replay * sum(len(ids) for ids, _ in encoded), seq_len)
    data = pack(encoded, seq_len, seed, tokenizer.pad_token_id)
    # Longer rows than asked for: as many of them. Shorter ones, for a model with a short context: as many tokens.
    batch_tokens = max(1, settings.batch_tokens // min(settings.seq_len, seq_len)) * seq_len
    log = fit_packed(model, data, settings.epochs, batch_tokens, settings.optim, seed, machine, folder, what)
    return {"loss": curve(log), "examples": len(rows), "steps": len(log),
            "predicted_tokens": int(data.loss_mask.sum())}


def replayed(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str], tokens: float, seq_len: int,
             ) -> list[tuple[list[int], list[int]]]:
    """The first documents that make up `tokens`, all their tokens to be predicted; ones beyond `seq_len` are cut."""
    chosen: list[tuple[list[int], list[int]]] = []
    for ids, mask in encode_documents(tokenizer, documents) if tokens else ():
        if tokens <= 0:
            break
        chosen.append((ids[:seq_len], mask[:seq_len]))
        tokens -= len(chosen[-1][0])
    return chosen
