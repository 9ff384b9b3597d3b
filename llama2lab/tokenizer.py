"""The tokenizer: byte-pair encoding over bytes, digits split singly (Llama 2, section 2.2).

Ids 0 to 7 are control tokens, 8 to 263 the bytes, then come the merges. Unlike Llama 2's SentencePiece it works
on bytes from the start, so that every text comes back exactly and no token stands for the unknown.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from llama2lab.errors import LabError, first_line

UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
CONTROL_TOKENS = (UNK, BOS, EOS, PAD, "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")  # in the order of their ids
EOS_ID, PAD_ID = 2, 3
SMALLEST = len(CONTROL_TOKENS) + 256


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_len: int = 4096) -> PreTrainedTokenizerFast:
    """A tokenizer of at most vocab_size tokens (fewer when the texts hold no more pairs to merge).

    The padding token is one of its own: were it </s>, masking the padding would hide the end of answers too.
    Raises LabError when vocab_size has no room for control tokens and bytes, or a text is no Unicode.
    """
    from llama2lab.chat import CHAT_TEMPLATE  # chat.py needs this module's names

    if vocab_size < SMALLEST:
        raise LabError(f"tokenizer: vocab_size is {vocab_size}; give at least {SMALLEST} "
                       f"({len(CONTROL_TOKENS)} control tokens and 256 bytes)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(CONTROL_TOKENS), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator((_check(text) for text in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=UNK, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        extra_special_tokens=list(CONTROL_TOKENS[4:]), chat_template=CHAT_TEMPLATE, model_max_length=max_len,
        padding_side="left", clean_up_tokenization_spaces=False)


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a transformers folder or hub name, or of a folder with a lone SentencePiece model.

    Raises LabError when there is none, or when SentencePiece is needed and not installed.
    """
    folder = Path(path)
    if folder.is_dir() and not (folder / "tokenizer.json").exists():
        found = sorted(folder.glob("*.model"))
        if len(found) != 1:
            raise LabError(f"{folder} holds no tokenizer (tokenizer.json, or one SentencePiece .model file); "
                           "save the model with its tokenizer")
        return _load_sentencepiece(found[0])
    try:
        return AutoTokenizer.from_pretrained(str(path))
    except Exception as e:  # transformers raises many kinds here, and its texts run over many lines
        raise LabError(f"{path}: no tokenizer could be loaded ({first_line(e)}); give a folder with tokenizer.json "
                       "or the name of a model on the hub") from e


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Ids of plain text: never a control token, whatever the text looks like. tokenizer.decode gives it back.

    Raises LabError for lone surrogates (half of a UTF-16 pair), which are no Unicode text.
    """
    return encode_texts(tokenizer, [text])[0]


def encode_texts(tokenizer: Any, texts: Sequence[str], control: bool = False) -> list[list[int]]:
    """`encode_text` for many texts at once; with `control` the control tokens in them count as such."""
    if not texts:
        return []
    return tokenizer([_check(text) for text in texts], add_special_tokens=False, split_special_tokens=not control,
                     return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]


def _check(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise LabError(f"text is not valid Unicode: lone surrogate {text[e.start]!r} at character {e.start + 1} of "
                       f"{text[:40]!r}; mend the file it comes from") from e
    return text


def _load_sentencepiece(model: Path) -> Any:
    try:
        import google.protobuf  # noqa: F401
        import sentencepiece  # noqa: F401
    except ImportError as e:
        raise LabError(f"{model} is a SentencePiece model; to read it: pip install llama2lab[hub]") from e
    # transformers finds it under this name alone.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(model, Path(folder) / "tokenizer.model")
        try:
            return LlamaTokenizer.from_pretrained(folder)
        except Exception as e:
            raise LabError(f"{model}: not a SentencePiece model that transformers reads ({first_line(e)})") from e
