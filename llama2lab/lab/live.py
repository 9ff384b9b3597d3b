"""What the live trainings of several notebooks share: what a panel shows of one, packed texts, their loss."""

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
from llama2lab.stages.pretrain import encode_documents, rows_loss


@dataclass
class Training:
    """A training that a live panel shows: `train()` trains `model`, and goes on from what it left in `folder`."""

    model: Llama
    train: Callable[[], Any]
    folder: Path
    tokens: int  # a step
    held_out: Callable[[], float]  # loss on text that is not trained on, nats a token
    sample: Callable[[int], str]  # what the model writes now; the number draws another text


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
