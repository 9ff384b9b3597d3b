"""Exercises of notebook 01: the tokenizer and the data (Llama 2, sections 2.1 and 2.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor

from llama2lab.engine import packing
from llama2lab.lab.checking import Exercise, Level, Mistake
from llama2lab.lab.compare import read
from llama2lab.lab.predictions import Choice, Guess, Number, Prediction
from llama2lab.lessons.n01_tokenizer import bpe
from llama2lab.lessons.n01_tokenizer.bpe import Pair, Words
from llama2lab.lessons.n01_tokenizer.own_output import draw_merges, draw_pairs, draw_rows

# ---- byte-pair encoding ------------------------------------------------------------------------------------------


def as_pair(value: Any) -> Pair:
    """Two tokens; raises Mistake for anything else."""
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple):
        raise Mistake("That is a list that holds the pair; Counter.most_common gives such a list: take what is in it.")
    if isinstance(value, list | tuple) and len(value) == 2:
        left, right = value
        if isinstance(left, str) and isinstance(right, str):
            return left, right
        if isinstance(left, list | tuple):
            raise Mistake("Give the pair alone, without its count.")
    if isinstance(value, str):
        raise Mistake(f"{value[:30]!r} is one text; give the two tokens (left, right), which `merge` joins later.")
    if isinstance(value, int | float):
        raise Mistake("That is a number; the pair itself is asked for, not how often it occurs.")
    raise Mistake(f"Two tokens (left, right) are expected, not {type(value).__name__}.")


TEXTS = (  # words by blanks, tokens by hyphens; in the last but one two pairs are equally frequent
    "h-u-g p-u-g p-u-n b-u-n h-u-g-s",
    "t-a b-e t-a b-o l-a b-i",
    "lo-w lo-w-e-r s-lo-w w-e l-o l-o",
    "b-a b-a a-c a-c d-d",
    "l-o l-o l-o n-e n-e-w",
)


def words_of(text: str) -> list[list[str]]:
    return [word.split("-") for word in text.split()]


def winner(words: Words) -> Pair:
    """The library's pair; all words here have pairs."""
    return cast(Pair, bpe.most_frequent_pair(words))


def check_most_frequent_pair(f: Callable) -> None:
    every = [words_of(text) for text in TEXTS]
    counts = [bpe.pair_counts(words) for words in every]
    got, right = [as_pair(f(words)) for words in every], [winner(words) for words in every]
    if got == right:
        return
    for wrong, name in (
        (
            [winner([[token for word in words for token in word]]) for words in every],
            "You count pairs that reach from one word into the next; count within each word.",
        ),
        (
            [winner([list("".join(word)) for word in words]) for words in every],
            "You count letters; a token that was merged before is one symbol, however many letters it has.",
        ),
        (
            [winner(sorted({tuple(word) for word in words})) for words in every],
            "You count equal words once; a word counts as often as it occurs.",
        ),
        ([min(n) for n in counts], "That is the first pair in the alphabet; how often it occurs comes first."),
        ([pair[::-1] for pair in right], "Left and right are swapped: the token that stands first is given first."),
    ):
        if got == wrong:
            raise Mistake(name)
    if all(n[pair] == min(n.values()) for n, pair in zip(counts, got, strict=True)):
        raise Mistake("That pair is the rarest; the most frequent one is asked for.")
    for text, n, pair, best in zip(TEXTS, counts, got, right, strict=True):
        if pair != best and n[pair] == n[best]:
            raise Mistake(
                f"{pair} and {best} occur equally often; of equals the first in the alphabet wins, or two runs of one "
                "training could part here."
            )
        if pair != best:
            raise Mistake(
                f"In the words {text} you find {pair}, which occurs {n[pair]} times; {best} occurs {n[best]}."
            )


MOST_FREQUENT_PAIR = Exercise(
    "01.most_frequent_pair",
    "The pair that wins",
    "Write most_frequent_pair(words) -> (left, right): words is a list of words, each a list of tokens. Give the two "
    "tokens that most often stand side by side within a word; of equals the first in the alphabet (left, then right).",
    Level(difficulty=2, minutes=8, points=2),
    "2.2; arXiv 1508.07909, algorithm 1",
    (
        "zip(word, word[1:]) gives the pairs of a word; collections.Counter counts them.",
        "min(counts, key=lambda pair: (-counts[pair], pair)) is the largest count, then the alphabet.",
    ),
    check_most_frequent_pair,
    bpe.most_frequent_pair,
    lesson="No grammar is in it: parts of words come out because language repeats them. Only counts decide, so another "
    "corpus gives another vocabulary.",
    picture=draw_pairs,
)


def fused(words: Words, pair: Pair, ahead: int = 2, most: int = 10**6, short: int = 0, turned: bool = False) -> Words:
    """Merges as they go wrong: so many tokens onwards after a merge, at most so many in a word, the last tokens of a
    word not looked at, or right before left too."""
    result = []
    for word in words:
        new: list[str] = []
        i = done = 0
        while i < len(word) - short:
            here = tuple(word[i : i + 2])
            hit = done < most and (here == pair or (turned and here[::-1] == pair))
            new.append("".join(here) if hit else word[i])
            done += hit
            i += ahead if hit else 1
        result.append(new)
    return result


def check_merge(f: Callable) -> None:
    for text, pair in (
        ("a-a-a-a-b a b-a-a-a", ("a", "a")),
        ("l-o-w l-o-w-e-r o-l l-o-l-o", ("l", "o")),
        ("ab-c a-bc ab-c-ab-c c-ab", ("ab", "c")),
    ):
        words = words_of(text)
        right = bpe.merge(words, pair)
        backwards = [word[::-1] for word in bpe.merge([word[::-1] for word in words], pair[::-1])]
        backwards = [["".join(pair) if token == "".join(pair[::-1]) else token for token in word] for word in backwards]
        spelt = [_split(list("".join(word)), "".join(pair)) for word in words]
        wrongs: list[tuple[Words, str]] = [
            (
                fused(words, pair, ahead=1),
                "After a merge go on behind both tokens: you use the right one a second time.",
            ),
            (backwards, "Merge from left to right: of a a a the first two fuse."),
            (fused(words, pair, most=1), "Only the first place in each word is merged; merge all of them."),
            (
                fused(words, pair, short=1),
                "The last token of a word is lost: it has no right neighbour, and still belongs to the word.",
            ),
            (fused(words, pair, turned=True), "You merge right before left too; that is another pair."),
            (bpe.merge(words, pair[::-1]), "You take left for right: the pair is (left, right)."),
            (words, "Nothing is merged."),
            (spelt, "You look at letters: 'a' and 'bc' spell what 'ab' and 'c' spell, and are another pair."),
            (
                [[token.replace("".join(pair), " ".join(pair)) for token in word] for word in right],
                "Join the two tokens with nothing between them.",
            ),
        ]
        got = as_words(f(words, pair), len(words))
        if got == right:
            continue
        for wrong, name in wrongs:
            if got == [list(word) for word in wrong]:
                raise Mistake(name)
        at = next(i for i, (g, r) in enumerate(zip(got, right, strict=True)) if g != r)
        raise Mistake(f"Of {words[at]} with the pair {pair} you make {got[at]}; {right[at]} is right.")


def _split(letters: Sequence[str], token: str) -> list[str]:
    """The letters with `token` as one wherever they spell it."""
    left, found, right = "".join(letters).partition(token)
    return [*left, found, *_split(right, token)] if found else list(letters)


def as_words(value: Any, many: int) -> list[list[str]]:
    """Lists of tokens; raises Mistake for anything else."""
    if not isinstance(value, list | tuple):
        raise Mistake(f"A list of words is expected, each a list of tokens, not {type(value).__name__}.")
    if any(isinstance(word, str) for word in value):
        raise Mistake("Each word stays a list of tokens of its own; there is a text where such a list should be.")
    if len(value) != many:
        raise Mistake(f"There are {len(value)} words in the answer; as many as before, {many}, are expected.")
    if not all(isinstance(word, list | tuple) and all(isinstance(t, str) for t in word) for word in value):
        raise Mistake("Each word is a list of tokens, which are texts.")
    return [list(word) for word in value]


MERGE = Exercise(
    "01.merge",
    "A merge",
    "Write merge(words, pair) -> new words, in which the two tokens of pair (left, right) are one token wherever they "
    "stand side by side, taken from left to right; words as before, a list of lists of tokens.",
    Level(difficulty=2, minutes=10, points=2),
    "2.2; arXiv 1508.07909, algorithm 1",
    (
        "Walk through a word with an index: two tokens onwards after a merge, else one.",
        "word[i : i + 2] at the last token is a single one, so it is never equal to the pair.",
    ),
    check_merge,
    bpe.merge,
    lesson="Encoding a new text repeats these merges in the order in which they were learnt. That is why a tokenizer "
    "belongs to its model: another list of merges reads the same text as other tokens.",
    picture=draw_merges,
)

# ---- packing -----------------------------------------------------------------------------------------------------


def pack_rows(documents: Sequence[Sequence[int]], seq_len: int, pad: int) -> tuple[Tensor, Tensor]:
    """The library's packing, every token of which is to be predicted."""
    packed = packing.pack([(list(ids), [1] * len(ids)) for ids in documents], seq_len, 0, pad)
    return packed.tokens, packed.segments


def check_pack(f: Callable) -> None:
    seq_len, pad = 16, 3
    for lengths in ((9, 12, 4, 7, 6, 5), (10, 8, 9, 6, 8, 7), (16, 5)):
        documents = [[100 * d + i for i in range(n)] for d, n in enumerate(lengths, 1)]
        result = f(documents, seq_len, pad)
        if not isinstance(result, list | tuple) or len(result) != 2:
            raise Mistake("Two tables are expected: (tokens, segments).")
        tokens, segments = as_rows(result[0], "tokens", seq_len), as_rows(result[1], "segments", seq_len)
        if tokens.shape != segments.shape:
            raise Mistake("tokens and segments must have the same shape.")
        judge_rows(tokens.tolist(), segments.tolist(), documents, pad)


def as_rows(value: Any, name: str, seq_len: int) -> Tensor:
    """(rows, seq_len) of whole numbers; raises Mistake for anything else."""
    if isinstance(value, list | tuple) and len({len(row) for row in value if isinstance(row, list | tuple)}) > 1:
        raise Mistake(f"The rows of {name} are not of one length; fill each up to seq_len, {seq_len}.")
    rows = read(value, None, name)
    if rows.ndim != 2 or rows.shape[1] != seq_len:
        raise Mistake(f"{name} has shape {tuple(rows.shape)}; (rows, {seq_len}) is expected, each row filled up.")
    return rows.long()


def judge_rows(
    tokens: Sequence[Sequence[int]], segments: Sequence[Sequence[int]], documents: Sequence[Sequence[int]], pad: int
) -> None:
    """Raise Mistake unless the rows hold each document once and whole, rightly numbered, and none is in vain."""
    flat = [t for row in tokens for t in row]
    of = {token: number for number, ids in enumerate(documents, 1) for token in ids}
    if strange := [t for t in flat if t not in of and t != pad]:
        raise Mistake(f"{strange[0]} is no token of a document; what is left of a row is filled with pad, here {pad}.")
    for number, ids in enumerate(documents, 1):
        times = [flat.count(token) for token in ids]
        if max(times) > 1:
            raise Mistake(f"Document {number} stands in the rows twice.")
        if min(times) == 0:
            some = f"The end of document {number}" if max(times) else f"Document {number}"
            raise Mistake(f"{some} is missing: each document stands in some row, whole.")
        rows = {r for r, row in enumerate(tokens) for t in row if of.get(t) == number}
        if len(rows) > 1:
            raise Mistake(f"Document {number} is cut where a row ends; what does not fit goes to another row, whole.")
        if [t for t in flat if of.get(t) == number] != list(ids):
            raise Mistake(f"The tokens of document {number} are not in their order.")
    marks = [s for row in segments for s in row]
    if all(marks[i] == of.get(t, 0) for i, t in enumerate(flat)) and len(tokens) > 1:
        raise Mistake("Segments are numbered through all rows; in each row they begin again at 1.")
    for row, numbers in zip(tokens, segments, strict=True):
        seen = list(dict.fromkeys(of[t] for t in row if t in of))
        right = [seen.index(of[t]) + 1 if t in of else 0 for t in row]
        if [of[t] for t in row if t in of] != sorted((of[t] for t in row if t in of), key=seen.index):
            raise Mistake("Two documents of a row are mixed; a document is one stretch.")
        if list(numbers) == right:
            continue
        if any(n for n, t in zip(numbers, row, strict=True) if t == pad):
            raise Mistake("Padding has the segment 0: it is no document, and must be seen by none.")
        if list(numbers) == [max(0, n - 1) for n in right]:
            raise Mistake("The first document of a row has the segment 1; 0 is padding.")
        raise Mistake(f"The segments of a row are {list(numbers)}; for the documents in it {right} is right.")
    used = [sum(t != pad for t in row) for row in tokens]
    if 0 in used:
        raise Mistake("A row is empty.")
    if len(used) == len(documents) > 2:
        raise Mistake("There is one document to a row; the padding is multiplied too, so put several into a row.")
    for i, a in enumerate(used):
        for j, b in enumerate(used[:i]):
            if a + b <= len(tokens[0]):
                raise Mistake(
                    f"Rows {j + 1} and {i + 1} hold {b} and {a} tokens and would fit into one: before you begin a row, "
                    "look at every row that has room, not at the last alone."
                )


PACK = Exercise(
    "01.pack",
    "Documents in rows",
    "Write pack_rows(documents, seq_len, pad) -> (tokens, segments), both (rows, seq_len). Documents are lists of ids, "
    "none longer than a row; each goes whole into a row with room, and begins a new one only if there is none. "
    "segments numbers the documents of a row from 1; what is left is pad in tokens and 0 in segments.",
    Level(difficulty=3, minutes=15, points=3),
    "3.1",
    (
        "Keep rows as lists that grow: next((row for row in rows if len(row) + len(ids) <= seq_len), None).",
        "Keep a second list beside each row for its segments; a new document's number is one more than the last.",
        "Fill both up at the end: row + [pad] * (seq_len - len(row)).",
    ),
    check_pack,
    pack_rows,
    lesson="The segments buy the saving without its price: masks and positions are made from them, so that what stands "
    "beside a document in its row changes nothing for it.",
    picture=draw_rows,
)

# ---- questions and predictions -----------------------------------------------------------------------------------

DIGITS = Exercise(
    "01.digits",
    "A number in tokens",
    "Digits stand alone, as in Llama 2. How many tokens does the text 2026 take (spaces and control tokens not "
    "counted)?",
    Level(difficulty=1, minutes=1, points=1),
    "2.2",
    ("One token a digit.",),
    Number(
        4,
        (
            (1, "A tokenizer that merges digits would do that; here each stands alone."),
            (2, "Pairs of digits are not merged: each stands alone."),
        ),
        relative=0.0,
    ),
    lesson="Digit by digit a number is written as one adds, place by place; a merged 2026 would be a word that has "
    "nothing in common with 2027.",
)

WHY_BYTES = Exercise(
    "01.why_bytes",
    "A character never seen",
    "The corpus holds no snowman. What becomes of it in our tokenizer?",
    Level(difficulty=1, minutes=2, points=1),
    "2.2",
    ("From what does the vocabulary start?",),
    Choice(
        a=("the unknown token", "Every byte has a token of its own, so nothing is unknown."),
        b="its bytes, three tokens",
        c=("nothing, it is dropped", "A tokenizer that drops text could not give it back; ours gives back every text."),
    ),
    lesson="An unknown token loses what stood there for ever. Bytes only make rare characters long, so they take more "
    "of the context and are learnt worse.",
)

MORE_VOCABULARY = Exercise(
    "01.more_vocabulary",
    "Twice the vocabulary",
    "The plot shows tokens a text against the size of the vocabulary. Why does the curve flatten?",
    Level(difficulty=2, minutes=3, points=1),
    "2.2",
    ("Which pairs are merged first?",),
    Choice(
        a="frequent pairs are merged first, later ones save little",
        b=("texts cannot get shorter than one token", "True of any text, but the curve flattens long before."),
        c=("long tokens are slower", "Speed is not what the plot shows."),
    ),
    lesson="Words follow Zipf's law: a few make up most of a text. A late token is rare, so it saves little and its "
    "embedding is learnt from few examples.",
)

COMPRESSION = Prediction(
    "01.compression",
    "Bytes in a token",
    "Predict how many bytes of the town's text one token of our tokenizer holds on average.",
    Level(difficulty=1, minutes=2, points=1),
    "2.2",
    ("Without merges it is exactly 1.",),
    Guess(
        1.0,
        20.0,
        "The town repeats itself: frequent words are single tokens.",
        "A small vocabulary has no room for every word.",
        relative=0.2,
    ),
    lesson="More bytes a token are more text in the same context and fewer steps to write an answer; but only on text "
    "like that on which the merges were learnt.",
)

EXERCISES = (MOST_FREQUENT_PAIR, MERGE, DIGITS, WHY_BYTES, MORE_VOCABULARY, COMPRESSION, PACK)
