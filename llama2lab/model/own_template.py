"""The chat template that a checkpoint brings with it, kept and used in place of Llama 2's format. SmolLM2's:

    <|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n

A template is a program from elsewhere: it runs in transformers' sandbox, and never sees a text of people or models. It
is rendered around marks that stand for the texts, once for each sequence of roles. What it writes between them is the
format, and only from there can a control token come.
"""

from __future__ import annotations

import re
import uuid
import weakref
from collections.abc import Sequence
from typing import Any

from llama2lab.engine.errors import LabError, first_line
from llama2lab.model.tokenizer import CONTROL_TOKENS, control_strings

Roles = tuple[str, ...]
Layout = tuple[list[tuple[str, str]], list[str]]
TRIED: tuple[Roles, ...] = (
    ("user", "assistant"),
    ("user", "assistant") * 2,
)  # the conversations it must be able to write


class OwnTemplate:
    """A tokenizer's own chat template. `tokens` are the control tokens with their ids, `end` is the one that ends an
    answer. LabError, which begins "its chat template", for one in which answers cannot be told from prompts."""

    def __init__(self, tokenizer: Any):
        vocabulary = tokenizer.get_vocab()
        self._tokenizer = weakref.ref(tokenizer)
        self._rendered: dict[tuple[Roles, bool], list[str]] = {}
        self._layouts: dict[Roles, Layout] = {}
        self.tokens = {token: [vocabulary[token]] for token in control_strings(tokenizer) if token in vocabulary}
        longest_first = sorted(self.tokens, key=len, reverse=True)
        ends = re.findall("|".join(map(re.escape, longest_first)) or "(?!)", self._between(TRIED[0], False)[-1])
        if not ends:
            raise LabError("its chat template ends an answer with no control token")
        self.end = ends[0]
        for roles in TRIED:
            self._layout(roles)

    def pieces(self, roles: Roles, texts: Sequence[str]) -> list[str]:
        """The conversation as text in pieces, prompt and answer by turns, as of chat.segments: an answer ends with
        `end`, a prompt with what begins an answer. What the template writes after a last answer is left out. `texts`
        are those of the messages, defused."""
        before, after = self._layout(roles)
        pieces, prompt = [], ""
        for role, text, (asked, begun), tail in zip(roles, texts, before, after, strict=False):
            prompt += asked
            if role == "assistant":
                pieces += [prompt, begun + text + tail]
                prompt = ""
            else:
                prompt += text
        return pieces if roles[-1] == "assistant" else [*pieces, prompt + before[-1][0]]

    def _layout(self, roles: Roles) -> Layout:
        """What stands before each message and at the end: what asks for it, and blanks that an answer begins with. And
        what closes each message that is an answer."""
        if roles not in self._layouts:
            whole = self._between(roles, roles[-1] == "user")
            before, after = [(text, "") for text in whole], [""] * len(roles)
            for i in (i for i, role in enumerate(roles) if role == "assistant"):
                asked, asks = self._between(roles[:i], True), before[i][0]
                rest = whole[i].removeprefix(asked[-1])
                if asked[:-1] != whole[:i] or not whole[i].startswith(asked[-1]) or rest.strip():
                    raise LabError("its chat template asks for an answer in other words than it puts before one")
                close, end, more = whole[i + 1].partition(self.end)
                if not end:
                    raise LabError(f"its chat template does not end every answer with {self.end}")
                before[i] = asks.removesuffix(rest) if rest else asks, rest
                before[i + 1], after[i] = (more, ""), close + end
            self._layouts[roles] = before, after
        return self._layouts[roles]

    def _between(self, roles: Roles, prompt: bool) -> list[str]:
        """What the template writes before, between and after the texts of such messages."""
        if (roles, prompt) not in self._rendered:
            marks = [f"{_MARK}{i}." for i in range(len(roles))]
            messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
            tokenizer: Any = self._tokenizer()
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            except Exception as e:  # Jinja's errors, and whatever a template raises
                raise LabError(f"its chat template cannot write {' '.join(roles)} ({first_line(e)})") from e
            if re.findall(_MARK + r"\d+\.", text) != marks:
                raise LabError(f"its chat template does not write {' '.join(roles)} in their order, each text once")
            self._rendered[roles, prompt] = re.split(_MARK + r"\d+\.", text)
        return self._rendered[roles, prompt]


_MARK = f"text{uuid.uuid4().hex}x"
_known: weakref.WeakKeyDictionary[Any, tuple[Any, OwnTemplate | str]] = weakref.WeakKeyDictionary()


def own_template(tokenizer: Any) -> OwnTemplate | None:
    """The tokenizer's own chat template where it has one that can be used; None where the format is Llama 2's."""
    found = _found(tokenizer)
    return found if isinstance(found, OwnTemplate) else None


def template_fault(tokenizer: Any) -> str:
    """Why the tokenizer's own chat template cannot be used; "" where it can, or where there is none."""
    found = _found(tokenizer)
    return found if isinstance(found, str) else ""


def _found(tokenizer: Any) -> OwnTemplate | str:
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return ""
    key = (template, control_strings(tokenizer), dict(tokenizer.special_tokens_map))
    if tokenizer not in _known or _known[tokenizer][0] != key:
        ours = all(token in tokenizer.get_vocab() for token in CONTROL_TOKENS[4:])
        try:
            found: OwnTemplate | str = "" if ours else OwnTemplate(tokenizer)
        except LabError as e:
            found = str(e)
        _known[tokenizer] = key, found
    return _known[tokenizer][1]
