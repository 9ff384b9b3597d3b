"""The BPE machine: a text as symbols, the counts of its pairs, and the pair that wins becomes a token, merge by merge.

The merges are those that `train_tokenizer` learns from the same text: same words, same bytes, same rule for ties.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import traitlets

from llama2lab.engine.errors import LabError
from llama2lab.lab.chips import Piece, byte_letters, readable
from llama2lab.lab.picture import Picture
from llama2lab.lab.pictures import bars, table
from llama2lab.lessons.n01_tokenizer.bpe import Words, learn, ranking
from llama2lab.model.tokenizer import CONTROL_TOKENS, SMALLEST, train_tokenizer
from llama2lab.town.corpus import pretraining_corpus
from llama2lab.town.town import Town

LONGEST = 600  # characters that the machine reads
TOP = 10  # pairs in the list
START = 400  # characters of the text at the start, at most


def town_text(town: Town, words: int = 2000) -> str:
    """The longest document of at most 400 characters in a corpus of that many words (seed 0)."""
    return max((text for text in pretraining_corpus(town, words, 0) if len(text) <= START), key=len)


def film(text: str) -> dict[str, Any]:
    """All that the picture shows, from the bytes to the last merge.

    words: for each word its bytes, each [id, byte, how it reads alone, how it reads in its whole character, the number
    of the merge that fuses it with the byte before it, or None]. A token at step k is a run of bytes that the first k
    merges fused. steps: for each number of merges the top pairs [left id, right id, count], how many pairs there are,
    how many share the first place, the symbols of the text, the entries of the vocabulary, and the id of the token
    that the next merge makes. names: how each token reads.

    Raises LabError for a text of more than LONGEST characters, or one that is no Unicode.
    """
    if len(text) > LONGEST:
        raise LabError(f"the text has {len(text):,} characters; the BPE machine reads {LONGEST:,}")
    tokenizer = train_tokenizer([text], SMALLEST)  # no merges: bytes and control tokens
    ids = dict(tokenizer.get_vocab())
    words: Words = [list(word) for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    letters = [letter for word in words for letter in word]
    fused: list[int | None] = [None] * len(letters)
    names: dict[str, str] = {}
    steps: list[dict[str, Any]] = []

    def step(words: Words) -> None:
        ranked = ranking(words, ids)
        for token in {token for pair, _ in ranked[:TOP] for token in pair} | {t for word in words for t in word}:
            names.setdefault(str(ids[token]), token if ids[token] < len(CONTROL_TOKENS) else readable(_bytes(token)))
        steps.append(
            {
                "pairs": [[ids[left], ids[right], count] for (left, right), count in ranked[:TOP]],
                "kinds": len(ranked),
                "tied": sum(count == ranked[0][1] for _, count in ranked),
                "symbols": sum(map(len, words)),
                "vocabulary": len(ids),
            }
        )

    step(words)
    before = _starts(words)
    for number, (pair, after) in enumerate(learn(words, ids)):
        for place in before - _starts(after):
            fused[place] = number
        before = _starts(after)
        steps[-1]["token"] = ids["".join(pair)]
        step(after)
    units = iter(zip(letters, fused, strict=True))
    return {
        "text": text,
        "longest": LONGEST,
        "control": len(CONTROL_TOKENS),
        "bytes": len(letters),
        "words": [
            [[ids[letter], *reads, at] for reads, (letter, at) in zip(_read(word), units, strict=False)]
            for word in words
        ],
        "steps": steps,
        "names": names,
        "problem": "",
    }


def _bytes(token: str) -> bytes:
    return bytes(byte_letters()[letter] for letter in token)


def _starts(words: Words) -> set[int]:
    """Where tokens begin, in bytes from the start of the text."""
    at, found = 0, set()
    for word in words:
        for token in word:
            found.add(at)
            at += len(token)
    return found


def _read(word: Any) -> list[list[Any]]:
    """[byte, how it reads alone, how it reads once its character is whole] of each byte of a word: a character of
    several bytes reads as itself at the first and as nothing at the others."""
    found: list[list[Any]] = []
    for character in _bytes("".join(word)).decode():
        data, whole = character.encode(), readable(character.encode())
        alone = [readable(bytes([b])) for b in data]
        seen = alone if " " in whole else [whole] + [""] * (len(data) - 1)  # a character that is not seen stays in hex
        found += [list(row) for row in zip(data, alone, seen, strict=True)]
    return found


def tokens(data: dict[str, Any], step: int) -> list[Piece]:
    """The tokens of the text after that many merges."""
    found: list[Piece] = []
    for word in data["words"]:
        runs: list[list[list[Any]]] = []
        for unit in word:
            if runs and unit[4] is not None and unit[4] < step:
                runs[-1].append(unit)
            else:
                runs.append([unit])
        for run in runs:
            last = max((unit[4] for unit in run[1:]), default=None)  # the merge that made the token
            token = run[0][0] if last is None else data["steps"][last]["token"]
            found.append(Piece(token, bytes(unit[1] for unit in run), data["names"][str(token)]))
    return found


def _line(found: Sequence[Piece]) -> str:
    """Tokens in a line, short enough to be kept in a notebook for every symbol: bars between them, merged ones bold."""
    shown = (html.escape(piece.shown) for piece in found)
    bold = (f"<b>{text}</b>" if len(piece.data) > 1 else text for piece, text in zip(found, shown, strict=True))
    return f'<p style="font-family: monospace; overflow-wrap: anywhere">{"|".join(bold)}</p>'


class BpeMachine(Picture):
    """Step by step from bytes to words; the visitor's own text is sent back as `text`."""

    text = traitlets.Unicode().tag(sync=True)

    def __init__(self, text: str):
        super().__init__(data=film(text), text=text)
        self.observe(self._again, "text")

    def _again(self, change: Any) -> None:
        try:
            self.data = film(change["new"])
        except LabError as e:
            self.data = {**self.data, "problem": str(e)}

    def static(self) -> str:
        data, names = self.data, self.data["names"]
        last = len(data["steps"]) - 1
        rows = ""
        for step in sorted({min(step, last) for step in (0, 10, 50)}):
            found = tokens(data, step)
            rows += f"<p>After {step} merges, {len(found)} symbols:</p>{_line(found)}"
        pairs = [(f"{names[str(a)]} + {names[str(b)]}", n) for a, b, n in data["steps"][0]["pairs"]]
        made = [
            [number + 1, *(names[str(i)] for i in (*step["pairs"][0][:2], step["token"])), step["pairs"][0][2]]
            for number, step in enumerate(data["steps"][: min(last, 10)])
        ]
        return (
            f"<div><strong>{TITLE}</strong><p>{html.escape(DO)} {html.escape(SEE)}</p>{rows}"
            f"<p>The most frequent pairs of bytes at the start:</p>{bars(pairs, 'counts of the most frequent pairs')}"
            f"<p>The first merges:</p>{table(['merge', 'left', 'right', 'new token', 'times'], made)}</div>"
        )


TITLE = "BPE machine"
DO = "The two neighbours seen most often become one token, everywhere at once; then all is counted again."
SEE = "Parts of words come first, whole words later; nothing fuses across the end of a word."
