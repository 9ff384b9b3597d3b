"""Supervised fine-tuning (Llama 2, section 3.1): prompts and answers packed, loss on the answers' tokens only.

From the report: cosine schedule, weight decay 0.1, 2 epochs, prompt and answer concatenated to fill the sequence,
loss zeroed on the prompts' tokens. Our learning rate is larger, for a model 7,000 times smaller.

Two deviations of ours; docs/trials.md has the figures.

**Replay.** Some pretraining text is mixed in (InstructGPT does the like in its PPO). A model of a million parameters
otherwise often answers a question about a word that the examples never name with one that they do; `replay: 0` shows
it.

**The format first.** Llama 2 writes [INST] in pieces that its pretraining has seen; here it is one token that no text
held, whose embedding is still random. Whoever trains all weights from there overwrites what the base knows, only to
make sense of four tokens. So these rows of the embedding are learnt first, with all else frozen, and then the whole
model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from llama2lab.engine.device import Machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.optim import Optim
from llama2lab.engine.packing import pack
from llama2lab.engine.settings import Count, CountOrNone, Epochs, Rate, Weight, checked
from llama2lab.engine.validation import shown
from llama2lab.model.chat import encode_chats
from llama2lab.model.network import Llama
from llama2lab.model.own_template import own_template
from llama2lab.model.tokenizer import CONTROL_TOKENS
from llama2lab.stages.pretrain import SeqLen, curve, encode_documents, fit_packed

TURNS = ("all", "last")  # whose answers a row's "loss" counts; the last: Ghost Attention


@checked
@dataclass(frozen=True)
class SFTSettings:
    examples: Count = 1500
    epochs: Epochs = 2.0
    seq_len: SeqLen = 512
    batch_tokens: Count = 2048
    optim: Optim = Optim(lr=1e-3, warmup=0.05)
    replay: Weight = 0.5  # tokens of pretraining text for each token of chat; 0 is the report's
    format_examples: CountOrNone = 0  # rows on which the embeddings of the format's tokens are learnt first, alone
    format_lr: Rate = 1e-2


def sft(
    model: Llama,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[dict],
    settings: SFTSettings,
    seed: int,
    machine: Machine,
    folder: Path | None = None,
    what: str = "fine-tuning",
    documents: Sequence[str] = (),
) -> dict[str, Any]:
    """Fine-tune `model` in place on rows `{"messages": [...]}`; returns metrics with the loss curve.

    A row may say `"loss": "last"`: then only its last answer is learnt (Ghost Attention, section 3.3).
    `documents` are pretraining texts, of which so many are replayed as `settings.replay` asks and as there are.
    The packed rows have `seq_len` tokens, or as many as the longest conversation, so that none is cut; a step takes as
    many rows of either, so that long ones keep both threads of `engine/parallel.py` at work too.

    Raises:
        LabError: a conversation is longer than the model's context, or a row's "loss" is none of `TURNS`.
    """
    model.to(machine.device)
    for row in rows:
        if row.get("loss", "all") not in TURNS:
            raise LabError(f"{what}: a row's loss is {shown(row['loss'])}; it is one of {', '.join(TURNS)}")
    encoded: list[tuple[list[int], list[int]]] = []
    for turns in TURNS:
        chosen = [row["messages"] for row in rows if row.get("loss", "all") == turns]
        encoded += encode_chats(tokenizer, chosen, mask_turns=turns)
    longest = max(len(ids) for ids, _ in encoded)
    if longest > model.config.context:
        raise LabError(
            f"{what}: a conversation has {longest} tokens, the model's context is {model.config.context}; "
            "shorten or leave out such rows"
        )
    seq_len = min(max(settings.seq_len, longest), model.config.context)
    if settings.format_examples and format_ids(tokenizer) and model.lower is None:  # else the embedding is frozen
        learn_format(model, tokenizer, encoded[: settings.format_examples], settings, seq_len, seed, machine, what)
    encoded += replayed(tokenizer, documents, settings.replay * sum(len(ids) for ids, _ in encoded), seq_len)
    data = pack(encoded, seq_len, seed, tokenizer.pad_token_id)
    # Longer rows than asked for: as many of them. Shorter ones, for a model with a short context: as many tokens.
    batch_tokens = max(1, settings.batch_tokens // min(settings.seq_len, seq_len)) * seq_len
    log = fit_packed(model, data, settings.epochs, batch_tokens, settings.optim, seed, machine, folder, what)
    return {"loss": curve(log), "examples": len(rows), "steps": len(log), "predicted_tokens": int(data.loss_mask.sum())}


def format_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens of the chat format that no text holds: [INST] and the like where the tokenizer has them, and the
    space that stands alone before [/INST]; none of a checkpoint's own format, which it has learnt."""
    if own_template(tokenizer) is not None:
        return []
    known = tokenizer.get_vocab()
    space = tokenizer(" ", add_special_tokens=False)["input_ids"]
    return [known[token] for token in CONTROL_TOKENS[4:] if token in known] + (space if len(space) == 1 else [])


def learn_format(
    model: Llama,
    tokenizer: PreTrainedTokenizerFast,
    encoded: Sequence[tuple[list[int], list[int]]],
    settings: SFTSettings,
    seq_len: int,
    seed: int,
    machine: Machine,
    what: str,
) -> None:
    """Learn the embeddings of the format's tokens from conversations, packed in rows of `seq_len` tokens, all other
    weights frozen. It takes seconds, so an interrupted stage does it again; the result is the same."""
    rows = model.embed.weight
    allowed = torch.zeros(len(rows), 1, device=rows.device)
    allowed[format_ids(tokenizer)] = 1.0
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    rows.requires_grad_(True)
    hook = rows.register_hook(lambda grad: grad * allowed)
    data = pack(encoded, seq_len, seed, tokenizer.pad_token_id)
    # no weight decay: it would shrink the rows that are not learnt
    optim = Optim(lr=settings.format_lr, warmup=0.05, weight_decay=0.0)
    fit_packed(model, data, 1.0, settings.batch_tokens, optim, seed, machine, None, f"{what}: the format")
    hook.remove()
    for p in trained:
        p.requires_grad_(True)


def replayed(
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    tokens: float,
    seq_len: int,
) -> list[tuple[list[int], list[int]]]:
    """The first documents that make up `tokens`, all their tokens to be predicted; ones beyond `seq_len` are cut."""
    chosen: list[tuple[list[int], list[int]]] = []
    for ids, mask in encode_documents(tokenizer, documents) if tokens else ():
        if tokens <= 0:
            break
        chosen.append((ids[:seq_len], mask[:seq_len]))
        tokens -= len(chosen[-1][0])
    return chosen
