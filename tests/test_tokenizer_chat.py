"""Text and conversations: nothing is lost, nothing is forged, and the loss mask is where it should be."""

import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama2lab.chat import decode_answer, encode_chat, encode_chats, escape, segments
from llama2lab.errors import LabError
from llama2lab.tokenizer import CONTROL_TOKENS, encode_text, load_tokenizer, train_tokenizer

TEXTS = ["Mira lives in the mill and keeps 12 bees.", "Where does Mira live?", "Ahoy! She lives in the mill."] * 20
TOKENIZER = train_tokenizer(TEXTS, 300)
CONTROL_IDS = set(range(len(CONTROL_TOKENS)))

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
nasty_text = st.lists(st.one_of(unicode_text, st.sampled_from([*CONTROL_TOKENS, " ", "\n", "[IN", "ST]", "<", ">"])),
                      max_size=6).map("".join)


@st.composite
def chats(draw):
    system = [{"role": "system", "content": draw(nasty_text)}] if draw(st.booleans()) else []
    turns = draw(st.integers(1, 5))
    return system + [{"role": "assistant" if i % 2 else "user", "content": draw(nasty_text)} for i in range(turns)]


def dialogue(*contents: str, system: str | None = None) -> list[dict]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": "assistant" if i % 2 else "user", "content": c} for i, c in enumerate(contents)]


def test_layout_of_ids(tmp_path):
    assert TOKENIZER.convert_ids_to_tokens(list(range(8))) == list(CONTROL_TOKENS)
    assert len(TOKENIZER) == 300
    assert len({encode_text(TOKENIZER, chr(i))[0] for i in range(33, 127)}) == 94
    assert (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (1, 2, 3)
    TOKENIZER.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert encode_text(again, TEXTS[0]) == encode_text(TOKENIZER, TEXTS[0])
    assert again.chat_template == TOKENIZER.chat_template
    assert (again.padding_side, again.pad_token_id) == ("left", 3)


def test_training_is_deterministic():
    assert train_tokenizer(TEXTS, 300).get_vocab() == TOKENIZER.get_vocab()


def test_digits_stand_alone():
    pieces = [TOKENIZER.decode([i]) for i in encode_text(TOKENIZER, "1204 and 56")]
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("120456")


@settings(deadline=None)
@given(nasty_text)
@example(" 10 ")
@example("\x00\u200b\u00e9 e\u0301 \U0001f469\u200d\U0001f467")
@example("a .b ,c 's n't")
def test_every_text_comes_back_without_control_tokens(text):
    ids = encode_text(TOKENIZER, text)
    assert TOKENIZER.decode(ids) == text
    assert not CONTROL_IDS & set(ids)


def test_lone_surrogates_are_refused():
    with pytest.raises(LabError, match=r"lone surrogate .* at character 2"):
        encode_text(TOKENIZER, "a\ud83d")
    with pytest.raises(LabError, match="lone surrogate"):
        encode_chat(TOKENIZER, dialogue("\ud83d"))


def test_the_format_to_the_letter():
    messages = dialogue(" Hi ", "Ahoy!", "Where?", system="Be kind.")
    assert "".join(segments(messages)) == ("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Ahoy! </s>"
                                "<s>[INST] Where? [/INST]")


@settings(deadline=None)
@given(chats())
@example(dialogue("[IN[INST]ST]", "<</s>/s>", "<<<SYS>>SYS>>", system="<</SYS>>"))
@example(dialogue("[INST", "]", "", ""))
def test_same_as_the_template(messages):
    assert TOKENIZER.apply_chat_template(messages, tokenize=False) == "".join(segments(messages))
    theirs = TOKENIZER.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encode_chat(TOKENIZER, messages)
    assert (ids, mask) == (theirs["input_ids"], theirs["assistant_masks"])


@settings(deadline=None)
@given(chats())
def test_control_tokens_cannot_be_forged(messages):
    ids, mask = encode_chat(TOKENIZER, messages)
    users = sum(m["role"] == "user" for m in messages)
    answers = sum(m["role"] == "assistant" for m in messages)
    system = int(messages[0]["role"] == "system")
    count = {token: ids.count(i) for i, token in enumerate(CONTROL_TOKENS)}
    assert count == {"<unk>": 0, "<s>": users, "</s>": answers, "<pad>": 0, "[INST]": users, "[/INST]": users,
                     "<<SYS>>": system, "<</SYS>>": system}
    # What is trained: all between [/INST] and </s>, the latter included.
    trained, inside = [], False
    for i in ids:
        trained.append(int(inside))
        inside = i == 5 or (inside and i != 2)
    assert mask == (trained if answers else [0] * len(ids))


def test_mask_of_the_last_turn():
    messages = dialogue("a", "b c", "d", "e f")
    ids, every = encode_chat(TOKENIZER, messages)
    same, last = encode_chat(TOKENIZER, messages, mask_turns="last")
    assert ids == same
    assert sum(last) == sum(every) // 2
    assert decode_answer(TOKENIZER, [i for i, m in zip(ids, last) if m]) == "e f"


def test_batches_equal_singles():
    batch = [dialogue("a"), dialogue("b", "c", "d", system="s"), dialogue("Mira 12", "bees")]
    assert encode_chats(TOKENIZER, batch) == [encode_chat(TOKENIZER, m) for m in batch]
    assert encode_chats(TOKENIZER, []) == []


@settings(deadline=None)
@given(nasty_text)
def test_answers_come_back(text):
    ids, mask = encode_chat(TOKENIZER, dialogue("q", text))
    answer = [i for i, m in zip(ids, mask) if m]
    assert decode_answer(TOKENIZER, [*answer, 9, 9]) == escape(text).strip()


@pytest.mark.parametrize("messages, words", [
    ([], "needs a user message"),
    ([{"role": "system", "content": "s"}], "needs a user message after"),
    ([{"role": "assistant", "content": "a"}], "message 1 is of 'assistant', expected 'user'"),
    (dialogue("a") * 2, "message 2 is of 'user', expected 'assistant'"),
    ([*dialogue("a"), {"role": "system", "content": "s"}], "message 2 is of 'system'"),
    ([{"role": "user", "content": 3}], "message 1 is not"),
])
def test_messages_out_of_place(messages, words):
    with pytest.raises(LabError, match=words):
        encode_chat(TOKENIZER, messages)


def test_generation_prompt():
    assert encode_chat(TOKENIZER, dialogue("a"), add_generation_prompt=True)[0][-1] == 5
    with pytest.raises(LabError, match="ends with an answer"):
        encode_chat(TOKENIZER, dialogue("a", "b"), add_generation_prompt=True)


def test_tokenizer_mistakes(tmp_path, monkeypatch):
    with pytest.raises(LabError, match="at least 264"):
        train_tokenizer(TEXTS, 200)
    with pytest.raises(LabError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tok.model").write_bytes(b"junk")
    with pytest.raises(LabError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(LabError, match=r"pip install llama2lab\[hub\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(LabError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)
