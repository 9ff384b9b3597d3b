"""How documents fill rows, and which tokens a loss counts: two explorers of what training reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as w
import torch

from llama2lab.engine.packing import Packed, pack
from llama2lab.lab.chips import packed_picture, token_picture
from llama2lab.lab.explorer import LABEL, Explorer, dropdown, steps
from llama2lab.model.chat import encode_chat
from llama2lab.report.look import tame
from llama2lab.stages.pretrain import encode_documents

MASKS = ("all answers (SFT)", "the last answer (Ghost Attention)", "every token (pretraining)")


def padding(data: Packed) -> float:
    """The share of a packed data set that is padding."""
    return float((data.segments == 0).float().mean())


class PackingExplorer(Explorer):
    """Documents of the corpus in rows of a chosen length, packed or one to a row."""

    def __init__(self, tokenizer: Any, documents: Sequence[str]):
        self.encoded = list(encode_documents(tokenizer, documents))
        self.pad = tokenizer.pad_token_id
        self.length = steps("tokens a row", (128, 256, 512, 1024), 512, None)
        self.packed = w.Checkbox(True, description="pack several documents into a row", style=LABEL, indent=False)
        super().__init__("What one training step reads", [self.length, self.packed])

    def data(self) -> Packed:
        if self.packed.value:
            return pack(self.encoded, self.length.value, 0, self.pad)
        alone = [pack([one], self.length.value, 0, self.pad) for one in self.encoded[:40]]
        return Packed(*(torch.cat([getattr(p, part) for p in alone]) for part in ("tokens", "segments", "loss_mask")))

    def draw(self) -> str:
        data = self.data()
        return (
            packed_picture(data) + f"<p>{len(self.encoded)} documents, rows of {self.length.value} tokens; "
            f"{padding(data):.1%} of what the model would multiply is padding. Documents in a row do not see each "
            "other: the mask ends where the colour changes.</p>"
        )


def marked_tokens(tokenizer: Any, messages: Sequence[dict], mask: str = MASKS[0]) -> list[tuple[str, bool]]:
    """(text of the token, whether the loss counts it) for a conversation in the chat format."""
    ids, marks = encode_chat(tokenizer, list(messages), mask_turns="last" if mask == MASKS[1] else "all")
    if mask == MASKS[2]:
        marks = [1] * len(ids)
    return [(str(tokenizer.decode([token])), bool(mark)) for token, mark in zip(ids, marks, strict=True)]


class MaskExplorer(Explorer):
    """A conversation of the SFT data, token by token, and the tokens that the loss counts."""

    def __init__(self, tokenizer: Any, rows: Sequence[dict]):
        self.tokenizer, self.rows = tokenizer, rows
        names = [(f"{i + 1}: {tame(row['messages'][-2]['content'])[:50]}", i) for i, row in enumerate(rows)]
        self.row = dropdown("conversation", names, width="420px")
        self.mask = dropdown("the loss counts", MASKS, width="auto")
        super().__init__("Which tokens are learnt", [self.row, self.mask])

    def draw(self) -> str:
        tokens = marked_tokens(self.tokenizer, self.rows[self.row.value]["messages"], self.mask.value)
        learnt = sum(mark for _, mark in tokens)
        return token_picture(tokens) + (
            f"<p>{learnt} of {len(tokens)} tokens are learnt (filled, underlined): {learnt / len(tokens):.0%}.</p>"
        )
