"""Tokens to look at: a token's bytes and text, rows of coloured boxes, and the documents that fill a row."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

from llama2lab.engine.packing import Packed
from llama2lab.lab.pictures import COLOURS, svg
from llama2lab.model.tokenizer import CONTROL_TOKENS, encode_text
from llama2lab.report.look import BLUE, tame


@dataclass(frozen=True)
class Piece:
    """One token: its id, its bytes, and its text as one can read it."""

    id: int
    data: bytes
    shown: str

    @property
    def control(self) -> bool:
        return self.id < len(CONTROL_TOKENS)


@cache
def byte_letters() -> dict[str, int]:
    """The letter that a byte-level vocabulary writes for each byte (GPT-2's alphabet): bytes that print stand for
    themselves, the others for letters from U+0100 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in prints]
    return {chr(b): b for b in prints} | {chr(256 + i): b for i, b in enumerate(others)}


def piece(tokenizer: Any, token: int) -> Piece:
    """A token of a byte-level vocabulary."""
    letters = str(tokenizer.convert_ids_to_tokens(token))
    if token < len(CONTROL_TOKENS):
        return Piece(token, letters.encode(), letters)
    data = bytes(byte_letters()[c] for c in letters)
    return Piece(token, data, readable(data))


def readable(data: bytes) -> str:
    """A token's bytes as one can read them: a blank as a dot; what is no character, or none that is seen, in hex."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data.hex(" ").upper()
    shown = text.replace(" ", "\u00b7").replace("\n", "\u21b5")
    return shown if tame(shown) == shown and shown.strip() else data.hex(" ").upper()


def pieces(tokenizer: Any, text: str) -> list[Piece]:
    """A text as tokens. What looks like a control token is text: it becomes plain pieces."""
    return [piece(tokenizer, token) for token in encode_text(tokenizer, text)]


def chips(found: Sequence[Piece], ids: bool = True) -> str:
    """Tokens as boxes, colours taking turns; under each its id, in its tooltip its bytes. Everything is escaped."""
    boxes = ""
    for i, p in enumerate(found):
        colour = COLOURS[i % len(COLOURS)]
        edge = "double" if p.control else "solid"
        title = f"id {p.id}{', a control token' if p.control else ''}, bytes {p.data.hex(' ').upper()}"
        under = f'<br><span style="font-size: 12px; opacity: .75">{p.id}</span>' if ids else ""
        boxes += (
            f'<span title="{html.escape(title)}" style="display: inline-block; margin: 1px; padding: 1px 4px; '
            f"border-radius: 3px; text-align: center; line-height: 1.25; background: {colour}40; "
            f'border-bottom: 3px {edge} {colour}">{html.escape(p.shown)}{under}</span>'
        )
    return (
        f'<div style="font-family: monospace; color: var(--jp-content-font-color1, inherit); '
        f'overflow-wrap: anywhere">{boxes or "<em>no tokens</em>"}</div>'
    )


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


def stretches(segments: Sequence[int]) -> list[tuple[int, int, int]]:
    """(segment, start, length) of each run of equal numbers; 0 is padding."""
    result, start = [], 0
    for segment, run in groupby(segments):
        length = len(list(run))
        result.append((segment, start, length))
        start += length
    return result


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
