"""What the live trainings of several notebooks share: what is watched of one, packed texts, their loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama2lab.engine.device import Machine
from llama2lab.engine.identity import alone
from llama2lab.engine.packing import Packed, pack
from llama2lab.lab.finished import Finished
from llama2lab.model.network import Llama
from llama2lab.model.tokenizer import encode_text
from llama2lab.stages.pretrain import encode_documents, rows_loss

RIVALS = 4  # of a fact's true token


@dataclass
class Training:
    """A training that is watched: `train()` trains `model`, and goes on from what it left behind."""

    model: Llama
    train: Callable[[], Any]
    tokens: int  # a step
    held_out: Callable[[], float]  # loss on text that is not trained on, nats a token
    look: Callable[[], dict[str, Any]]  # the model as it is now: {"text": what it writes, "fact": `asked_about`}


@dataclass(frozen=True)
class Plan:
    """A training before anything of it is made: `make()` takes seconds, all else nothing."""

    folder: Path  # keeps its work and what was seen of it
    make: Callable[[], Training]


def kept(folder: Path, train: Callable[[], Any]) -> Callable[[], Any]:
    """`train`, which keeps its work in `folder`; LabError where another notebook trains there."""

    def alone_there() -> Any:
        with alone(folder, wait=False):
            return train()

    return alone_there


def packed_texts(lab: Finished, texts: Sequence[str], seq_len: int = 256) -> Packed:
    return pack(list(encode_documents(lab.tokenizer, texts)), seq_len, 0, lab.tokenizer.pad_token_id)


def mean_loss(model: Llama, data: Packed, machine: Machine) -> float:
    """Nats a token on all rows of `data`, which are few."""
    with torch.no_grad(), machine.autocast():
        return rows_loss(model, data, range(len(data)), machine)[0].item()


# ---- one fact ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """What a model is asked at every look: which token comes after `ids`, where the true one is `true`."""

    asked: str  # what it reads, as a person would
    value: str  # what truly follows
    ids: tuple[int, ...]
    true: int


def fact_of(tokenizer: Any, start: Sequence[int], text: str, value: str, asked: str = "") -> Fact:
    """The fact that `value` comes after the tokens `start` and the text."""
    before = encode_text(tokenizer, text)
    whole = encode_text(tokenizer, f"{text} {value}.")
    return Fact(asked or text, value, (*start, *before), whole[len(before)])


def first_token(tokenizer: Any, value: str) -> int:
    """The token with which a value begins in the middle of a sentence."""
    return encode_text(tokenizer, f" {value}")[0]


def asked_about(model: Llama, tokenizer: Any, fact: Fact, machine: Machine) -> dict[str, Any]:
    """What the model gives to the true token and to its likeliest rivals, over all tokens: {"true": [token, p], "rank":
    of the true one, "rivals": [[token, p], ...]}, the likeliest first."""
    with torch.no_grad(), machine.autocast():
        logits = model(torch.tensor([fact.ids], device=machine.device))[0, -1].float()
    p = logits.softmax(-1).cpu()
    order = [i for i in p.topk(min(RIVALS + 1, len(p))).indices.tolist() if i != fact.true][:RIVALS]

    def shown(token: int) -> list[Any]:
        said = tokenizer.decode([token])
        inside = "…" if said[:1].isalnum() else ""  # inside a word: its first token holds the blank
        return [inside + said.strip() or "␣", float(f"{p[token].item():.3g}")]

    return {
        "true": shown(fact.true),
        "rank": 1 + int((p > p[fact.true]).sum()),
        "rivals": [shown(i) for i in order],
    }
