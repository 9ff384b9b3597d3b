"""Byte-pair encoding in plain Python: how a vocabulary grows (Sennrich et al. 2016, algorithm 1; Llama 2, section 2.2).

A word is a list of tokens, at the start one a byte, and no pair reaches over the end of a word. Tokens are written as
the library `tokenizers` writes them: a letter for each byte, a blank as "Ġ".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

Words = Sequence[Sequence[str]]
Pair = tuple[str, str]


def pair_counts(words: Words) -> Counter[Pair]:
    """How often each two tokens stand side by side. "aaa" holds the pair ("a", "a") twice, though only one can fuse."""
    return Counter(pair for word in words for pair in pairwise(word))


def ranking(words: Words, ids: Mapping[str, int] | None = None) -> list[tuple[Pair, int]]:
    """Pairs with their counts, the most frequent first. Of equals that of the older tokens comes first, those of the
    smaller ids, left before right, as the library has it; without `ids` the alphabet decides."""
    age = {token: (ids[token] if ids else 0, token) for word in words for token in word}
    return sorted(pair_counts(words).items(), key=lambda item: (-item[1], age[item[0][0]], age[item[0][1]]))


def most_frequent_pair(words: Words, ids: Mapping[str, int] | None = None) -> Pair | None:
    """The two tokens that stand side by side most often (see `ranking`); None where no word has two."""
    found = ranking(words, ids)
    return found[0][0] if found else None


def merge(words: Words, pair: Pair) -> list[list[str]]:
    """The words with the two tokens of the pair as one wherever they stand side by side, from left to right."""
    merged = []
    for word in words:
        new: list[str] = []
        i = 0
        while i < len(word):
            together = tuple(word[i : i + 2]) == pair
            new.append("".join(pair) if together else word[i])
            i += 2 if together else 1
        merged.append(new)
    return merged


def learn(words: Words, ids: dict[str, int]) -> Iterator[tuple[Pair, list[list[str]]]]:
    """Each merge in turn with the words after it, until no word has two tokens. `ids`, the vocabulary, grows; a merge
    that spells a token which is there already (the text holds "<s>") adds none."""
    while pair := most_frequent_pair(words, ids):
        words = merge(words, pair)
        ids.setdefault("".join(pair), len(ids))
        yield pair, words
