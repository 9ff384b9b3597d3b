"""Vocabularies of several sizes, trained now on some of the town's text."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llama2lab.lab.chips import Piece, piece
from llama2lab.lab.finished import Finished
from llama2lab.model.chat import CHAT_TEMPLATE
from llama2lab.model.tokenizer import SMALLEST, train_tokenizer
from llama2lab.town.corpus import pretraining_corpus

SIZES = (300, 400, 600, 900, 1200, 1536, 2000, 3000)
WORDS = 50_000  # of the town's corpus, to train a vocabulary on in the blink of an eye


@lru_cache(maxsize=2)
def corpus(lab: Finished, words: int = WORDS) -> list[str]:
    return pretraining_corpus(lab.town, words, 0)


@lru_cache(maxsize=len(SIZES))
def vocabulary(lab: Finished, size: int, words: int = WORDS) -> Any:
    """A tokenizer of that size, trained now on some of the town's corpus."""
    return train_tokenizer(corpus(lab, words), size, chat_template=CHAT_TEMPLATE)


def merges(tokenizer: Any, first: int = 12) -> list[Piece]:
    """The first tokens that were made by merging two others, in the order in which training found them."""
    return [piece(tokenizer, token) for token in range(SMALLEST, min(SMALLEST + first, len(tokenizer)))]
