"""Documents packed in rows without mixing them, and the rows of each step's batch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llama2lab.engine.errors import LabError

Ids = list[int] | np.ndarray


@dataclass
class Packed:
    """Documents packed in rows. `segments` numbers the documents of a row from 1, with 0 for padding."""

    tokens: Tensor  # (rows, seq)
    segments: Tensor  # (rows, seq)
    loss_mask: Tensor  # (rows, seq), True where the token is to be predicted

    def __len__(self) -> int:
        return len(self.tokens)


def pack(documents: Sequence[tuple[Ids, Ids]], seq_len: int, seed: int, pad_id: int) -> Packed:
    """Pack (ids, loss_mask) documents in rows of `seq_len`, in an order shuffled by `seed`.

    First fit over the most recent 64 open rows. A document longer than a row is split, and its pieces are
    separate documents. Packing wastes little: padding is usually under 3 %.
    """
    rng = random.Random(seed)
    pieces = [
        (ids[i : i + seq_len], mask[i : i + seq_len]) for ids, mask in documents for i in range(0, len(ids), seq_len)
    ]
    rng.shuffle(pieces)
    rows: list[list[tuple[Ids, Ids]]] = []
    room: list[int] = []
    open_rows: list[int] = []
    for piece in pieces:
        need = len(piece[0])
        place = next((r for r in open_rows if room[r] >= need), None)
        if place is None:
            rows.append([])
            room.append(seq_len)
            place = len(rows) - 1
            open_rows.append(place)
            if len(open_rows) > 64:
                open_rows.remove(min(open_rows, key=room.__getitem__))
        rows[place].append(piece)
        room[place] -= need
        if room[place] < 4:
            open_rows.remove(place)
    rng.shuffle(rows)
    tokens = torch.full((len(rows), seq_len), pad_id)
    segments = torch.zeros((len(rows), seq_len), dtype=torch.long)
    loss_mask = torch.zeros((len(rows), seq_len), dtype=torch.bool)
    for r, row in enumerate(rows):
        at = 0
        for number, (ids, mask) in enumerate(row, 1):
            tokens[r, at : at + len(ids)] = torch.tensor(ids)
            segments[r, at : at + len(ids)] = number
            loss_mask[r, at : at + len(ids)] = torch.tensor(mask, dtype=torch.bool)
            at += len(ids)
    return Packed(tokens, segments, loss_mask)


def epoch_batches(n: int, batch: int, seed: int, lengths: Sequence[int] = ()) -> Callable[[int], list[int]]:
    """`f(step)` gives the rows of that step: every epoch is another shuffle, drawn from (seed, epoch).

    With `lengths`, rows of about the same length come together, so that little is spent on padding: the shuffled rows
    are sorted within groups of 16 batches, and the batches are shuffled again.
    """
    if n < 1:
        raise LabError("there is nothing to train on: the data set is empty; give more rows")
    per_epoch = max(1, math.ceil(n / batch))
    orders: dict[int, list[list[int]]] = {}

    def rows(step: int) -> list[int]:
        epoch, at = divmod(step, per_epoch)
        if epoch not in orders:
            orders.clear()
            order = list(range(n))
            rng = random.Random(f"{seed} {epoch}")
            rng.shuffle(order)
            if lengths:
                order = [
                    i
                    for start in range(0, n, 16 * batch)
                    for i in sorted(order[start : start + 16 * batch], key=lengths.__getitem__)
                ]
            batches = [order[start : start + batch] for start in range(0, n, batch)]
            if lengths:
                rng.shuffle(batches)
            orders[epoch] = batches
        return orders[epoch][at]

    return rows
