"""Pictures of a student's own output in notebook 01: pairs, merges and packed rows."""

from __future__ import annotations

import torch

from llama2lab.engine.packing import Packed
from llama2lab.lab.chips import packed_picture, token_picture
from llama2lab.lab.own_output import WIDTH, Answer, numbers, own, texts
from llama2lab.lab.pictures import bars
from llama2lab.lessons.n01_tokenizer import bpe

WORDS = [list(word) for word in ["she", "sells", "sea", "shells", "by", "the", "sea", "shore"]]
MERGES = 8
ROW = 32  # tokens


def draw_pairs(f: Answer) -> str:
    """The pairs that the student's function fuses one after the other; the library does the merging."""
    words, won = WORDS, []
    for number in range(1, MERGES + 1):
        left, right = texts(f(words), 2)
        won.append((f"{number}. {left[:8]} + {right[:8]}", float(bpe.pair_counts(words)[left, right])))
        words = bpe.merge(words, (left, right))
    title = f"Your first {MERGES} pairs of “{' '.join(map(''.join, WORDS))}”"
    return own(title, bars(won, title, width=WIDTH), note="How often each stands in the words when it wins.")


def draw_merges(f: Answer) -> str:
    """Words as the student's function fuses them; the library chooses the pairs."""
    words, body = WORDS, ""
    for number in range(MERGES + 1):
        if number:
            words = [texts(word, 9) for word in f(words, bpe.most_frequent_pair(words))[: len(WORDS)]]
        if number % 4 == 0:
            tokens = [token[:12] for word in words for token in [*word, ""]]
            body += f"<div>{sum(map(len, words))} tokens, after {number} merges</div>"
            body += token_picture([(token, len(token) > 1) for token in tokens[:-1]])
    return own("Your merges", body, note="Filled: fused by your function. An empty box parts two words.")


def draw_rows(f: Answer) -> str:
    """Documents in the rows of the student's function."""
    lengths = (20, 9, 25, 12, 7, 14, 6, 11, 5, 16)
    documents = [[100 * d + i for i in range(n)] for d, n in enumerate(lengths, 1)]
    _, segments = f(documents, ROW, 3)
    rows = len(segments)
    marks = torch.tensor(numbers(segments, min(rows, len(lengths)), ROW)).long()
    share = float((marks == 0).double().mean())
    note = f"{len(lengths)} documents, a colour each within its row; {share:.0%} of the room is padding (clear)."
    title = f"Your rows of {ROW} tokens"
    return own(title, packed_picture(Packed(marks, marks, marks > 0), width=WIDTH), note=note)
