"""Llama 2's chat format, and the loss mask of supervised fine-tuning (section 3.1). A checkpoint's own chat template,
where it brings one, takes the format's place (own_template.py).

    <s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST] {answer} </s><s>[INST] {user} [/INST] ...

Messages are dictionaries {"role": "system" | "user" | "assistant", "content": str}. Only the format itself may
put control tokens into a conversation: what looks like one in the text of people or models is defused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama2lab.engine.errors import LabError
from llama2lab.model.own_template import OwnTemplate, own_template
from llama2lab.model.tokenizer import CONTROL_TOKENS, control_strings, encode_pieces

Message = dict[str, str]


def chat_template(tokens: Sequence[str] = CONTROL_TOKENS) -> str:
    """Jinja for transformers' apply_chat_template: the same text as `segments`, with all of `tokens` defused.
    `generation` marks what TRL and others train on."""
    return (
        "{% macro text(content) %}{{ content"
        + "".join(f".replace({_literal(token)}, {_literal(tame)})" for token, tame in _defused(tokens))
        + ".strip() }}{% endmacro %}"
        "{% set start = 1 if messages and messages[0]['role'] == 'system' else 0 %}"
        "{% if messages | length <= start %}"
        "{{ raise_exception('a conversation needs a user message') }}{% endif %}"
        "{% for message in messages[start:] %}"
        "{% if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
        "{{ raise_exception('after the system message, user and assistant must take turns') }}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "{{ '<s>[INST] ' }}"
        "{% if loop.first and start == 1 %}"
        "{{ '<<SYS>>\\n' + text(messages[0]['content']) + '\\n<</SYS>>\\n\\n' }}{% endif %}"
        "{{ text(message['content']) + ' [/INST]' }}"
        "{% else %}{% generation %}{{ ' ' + text(message['content']) + ' </s>' }}{% endgeneration %}{% endif %}"
        "{% endfor %}"
    )


def escape(text: str, tokens: Sequence[str] = CONTROL_TOKENS) -> str:
    """Defuse control strings: a space after their first character, "[INST]" -> "[ INST]".

    No string that is treated so holds a space, so none can arise from this, however they are nested. A control token
    of one character, or with a blank in it, which this would not break, becomes another character.
    """
    for token, tame in _defused(tokens):
        text = text.replace(token, tame)
    return text


def _defused(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """What stands for each control string in a text."""
    odd = [token for token in tokens if len(token) < 2 or any(c.isspace() for c in token)]
    other = next(c for c in "\ufffd?_*#" if not any(c in token for token in odd))
    return [(token, f"{token[0]} {token[1:]}") for token in tokens if token not in odd] + [(t, other) for t in odd]


def _literal(text: str) -> str:
    """A string of Jinja's: quoted, and without braces that could end an expression."""
    codes = {"'": "\\'", "{": "\\x7b", "}": "\\x7d"}
    return "'" + "".join(codes.get(c, c) for c in text.encode("unicode_escape").decode("ascii")) + "'"


CHAT_TEMPLATE = chat_template()


def segments(messages: Sequence[Message], tokens: Sequence[str] = CONTROL_TOKENS) -> list[str]:
    """The conversation as text in pieces, prompt and answer by turns: even pieces end with [/INST], odd ones
    with </s>. `tokens` are what is defused in messages. Raises LabError that says which message is out of place."""
    start = _check_turns(messages)
    pieces = []
    for i, message in enumerate(messages[start:]):
        text = escape(message["content"], tokens).strip()
        if i % 2:
            pieces.append(f" {text} </s>")
        elif start and i == 0:
            system = escape(messages[0]["content"], tokens).strip()
            pieces.append(f"<s>[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{text} [/INST]")
        else:
            pieces.append(f"<s>[INST] {text} [/INST]")
    return pieces


def _check_turns(messages: Sequence[Message]) -> int:
    """LabError that says which message is out of place; else where the turns begin, after a system message."""
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise LabError(f'message {i} is not {{"role": ..., "content": text}}: {str(message)[:80]!r}')
    start = 1 if messages and messages[0]["role"] == "system" else 0
    if len(messages) <= start:
        raise LabError("a conversation needs a user message" + (" after the system message" if start else ""))
    for i, message in enumerate(messages[start:]):
        expected = "assistant" if i % 2 else "user"
        if message["role"] != expected:
            raise LabError(
                f"message {start + i + 1} is of {message['role']!r}, expected {expected!r}; after the "
                "system message (if any) user and assistant must take turns, the user first"
            )
    return start


def encode_chats(
    tokenizer: Any, chats: Sequence[Sequence[Message]], add_generation_prompt: bool = False, mask_turns: str = "all"
) -> list[tuple[list[int], list[int]]]:
    """(ids, loss_mask) of each conversation, both of its length in tokens.

    The mask is 1 on the tokens of assistant answers and the </s> that closes them, or the end of an answer in the
    tokenizer's own template (section 3.1: the loss on user prompts is zeroed out); with mask_turns="last" on the last
    answer alone, as Ghost Attention trains (section 3.3). A conversation that ends with the user goes as far as where
    the answer begins; with `add_generation_prompt` it must. Raises LabError for messages out of place.
    """
    if mask_turns not in ("all", "last"):
        raise LabError(f'mask_turns is {mask_turns!r}; give "all" or "last"')
    own = own_template(tokenizer)
    tokens = control_strings(tokenizer)
    texts = [segments(messages, tokens) if own is None else own_pieces(own, messages) for messages in chats]
    if add_generation_prompt:
        for number, pieces in enumerate(texts, 1):
            if len(pieces) % 2 == 0:
                raise LabError(f"conversation {number} ends with an answer; to generate one it must end with the user")
    result = []
    for chat in encode_pieces(tokenizer, texts, None if own is None else own.tokens):
        ids: list[int] = []
        mask: list[int] = []
        for i, piece in enumerate(chat):
            trained = i % 2 == 1 and (mask_turns == "all" or i == len(chat) - 1)
            ids += piece
            mask += [int(trained)] * len(piece)
        result.append((ids, mask))
    return result


def own_pieces(own: OwnTemplate, messages: Sequence[Message]) -> list[str]:
    """`segments` in a checkpoint's own format. Raises LabError for messages out of place, or of a role that the
    template does not take."""
    _check_turns(messages)
    texts = [escape(message["content"], tuple(own.tokens)).strip() for message in messages]
    try:
        return own.pieces(tuple(message["role"] for message in messages), texts)
    except LabError as e:
        raise LabError(f"the checkpoint: {e}; leave such messages out, or start from another checkpoint") from e


def encode_chat(
    tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool = False, mask_turns: str = "all"
) -> tuple[list[int], list[int]]:
    """`encode_chats` for one conversation."""
    return encode_chats(tokenizer, [messages], add_generation_prompt, mask_turns)[0]


def decode_answer(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of generated ids up to the first </s> (or what ends answers), without control tokens, stripped."""
    ids = list(ids)
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
