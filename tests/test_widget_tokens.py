"""The tokenizer explorer: pieces are the text's bytes, in order, and nothing is forged or lost."""

import pytest
from lab_cases_first import first_fit
from tokenizers import pre_tokenizers

from llama2lab.lab.chips import byte_letters, chips, pieces
from llama2lab.lessons.n01_tokenizer import bpe
from llama2lab.lessons.n01_tokenizer.experiments import (
    compression_by_vocabulary,
    corpus_kinds,
    forgery,
    own_merges,
    own_rows,
    round_trips,
    split_counts,
)
from llama2lab.lessons.n01_tokenizer.vocabularies import merges, vocabulary
from llama2lab.lessons.n01_tokenizer.widget_tokens import EXAMPLES, TokenExplorer, counts
from llama2lab.model.tokenizer import CONTROL_TOKENS, SMALLEST, encode_text
from llama2lab.stages.pretrain import encode_documents

HOSTILE = "<script>alert(1)</script> [INST] </s> \u202e\x00"


def test_the_letters_of_bytes_are_the_tokenizers():
    assert sorted(byte_letters()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_letters().values()) == list(range(256))


@pytest.mark.parametrize("text", [*EXAMPLES.values(), HOSTILE, "", "\n\n  \t"])
def test_pieces_are_the_bytes_of_the_text(lab, text):
    found = pieces(lab.tokenizer, text)
    assert b"".join(p.data for p in found) == text.encode()
    assert not any(p.control for p in found)
    assert counts(found).bytes == len(text.encode()) and counts(found).characters == len(text)


def test_what_is_counted(lab):
    n = counts(pieces(lab.tokenizer, "In 2026"))
    assert (n.digits, n.merged_digits) == (4, 0)
    assert counts(pieces(lab.tokenizer, "\u2603")).alone == 3
    assert len(merges(lab.tokenizer, 5)) == 5


def test_hostile_text_is_escaped_and_seen(lab):
    shown = chips(pieces(lab.tokenizer, HOSTILE))
    assert "<script" not in shown and "\u202e" not in shown and "\x00" not in shown
    explorer = TokenExplorer(lab)
    explorer.text.value = HOSTILE
    assert "<script" not in explorer.static() and "0 control tokens" in explorer.static()


def test_the_picture_follows_the_controls(lab):
    explorer = TokenExplorer(lab)
    first = explorer.static()
    explorer.size.value = 300
    assert explorer.static() != first and len(vocabulary(lab, 300)) == 300
    explorer.example.value = EXAMPLES["numbers"]
    assert explorer.text.value == EXAMPLES["numbers"] and "11 digits alone, 0 merged" in explorer.static()
    explorer.text.value = "x" * 3000
    assert "reads 2,000" in explorer.static()


def test_a_larger_vocabulary_makes_texts_shorter(lab):
    found = compression_by_vocabulary(lab, (SMALLEST, 300, 600), documents=20, words=3000)
    lengths = [f["tokens_per_text"]["mean"] for f in found.values()]
    assert lengths == sorted(lengths, reverse=True)
    assert found[str(SMALLEST)]["bytes_per_token"]["mean"] == pytest.approx(1)


def test_data_and_forgery(lab):
    assert sum(k["share"] for k in corpus_kinds(lab, each=2)) == pytest.approx(1)
    assert all(row[-1] == 0 for row in split_counts(lab))
    trips = round_trips(lab, 50)
    assert trips["same"] == 50 and trips["with_control_tokens"] == 0
    for token in CONTROL_TOKENS:
        found = forgery(lab, f"a {token} b")
        assert found["control"] == found["of_the_format"] and found["careless"] == 1
    assert not set(encode_text(lab.tokenizer, "".join(CONTROL_TOKENS))) & set(range(len(CONTROL_TOKENS)))


def test_merges_and_rows_of_ones_own(lab):
    rows, owner = own_merges(lab, 3, 300, most_frequent_pair=lambda words: ("q", "q"), merge=bpe.merge)
    assert owner == {"most_frequent_pair": "the library's", "merge": "yours"}
    assert [row[0] for row in rows] == [1, 2, 3] and rows[0][4] >= rows[1][4] > 0
    assert all(left + right == token for _, left, right, token, _ in rows)
    documents = list(encode_documents(lab.tokenizer, ["a b c"] * 9 + ["a long one " * 40]))
    packed, who = own_rows(documents, 32, 3)
    assert who == "the library's" and packed.tokens.shape[1] == 32
    assert int(packed.segments.max()) > 1 and bool((packed.tokens[packed.segments == 0] == 3).all())
    in_order, who = own_rows(documents, 32, 3, first_fit)
    assert who == "yours" and in_order.tokens[0, : len(documents[0][0])].tolist() == documents[0][0]
