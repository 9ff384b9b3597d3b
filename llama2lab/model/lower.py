"""Training the upper layers alone: how a model a hundred times the miniature's size is fine-tuned on a laptop's CPU.

The embedding and the lower layers are frozen, so what they make of a text never changes: it is computed once and kept,
whichever stage reads the text again. All models of a run (chat, reward, critic, reference) then stand on one lower
part, which is in memory once. What is trained costs the upper layers' share of the work, and only the first reading of
a text costs the rest. docs/trials.md compares it with training everything.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llama2lab.engine.errors import LabError
from llama2lab.model.attention import causal_mask, score_bias
from llama2lab.model.network import Llama

Text = tuple[int, ...]  # a text's tokens
KEPT_BYTES = 2_000_000_000


class Lower:
    """The embedding and the first layers of `model`, and the states that they gave for the texts read so far.

    Args:
        layers: how many of the model's layers are lower ones; at least one is left above them.
        pad_id: fills rows up on the right. No text may end in two of it: a row's states behind the first are not told
            apart, and nobody reads them.
        kept_bytes: of states, of which the longest unread go first.

    Raises:
        LabError: the model has not so many layers.
    """

    def __init__(self, model: Llama, layers: int, pad_id: int, kept_bytes: int = KEPT_BYTES):
        if not 0 < layers < model.config.n_layers:
            raise LabError(
                f"the model has {model.config.n_layers} layers; of them 1 to {model.config.n_layers - 1} can be "
                f"trained alone, not {model.config.n_layers - layers}"
            )
        self.model, self.layers, self.pad_id, self.kept_bytes = model.requires_grad_(False), layers, pad_id, kept_bytes
        self.kept: OrderedDict[tuple[Text, torch.dtype], Tensor] = OrderedDict()  # each (tokens, dim)
        self.size = 0  # bytes
        self.computed = 0  # tokens that went through the lower layers
        self.lock = threading.Lock()  # training reads in several threads

    def __deepcopy__(self, memo: Any) -> Lower:
        return self  # a copy of a model stands on the same lower part

    def states(self, tokens: Tensor, positions: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What the lower layers make of (batch, seq) rows: (batch, seq, dim). A row is one text, padded on the right,
        or several, each of which begins at position 0 and sees itself alone."""
        rows = [
            self._texts(row, None if positions is None else positions[i % len(positions)].tolist())
            for i, row in enumerate(tokens.tolist())
        ]
        found = self._read({text for row in rows for text, _ in row}, dtype, tokens.device)
        return torch.stack([torch.cat([_filled(found[text], n) for text, n in row]) for row in rows])

    def _texts(self, row: list[int], positions: list[int] | None) -> list[tuple[Text, int]]:
        """The texts of a row, each without the padding behind its first, and the room that each takes."""
        starts = [0] if positions is None else [i for i, at in enumerate(positions) if at == 0]
        texts = []
        for begin, end in zip(starts, [*starts[1:], len(row)], strict=True):
            text, last = row[begin:end], end - begin
            while last > 1 and text[last - 1] == text[last - 2] == self.pad_id:
                last -= 1
            texts.append((tuple(text[:last]), end - begin))
        return texts

    def _read(self, texts: set[Text], dtype: torch.dtype, device: torch.device) -> dict[Text, Tensor]:
        """The states of each text, kept or computed now."""
        found: dict[Text, Tensor] = {}
        with self.lock:
            for text in texts:
                if (kept := self.kept.get((text, dtype))) is not None:
                    self.kept.move_to_end((text, dtype))
                    found[text] = kept
        missing = sorted(texts - found.keys(), key=lambda text: (len(text), text))
        for new, states in zip(missing, self._compute(missing, dtype, device), strict=True):
            found[new] = states
            with self.lock:
                if (new, dtype) not in self.kept:
                    self.kept[new, dtype] = states
                    self.size += states.nbytes
                    self.computed += len(new)
        with self.lock:
            while self.size > self.kept_bytes:
                self.size -= self.kept.popitem(last=False)[1].nbytes
        return found

    def _compute(self, texts: Sequence[Text], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """(tokens, dim) of each text, in stretches of about equal lengths."""
        done: list[Tensor] = []
        # Out of inference mode: what was made in it could not be trained on.
        with torch.inference_mode(False), torch.no_grad():
            for start in range(0, len(texts), 16):
                some = texts[start : start + 16]
                width = max(map(len, some))
                tokens = torch.tensor([[*text, *[self.pad_id] * (width - len(text))] for text in some], device=device)
                x = self._through(tokens, dtype)  # (some, width, dim)
                done += [states[: len(text)].clone() for states, text in zip(x, some, strict=True)]
        return done

    def _through(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """The states of (batch, seq) rows that begin at position 0 and are causal: (batch, seq, dim)."""
        seq, config = tokens.shape[1], self.model.config
        x = self.model.embed(tokens).to(dtype)
        positions = torch.arange(seq, device=tokens.device)[None]
        cos, sin = (table.to(dtype) for table in self.model.rope_at(positions))
        mask = causal_mask(seq, seq, tokens.device)
        bias = score_bias(mask, config.n_heads, config.n_kv_heads, dtype)
        for i in range(self.layers):
            x = self.model.layers[i](x, cos, sin, bias, None, i)
        return x


def _filled(states: Tensor, n: int) -> Tensor:
    """(n, dim): the states, and the last again where there is room."""
    return states if len(states) == n else torch.cat([states, states[-1:].expand(n - len(states), -1)])


def train_upper(model: Llama, lower: Lower) -> Llama:
    """The model on the common lower part, with nothing to train in it; tied embeddings are of it.

    Raises:
        LabError: the model's lower layers are others: it is not of this run.
    """
    own = model.embed, *list(model.layers)[: lower.layers]
    common = lower.model.embed, *list(lower.model.layers)[: lower.layers]
    for mine, theirs in zip(own, common, strict=True):
        same = zip(mine.parameters(), theirs.parameters(), strict=True)
        if mine is not theirs and not all(torch.equal(a, b) for a, b in same):
            raise LabError("a model's lower layers are not those of the base model: it was trained as a whole")
    model.embed = lower.model.embed
    for i in range(lower.layers):
        model.layers[i] = lower.model.layers[i]
    if model.config.tie_embeddings:
        model.lm_head.weight = model.embed.weight
    model.lower = lower
    return model
