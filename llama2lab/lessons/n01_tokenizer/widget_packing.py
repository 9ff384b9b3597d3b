"""How documents fill rows, and which tokens a loss counts: two explorers of what training reads."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import ipywidgets as w
import torch

from llama2lab.engine.packing import Packed, pack
from llama2lab.lab.explorer import LABEL, Explorer, dropdown, steps
from llama2lab.lab.pictures import COLOURS, svg
from llama2lab.model.chat import encode_chat
from llama2lab.report.look import BLUE, tame
from llama2lab.stages.pretrain import encode_documents

MASKS = ("all answers (SFT)", "the last answer (Ghost Attention)", "every token (pretraining)")


def stretches(segments: Sequence[int]) -> list[tuple[int, int, int]]:
    """(segment, start, length) of each run of equal numbers; 0 is padding."""
    result, start = [], 0
    for segment, run in groupby(segments):
        length = len(list(run))
        result.append((segment, start, length))
        start += length
    return result


def padding(data: Packed) -> float:
    """The share of a packed data set that is padding."""
    return float((data.segments == 0).float().mean())


def packed_picture(data: Packed, rows: int = 10, width: int = 640) -> str:
    """The first rows as bars, one colour a document, and what the colours say; padding is left clear."""
    high, unit, body = 18, width / data.tokens.shape[1], ""
    for r, line in enumerate(data.segments[:rows].tolist()):
        for segment, start, length in stretches(line):
            place = (
                f'x="{start * unit:.1f}" y="{r * (high + 4)}" width="{max(1.0, length * unit - 1):.1f}" height="{high}"'
            )
            title = f"<title>{'padding' if segment == 0 else f'document {segment}'}: {length} tokens</title>"
            colour = COLOURS[(segment - 1) % len(COLOURS)] if segment else "none"
            body += (
                f'<rect {place} fill="{colour}" fill-opacity="0.75" stroke="currentColor" '
                f'stroke-opacity="0.35">{title}</rect>'
            )
    shown = min(rows, len(data))
    picture = svg(body, width, shown * (high + 4), f"{shown} packed rows, each document a stretch of one colour")
    squares = "".join(f'<span style="color: {colour}">&#9632;</span>' for colour in COLOURS)
    key = f"{squares} documents, a stretch of one colour each, colours taking turns; &#9633; padding"
    return f"{picture}<p>{key}. A line is a row; point at a stretch for its length.</p>"


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


def token_picture(tokens: Sequence[tuple[str, bool]]) -> str:
    """Tokens as boxes; those that the loss counts are filled and underlined, so that colour is not all."""
    learnt = f"background: {BLUE}55; border-bottom: 3px solid {BLUE}"
    boxes = "".join(
        f'<span style="display: inline-block; margin: 1px; padding: 1px 3px; border-radius: 3px; '
        f'{learnt if mark else "border: 1px solid rgba(128,128,128,.35); opacity: .75"}">'
        f"{html.escape(tame(text)).replace(' ', '&middot;') or '&nbsp;'}</span>"
        for text, mark in tokens
    )
    return (
        f'<div style="line-height: 1.9; font-family: monospace; color: var(--jp-content-font-color1, inherit)">'
        f"{boxes}</div>"
    )


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
