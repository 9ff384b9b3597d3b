"""The tokenizer: byte-pair encoding over bytes, digits split singly (Llama 2, section 2.2).

Ids 0 to 7 are control tokens, 8 to 263 the bytes, then come the merges. Unlike Llama 2's SentencePiece it works
on bytes from the start, so that every text comes back exactly and no token stands for the unknown.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from llama2lab.engine.errors import LabError, first_line
from llama2lab.model.gguf_file import gguf_tokenizer, is_gguf
from llama2lab.model.tokenizer_files import check_tokenizer_files

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
CONTROL_TOKENS = (UNK, BOS, EOS, PAD, "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")  # in the order of their ids
EOS_ID, PAD_ID = 2, 3
SMALLEST = len(CONTROL_TOKENS) + 256


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    max_len: int = 4096,
    chat_template: str = "",
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most vocab_size tokens (fewer when the texts hold no more pairs to merge).

    The padding token is one of its own: were it </s>, masking the padding would hide the end of answers too.
    Raises LabError when vocab_size has no room for control tokens and bytes, or a text is no Unicode.
    """
    if vocab_size < SMALLEST:
        raise LabError(
            f"tokenizer: vocab_size is {vocab_size}; give at least {SMALLEST} "
            f"({len(CONTROL_TOKENS)} control tokens and 256 bytes)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((_check(text) for text in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=list(CONTROL_TOKENS[4:]),
        chat_template=chat_template or None,
        model_max_length=max_len,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a transformers folder or hub name, of a folder with a lone SentencePiece model, or of a GGUF
    file. No code of the folder's own is run, and nothing but the folder is looked at.

    Raises LabError when there is none, when its files cannot be used (see tokenizer_files.py), or when SentencePiece
    is needed and not installed.
    """
    folder = find_folder(path, ("*.json", "*.jinja", "*.model"))
    if folder.is_file():
        return with_spaces(gguf_tokenizer(folder))
    if not (folder / "tokenizer.json").exists():
        found = sorted(folder.glob("*.model"))
        if len(found) != 1:
            raise LabError(
                f"{folder} holds no tokenizer (tokenizer.json, or one SentencePiece .model file); "
                "save the model with its tokenizer"
            )
        return with_spaces(_load_sentencepiece(found[0]))
    check_tokenizer_files(folder)
    cure = "give a folder with tokenizer.json or the name of a model on the hub"
    return with_spaces(_from_pretrained(AutoTokenizer, folder, f"{path}: no tokenizer could be loaded", cure))


def find_folder(
    path_or_name: str | Path, files: Sequence[str] = ("*.json", "*.jinja", "*.safetensors", "*.model")
) -> Path:
    """The folder or GGUF file itself; or the local copy of these files of the hub's model of that name, fetched if need
    be."""
    path, name = Path(path_or_name), str(path_or_name)
    if path.is_dir() or is_gguf(path):
        return path
    if path.exists():
        raise LabError(f"{path} is a file, and no GGUF; give the folder of a model, or a GGUF file")
    if path.suffix == ".gguf":
        raise LabError(f"{path}: no such file; fetch it, or give the path where it lies")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise LabError(f"{path}: no such folder; give the folder of a model or a name on the hub (owner/model)")
    from huggingface_hub import snapshot_download  # only here, for nothing else needs the network

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as e:  # network, missing, gated, ...: the hub's own errors are many
        raise LabError(
            f"{name}: no such folder, and not to be had from the hub ({first_line(e)}); check the path, "
            "the name and the network"
        ) from e


def with_spaces(tokenizer: Any) -> Any:
    """A SentencePiece tokenizer as Meta's code uses it: every text begins with one space more, and loses it again when
    it is decoded, so that its own spaces come back; and a text after a control token is a text of its own (Llama 2's
    "<s>[INST]" is 1, 518, ...). transformers adds the space only where a text does not begin with one, and only at
    the very start. Other tokenizers are returned as they are."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    splitter = json.loads(backend.to_str())["pre_tokenizer"] if backend is not None else None
    if not splitter or splitter["type"] != "Metaspace" or splitter["prepend_scheme"] == "never" or splitter["split"]:
        return tokenizer
    mark = splitter["replacement"]
    exact = Tokenizer.from_str(backend.to_str())
    exact.normalizer = normalizers.Sequence(
        [*([exact.normalizer] if exact.normalizer else []), normalizers.Prepend(mark), normalizers.Replace(" ", mark)]
    )
    exact.pre_tokenizer = None
    names = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in ("unk", "bos", "eos", "pad")}
    return PreTrainedTokenizerFast(
        tokenizer_object=exact,
        **names,
        extra_special_tokens=list(tokenizer.extra_special_tokens),
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
    )


# ---- text to ids -----------------------------------------------------------------------------------------------


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of plain text: never a control token, whatever the text looks like. tokenizer.decode gives it back.

    Raises LabError for lone surrogates (half of a UTF-16 pair), which are no Unicode text.
    """
    return encode_texts(tokenizer, [text])[0]


def encode_texts(tokenizer: Any, texts: Sequence[str], control: bool = False) -> list[list[int]]:
    """`encode_text` for many texts at once; with `control` the control tokens in them count as such."""
    if not texts:
        return []
    texts = [_check(text) for text in texts]
    plain = None if control else _plain(tokenizer)
    if plain is not None:
        return [plain.checked(e.ids) for e in plain.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    return tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=not control,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]


def encode_pieces(
    tokenizer: Any, chats: Sequence[Sequence[str]], tokens: dict[str, list[int]] | None = None
) -> list[list[list[int]]]:
    """Ids of each piece of each conversation. The chat format's `tokens`, strings with their ids, count as such; all
    else is text. Without any these are CONTROL_TOKENS where the tokenizer knows them, and `<s>` and `</s>` are the
    tokenizer's own where they are called otherwise.

    What stands between two control tokens is one text, as in Meta's code, even where it reaches over the end of a
    piece: a token belongs to the piece in which it begins.
    """
    plain = _plain(tokenizer)
    if plain is None:
        flat = iter(encode_texts(tokenizer, [piece for chat in chats for piece in chat], control=True))
        return [[next(flat) for _ in chat] for chat in chats]
    known = plain.format if tokens is None else tokens
    split = _FORMAT if tokens is None else _any_of(sorted(tokens, key=len, reverse=True))
    result: list[list[list[int]]] = [[[] for _ in chat] for chat in chats]
    texts: list[str] = []  # between two control tokens
    starts: list[list[tuple[int, int]]] = []  # of each text: where in it which piece begins
    order: list[list[tuple[int, int]]] = []  # of each conversation, in turn: (piece, id), or (-1, number of a text)
    for chat in chats:
        items: list[tuple[int, int]] = []
        joins = False  # whether what comes next belongs to the last text
        for number, piece in enumerate(chat):
            for part in split.split(_check(piece)):
                if part in known:
                    items += [(number, i) for i in known[part]]
                    joins = False
                elif part and joins:
                    starts[-1].append((len(texts[-1]), number))
                    texts[-1] += part
                elif part:
                    items.append((-1, len(texts)))
                    texts.append(part)
                    starts.append([(0, number)])
                    joins = True
        order.append(items)
    encoded = plain.tokenizer.encode_batch(texts, add_special_tokens=False)
    for pieces, items in zip(result, order, strict=True):
        for number, token in items:
            if number >= 0:
                pieces[number].append(token)
                continue
            begins = starts[token]
            ids = plain.checked(encoded[token].ids)
            if len(begins) == 1:
                pieces[begins[0][1]] += ids
                continue
            for i, (start, _) in zip(ids, encoded[token].offsets, strict=True):
                pieces[next(piece for at, piece in reversed(begins) if at <= start)].append(i)
    return result


def control_strings(tokenizer: Any) -> tuple[str, ...]:
    """What a text of people or models may not turn into: the chat format's own tokens, then every other token that was
    added to the tokenizer's vocabulary (<|im_end|> and the like), special or not; not runs of blanks."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    others = {str(token) for token in added.values()} | set(getattr(tokenizer, "all_special_tokens", ()))
    return (*CONTROL_TOKENS, *sorted(token for token in others - set(CONTROL_TOKENS) if token.strip()))


@dataclass
class _Plain:
    """A tokenizer without its control tokens: no text can become one."""

    tokenizer: Tokenizer
    forbidden: frozenset[int]
    format: dict[str, list[int]]  # ids of the chat format's tokens that are known
    strings: tuple[str, ...]

    def checked(self, ids: list[int]) -> list[int]:
        if not self.forbidden.isdisjoint(ids):
            raise LabError("this tokenizer writes ordinary text with a control token; choose another checkpoint")
        return ids


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    return re.compile("(" + "|".join(map(re.escape, tokens)) + ")")


_FORMAT = _any_of(CONTROL_TOKENS)
_known: weakref.WeakKeyDictionary[Any, _Plain] = weakref.WeakKeyDictionary()


def _plain(tokenizer: Any) -> _Plain | None:
    """Of the tokenizer, made once; None for one that is not of the library `tokenizers`.

    To split what is special, as transformers can, is not enough: added tokens that are not special would stay, and
    where the vocabulary holds a control token, merges may lead to it. So the copy has no added tokens, and in its
    vocabulary the control tokens have names that nobody can write.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    strings = control_strings(tokenizer)
    if tokenizer in _known and _known[tokenizer].strings == strings:
        return _known[tokenizer]
    parts = json.loads(backend.to_str())
    parts |= {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    model = parts["model"]
    names = {string: uuid.uuid4().hex for string in strings}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    else:  # Unigram: pieces with their scores
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if names.keys().isdisjoint((a, b, a + b))]
    vocabulary = tokenizer.get_vocab()
    known = {token: [vocabulary[token]] for token in CONTROL_TOKENS if token in vocabulary}
    for token, own in ((BOS, tokenizer.bos_token_id), (EOS, tokenizer.eos_token_id)):
        known.setdefault(token, [] if own is None else [own])
    ids = {vocabulary[token] for token in strings if token in vocabulary} - {tokenizer.unk_token_id}
    plain = _known[tokenizer] = _Plain(Tokenizer.from_str(json.dumps(parts)), frozenset(ids), known, strings)
    return plain


def _check(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise LabError(
            f"text is not valid Unicode: lone surrogate {text[e.start]!r} at character {e.start + 1} of "
            f"{text[:40]!r}; mend the file it comes from"
        ) from e
    return text


# ---- files -----------------------------------------------------------------------------------------------------


def _from_pretrained(kind: Any, folder: Path, what: str, cure: str) -> Any:
    """The one place where transformers loads a tokenizer: from this folder alone, without its code."""
    try:
        return kind.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # transformers raises many kinds, and the library beneath panics, which is no Exception
        raise LabError(f"{what} ({first_line(e)}); {cure}") from e


def _load_sentencepiece(model: Path) -> Any:
    try:
        import google.protobuf  # noqa: F401
        import sentencepiece  # noqa: F401
    except ImportError as e:
        raise LabError(f"{model} is a SentencePiece model; to read it: pip install llama2lab[hub]") from e
    # transformers finds it under this name alone.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(model, Path(folder) / "tokenizer.model")
        return _from_pretrained(
            LlamaTokenizer,
            Path(folder),
            f"{model}: not a SentencePiece model that transformers reads",
            "save the model with its tokenizer again",
        )
