"""Text and conversations: nothing is lost, nothing is forged, and the loss mask is where it should be."""

import ast
import json
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import llama2lab
from llama2lab.cli.main import app
from llama2lab.engine.errors import LabError
from llama2lab.model.chat import CHAT_TEMPLATE, decode_answer, encode_chat, encode_chats, escape, segments
from llama2lab.model.checkpoint import save_model
from llama2lab.model.tokenizer import CONTROL_TOKENS, control_strings, encode_text, load_tokenizer, train_tokenizer
from llama2lab.model.tokenizer_files import endless
from llama2lab.run.start_from import with_control_tokens

TEXTS = ["Mira lives in the mill and keeps 12 bees.", "Where does Mira live?", "Ahoy! She lives in the mill."] * 20
TOKENIZER = train_tokenizer(TEXTS, 300, chat_template=CHAT_TEMPLATE)
CONTROL_IDS = set(range(len(CONTROL_TOKENS)))

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
nasty_text = st.lists(
    st.one_of(unicode_text, st.sampled_from([*CONTROL_TOKENS, " ", "\n", "[IN", "ST]", "<", ">"])), max_size=6
).map("".join)


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
    assert train_tokenizer(TEXTS, 300, chat_template=CHAT_TEMPLATE).get_vocab() == TOKENIZER.get_vocab()


def test_digits_stand_alone():
    pieces = [TOKENIZER.decode([i]) for i in encode_text(TOKENIZER, "1204 and 56")]
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("120456")


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
    assert "".join(segments(messages)) == (
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Ahoy! </s><s>[INST] Where? [/INST]"
    )


@given(chats())
@example(dialogue("[IN[INST]ST]", "<</s>/s>", "<<<SYS>>SYS>>", system="<</SYS>>"))
@example(dialogue("[INST", "]", "", ""))
def test_same_as_the_template(messages):
    assert TOKENIZER.apply_chat_template(messages, tokenize=False) == "".join(segments(messages))
    theirs = TOKENIZER.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encode_chat(TOKENIZER, messages)
    assert (ids, mask) == (theirs["input_ids"], theirs["assistant_masks"])


@given(chats())
def test_control_tokens_cannot_be_forged(messages):
    ids, mask = encode_chat(TOKENIZER, messages)
    users = sum(m["role"] == "user" for m in messages)
    answers = sum(m["role"] == "assistant" for m in messages)
    system = int(messages[0]["role"] == "system")
    count = {token: ids.count(i) for i, token in enumerate(CONTROL_TOKENS)}
    assert count == {
        "<unk>": 0,
        "<s>": users,
        "</s>": answers,
        "<pad>": 0,
        "[INST]": users,
        "[/INST]": users,
        "<<SYS>>": system,
        "<</SYS>>": system,
    }
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
    assert decode_answer(TOKENIZER, [i for i, m in zip(ids, last, strict=True) if m]) == "e f"


def test_batches_equal_singles():
    batch = [dialogue("a"), dialogue("b", "c", "d", system="s"), dialogue("Mira 12", "bees")]
    assert encode_chats(TOKENIZER, batch) == [encode_chat(TOKENIZER, m) for m in batch]
    assert encode_chats(TOKENIZER, []) == []


@given(nasty_text)
def test_answers_come_back(text):
    ids, mask = encode_chat(TOKENIZER, dialogue("q", text))
    answer = [i for i, m in zip(ids, mask, strict=True) if m]
    assert decode_answer(TOKENIZER, [*answer, 9, 9]) == escape(text).strip()


@pytest.mark.parametrize(
    "messages, words",
    [
        ([], "needs a user message"),
        ([{"role": "system", "content": "s"}], "needs a user message after"),
        ([{"role": "assistant", "content": "a"}], "message 1 is of 'assistant', expected 'user'"),
        (dialogue("a") * 2, "message 2 is of 'user', expected 'assistant'"),
        ([*dialogue("a"), {"role": "system", "content": "s"}], "message 2 is of 'system'"),
        ([{"role": "user", "content": 3}], "message 1 is not"),
    ],
)
def test_messages_out_of_place(messages, words):
    with pytest.raises(LabError, match=words):
        encode_chat(TOKENIZER, messages)


def test_generation_prompt():
    assert encode_chat(TOKENIZER, dialogue("a"), add_generation_prompt=True)[0][-1] == 5
    with pytest.raises(LabError, match="ends with an answer"):
        encode_chat(TOKENIZER, dialogue("a", "b"), add_generation_prompt=True)


def test_tokenizer_mistakes(tmp_path, monkeypatch):
    with pytest.raises(LabError, match="at least 264"):
        train_tokenizer(TEXTS, 200, chat_template=CHAT_TEMPLATE)
    with pytest.raises(LabError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tok.model").write_bytes(b"junk")
    with pytest.raises(LabError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(LabError, match=r"pip install llama2lab\[hub\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(LabError, match=r"tokenizer.json: broken JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(LabError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)


# ---- tokenizers from elsewhere -------------------------------------------------------------------------------

FOREIGN = ["<|im_end|>", "<|im_start|>", "<think>", "[TOOL]", "\u2603", "<a b>", "</x>", "'}}{%", "\\end"]


def foreign(kind: str):
    """A tokenizer with FOREIGN tokens: of bytes, each added; with some in the vocabulary, where merges lead to them; of
    a Unigram model; one that normalises what it reads. Half of the added tokens are special."""
    added = [AddedToken(t, special=i % 2 == 0, normalized=False) for i, t in enumerate(FOREIGN)]
    if kind == "unigram":
        pieces = [("<unk>", 0.0), *((chr(i), -5.0) for i in range(32, 127)), ("</x>", -0.1), ("<think>", -0.1)]
        backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    else:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {c: i for i, c in enumerate(letters)}
        merges = [("<", "/"), ("</", "x"), ("</x", ">"), ("<", "t")] if kind == "merges" else []
        for a, b in merges:
            vocab[a + b] = len(vocab)
        backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=kind == "merges"))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind != "merges")
        backend.decoder = decoders.ByteLevel()
    if kind == "normalised":
        backend.normalizer = normalizers.NFKC()
        added = [AddedToken(t, special=i % 2 == 0, normalized=True) for i, t in enumerate(FOREIGN)]
    unknown = {"unk_token": "<unk>"} if kind == "unigram" else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **unknown)
    tokenizer.add_tokens(added)
    return tokenizer


TOKENIZERS = {kind: foreign(kind) for kind in ("bytes", "merges", "unigram", "normalised")}
PREPARED = {kind: with_control_tokens(foreign(kind))[0] for kind in TOKENIZERS}
foreign_text = st.lists(
    st.one_of(
        unicode_text,
        st.sampled_from([*FOREIGN, *CONTROL_TOKENS, "<|im", "_end|>", " ", "<", "\uff1c|im_end|\uff1e", "<a", " b>"]),
    ),
    max_size=6,
).map("".join)


def added_ids(tokenizer) -> set[int]:
    ids = set(tokenizer.added_tokens_decoder) | {
        tokenizer.get_vocab()[t] for t in control_strings(tokenizer) if t in tokenizer.get_vocab()
    }
    return ids - {tokenizer.unk_token_id}


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(foreign_text)
@example("hi <|im_end|>")
@example("<think>")
@example("</x>")
@example("\uff1cthink\uff1e \u2603")
def test_no_text_becomes_a_control_token_of_any_tokenizer(kind, text):
    for tokenizer in (TOKENIZERS[kind], PREPARED[kind]):
        ids = encode_text(tokenizer, text)
        assert not added_ids(tokenizer) & set(ids)
        if kind in ("bytes", "merges"):
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(st.lists(foreign_text, min_size=1, max_size=3), st.booleans())
@example(["hi <|im_end|>", "<think> \u2603 <a b>"], True)
@example(["<|<|im_end|>im_end|>", "<a  b>"], False)
def test_no_conversation_forges_a_control_token_of_any_tokenizer(kind, texts, system):
    tokenizer = PREPARED[kind]
    messages = dialogue(*texts, system="<|im_start|>[TOOL]" if system else None)
    ids, mask = encode_chat(tokenizer, messages)
    forged = added_ids(tokenizer) - {tokenizer.get_vocab()[t] for t in CONTROL_TOKENS}
    assert not forged & set(ids)
    users = (len(texts) + 1) // 2
    expected = {"<s>": users, "</s>": len(texts) // 2, "<<SYS>>": system, "[/INST]": users}
    assert {t: ids.count(tokenizer.get_vocab()[t]) for t in expected} == expected
    theirs = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert not forged & set(theirs["input_ids"]) or kind == "normalised"  # see start_from.with_control_tokens
    if kind == "bytes":
        assert (ids, mask) == (theirs["input_ids"], theirs["assistant_masks"])


def test_a_saved_folder_forges_nothing_either(tmp_path):
    PREPARED["bytes"].save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    messages = dialogue("hi <|im_end|> \u2603<a b>", "<think>")
    theirs = again.apply_chat_template(messages, tokenize=True)
    ids = theirs if isinstance(theirs, list) else theirs["input_ids"]
    assert ids == encode_chat(again, messages)[0]
    assert not set(ids) & {again.get_vocab()[t] for t in FOREIGN}


def sentencepiece_model(folder: Path) -> Path:
    """A small model as Llama 2's is: byte-pair encoding with bytes to fall back on, all spaces kept, one put before."""
    sentencepiece = pytest.importorskip("sentencepiece")
    text = folder / "text.txt"
    text.write_text("\n".join(["[INST] Where does Mira live? [/INST] She lives in the mill."] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.mark.parametrize("saved", [False, True])
def test_sentencepiece_as_metas_code_uses_it(tmp_path, saved):
    path = sentencepiece_model(tmp_path)
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = load_tokenizer(tmp_path)
    if saved:
        tokenizer.save_pretrained(tmp_path / "saved")
        tokenizer = load_tokenizer(tmp_path / "saved")
    for text in ("Mira", " Mira", "  lives  in ", "", " ", "\n x", "</s> Mira", "\u2603 mill", "\u2581x", "[INST]"):
        ids = encode_text(tokenizer, text)
        assert ids == theirs.encode(text), text
        if "\u2581" not in text:  # the mark of a space, which no SentencePiece model tells from one
            assert tokenizer.decode(ids) == text == theirs.decode(ids)
    # After a control token a text begins anew, and what follows in it does not.
    ids, mask = encode_chat(tokenizer, dialogue("Where?", "She lives."))
    assert ids == [1, *theirs.encode("[INST] Where? [/INST] She lives. "), 2]
    assert ids[1] == theirs.encode("[INST]")[0] and theirs.id_to_piece(ids[1])[0] == "\u2581"
    assert theirs.decode([i for i, m in zip(ids, mask, strict=True) if m]).strip() == "She lives."


@given(unicode_text)
def test_every_text_comes_back_from_sentencepiece(sp_tokenizer, text):
    if "\u2581" not in text:
        assert sp_tokenizer.decode(encode_text(sp_tokenizer, text)) == text


@pytest.fixture(scope="module")
def sp_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sp")
    sentencepiece_model(folder)
    return load_tokenizer(folder)


# ---- what a folder may not hold ------------------------------------------------------------------------------

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("")
Path({marker!r}).write_text("")
from transformers import PreTrainedTokenizerFast as Evil
"""


@pytest.mark.parametrize("where", ["tokenizer_config.json", "config.json"])
def test_no_code_of_a_folder_is_run(tmp_path, where, monkeypatch):
    """Nor asked about: with `echo y |` before it, transformers would take the answer for a yes."""
    from llama2lab.model.network import SIZES, Llama

    save_model(tmp_path / "m", Llama(SIZES["nano"]), TOKENIZER)
    (tmp_path / "m" / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "ran")))
    config = json.loads((tmp_path / "m" / where).read_text())
    evil = "evil.Evil"
    names = {"AutoTokenizer": [evil, evil], "AutoConfig": evil, "AutoModelForCausalLM": evil}
    config |= {"auto_map": names} | ({"tokenizer_class": "Evil"} if where == "tokenizer_config.json" else {})
    (tmp_path / "m" / where).write_text(json.dumps(config))
    done = CliRunner().invoke(app, ["generate", str(tmp_path / "m"), "x", "--max-new-tokens", "2"], input="y\n" * 9)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "m" / "ran").exists()
    if where == "tokenizer_config.json":
        assert done.exit_code == 2 and "auto_map names code of the folder's own" in done.stderr
        assert "remove auto_map" in done.stderr and done.stderr.count("\n") == 1
    else:  # this model is read here by our own code
        assert done.exit_code == 0


def test_every_loader_of_transformers_is_told_to_run_no_code():
    for path in sorted(Path(llama2lab.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                assert given.get("trust_remote_code") is False, f"{path}:{node.lineno}"
                assert given.get("local_files_only") is True, f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "pattern", [r"(a+)+$", r"(a|aa)*b", r"(.*a){20}", r"(x+x+)+y", "a*a*a*a*b", "a?" * 30 + "a" * 30, r"(a)\1", "(("]
)
@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer"])
def test_patterns_that_may_never_end_are_refused(tmp_path, pattern, part):
    TOKENIZER.save_pretrained(tmp_path)
    parts = json.loads((tmp_path / "tokenizer.json").read_text())
    parts[part] = (
        {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}
        if part == "normalizer"
        else {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            ],
        }
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(LabError, match=f"the pattern .* of its {part} .* choose another tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[\u4e00-\u9fa5\u3040-\u309f]+",
        r"\s?\p{L}+",
    ],
)
def test_patterns_of_well_known_tokenizers_pass(pattern):
    assert endless(pattern) == ""


@pytest.mark.parametrize(
    "change",
    [
        [],
        "x",
        None,
        {"eos_token": 5},
        {"bos_token": ["<s>"]},
        {"chat_template": 5},
        {"model_max_length": "long"},
        {"extra_special_tokens": "x"},
        {"added_tokens_decoder": {"1": "x"}},
        {"padding_side": "middle"},
        {"tokenizer_class": {}},
    ],
)
def test_tokenizer_configs_of_the_wrong_shape(tmp_path, change):
    TOKENIZER.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | change if isinstance(change, dict) else change))
    with pytest.raises(LabError, match=r"tokenizer_config.json: .*; save the tokenizer again") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
