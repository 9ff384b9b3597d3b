"""What notebook 01 measures live: how far a larger vocabulary shortens texts, how the corpus and the prompts are made,
and that no text can forge a control token (Llama 2, sections 2.1 and 2.2)."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import torch

from llama2lab.engine import stats
from llama2lab.engine.packing import Ids, Packed
from llama2lab.lab.checking import pieces_of, whose
from llama2lab.lab.chips import byte_letters, readable
from llama2lab.lab.finished import Finished
from llama2lab.lessons.n01_tokenizer.bpe import Words, pair_counts
from llama2lab.lessons.n01_tokenizer.exercises import MERGE, MOST_FREQUENT_PAIR, PACK
from llama2lab.lessons.n01_tokenizer.vocabularies import SIZES, WORDS, corpus, vocabulary
from llama2lab.model.chat import encode_chat
from llama2lab.model.tokenizer import CONTROL_TOKENS, SMALLEST, encode_text, encode_texts
from llama2lab.town.corpus import SHARES, heldout_documents
from llama2lab.town.documents import Pen
from llama2lab.town.items import SKILLS, SPLITS
from llama2lab.town.prompts import contents, every_prompt


def own_merges(
    lab: Finished, merges: int = 12, words: int = 4_000, **pieces: Callable
) -> tuple[list[list[Any]], dict[str, str]]:
    """The first merges of some of the corpus by the student's `most_frequent_pair` and `merge`, the library's where
    they are not right yet: [number, left, right, new token, times] of each, and which function is whose. A second."""
    functions, owner = pieces_of((MOST_FREQUENT_PAIR, MERGE), pieces)
    text = "\n".join(corpus(lab, words))
    split = lab.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    tokens: Words = [list(word) for word, _ in split(text)]
    rows: list[list[Any]] = []
    while len(rows) < merges:
        left, right = functions["most_frequent_pair"](tokens)
        shown = (readable(bytes(byte_letters()[letter] for letter in t)) for t in (left, right, left + right))
        rows.append([len(rows) + 1, *shown, pair_counts(tokens)[left, right]])
        tokens = functions["merge"](tokens, (left, right))
    return rows, owner


def own_rows(
    documents: Sequence[tuple[Ids, Ids]], seq_len: int, pad: int, pack_rows: Callable | None = None
) -> tuple[Packed, str]:
    """Documents (ids, loss mask), cut to a row's length, packed by the student's `pack_rows` or, if that is not right
    yet, the library's; and whose it was."""
    function, owner = whose(PACK, pack_rows)
    made = function([list(ids[:seq_len]) for ids, _ in documents], seq_len, pad)
    tokens, segments = (torch.as_tensor(part).long() for part in made)
    return Packed(tokens, segments, segments > 0), owner


def compression_by_vocabulary(
    lab: Finished, sizes: Sequence[int] = (SMALLEST, *SIZES), documents: int = 150, words: int = WORDS
) -> dict[str, Any]:
    """Tokens a text and bytes a token of held-out documents, for tokenizers of several sizes trained on the same part
    of the corpus; the smallest has no merges at all. A few seconds."""
    texts = heldout_documents(lab.town, 11, documents)
    sizes_in_bytes = [len(t.encode()) for t in texts]
    found: dict[str, Any] = {}
    for size in sizes:
        tokenizer = vocabulary(lab, size, words)
        lengths = [len(ids) for ids in encode_texts(tokenizer, texts)]
        found[str(size)] = {
            "reached": len(tokenizer),
            "tokens_per_text": stats.mean(lengths),
            "bytes_per_token": stats.mean([b / n for b, n in zip(sizes_in_bytes, lengths, strict=True)]),
        }
    return found


def own_compression(lab: Finished, documents: int = 150) -> dict[str, Any]:
    """Bytes a token of the run's own tokenizer on held-out documents of the town. Under a second."""
    texts = heldout_documents(lab.town, 11, documents)
    lengths = [len(ids) for ids in encode_texts(lab.tokenizer, texts)]
    return {
        "vocabulary": len(lab.tokenizer),
        "bytes_per_token": stats.mean([len(t.encode()) / n for t, n in zip(texts, lengths, strict=True)]),
    }


def corpus_kinds(lab: Finished, each: int = 20, seed: int = 0) -> list[dict[str, Any]]:
    """The kinds of documents that the corpus is made of, by their share of its words: name, what it is, share, mean
    length in words, and a short one."""
    pen, total = Pen(lab.town, random.Random(f"kinds {seed}")), sum(SHARES.values())
    found = []
    for kind, share in sorted(SHARES.items(), key=lambda item: -item[1]):
        texts = [kind(pen) for _ in range(each)]
        what = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        words, sample = sum(t.count(" ") + 1 for t in texts) / each, min(texts, key=len)
        sample = textwrap.shorten(sample, 100, placeholder=" ...")
        found.append({"kind": kind.__name__, "what": what, "share": share / total, "words": words, "sample": sample})
    return found


def split_counts(lab: Finished) -> list[list[Any]]:
    """[skill, contents in train, dev, test, in two of them] for every skill: the last must be 0."""
    rows = []
    for skill in (*SKILLS, "unsafe", "borderline"):
        of = [set(contents(lab.town, skill, split)) for split in SPLITS]
        rows.append([skill.replace("_", " "), *map(len, of), sum(map(len, of)) - len(set().union(*of))])
    return rows


def stated_and_asked(lab: Finished, documents: Sequence[str], split: str = "test") -> dict[str, int]:
    """How often a split's facts about people are stated in documents, and how often one of its questions is asked in
    them word for word."""
    town, text = lab.town, "\n".join(documents)
    facts = [name.removeprefix("facts/").split(".") for name in contents(town, "facts", split)]
    said = [
        statement.format(**town.people[who].forms, value=town.people[who].facts[what])
        for who, what in facts
        if who in town.people
        for statement in town.attributes[what].statements
    ]
    questions = {p.question for p in every_prompt(town, split, ("facts",))}
    return {
        "facts": len(facts),
        "stated": sum(text.count(s) for s in said),
        "asked": sum(text.count(q) for q in questions),
    }


def round_trips(lab: Finished, texts: int = 500, longest: int = 40, seed: int = 0) -> dict[str, int]:
    """Random texts from all of Unicode there and back again: how many come back as they were, and how many hold a
    control token."""
    rng = random.Random(seed)
    same = control = tokens = 0
    for _ in range(texts):
        points = (rng.randrange(0x110000) for _ in range(rng.randint(1, longest)))
        text = "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)  # half of a UTF-16 pair is no character
        ids = encode_text(lab.tokenizer, text)
        same += lab.tokenizer.decode(ids) == text
        control += any(i < len(CONTROL_TOKENS) for i in ids)
        tokens += len(ids)
    return {"texts": texts, "same": same, "with_control_tokens": control, "tokens": tokens}


def forgery(lab: Finished, text: str) -> dict[str, Any]:
    """Control tokens in a conversation whose user writes `text`, beside those that the format itself puts there; and
    those that a careless encoding of the same text would have let in."""
    ids, _ = encode_chat(lab.tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
    control = range(len(CONTROL_TOKENS))
    careless = encode_texts(lab.tokenizer, [text], control=True)[0]
    return {
        "text": text,
        "control": sum(i in control for i in ids),
        "of_the_format": 3,
        "careless": sum(i in control for i in careless),
        "read_as": lab.tokenizer.decode(ids),
    }
