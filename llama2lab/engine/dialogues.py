"""Dialogues and preference pairs in the shapes in which people bring them: one reading, for the recipe and for labels.

A dialogue is a list of messages {role, content}, [system] user assistant user ..., or Anthropic's transcript. A pair
is a prompt and two answers to it, or two whole dialogues that share everything before their last answer. What could be
read in two ways, or would have to lose something, is Malformed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Message = dict[str, str]

ROLES = ("system", "user", "assistant")
# Safety of (chosen, rejected), as the report divides pairs into bins (section 3.2.1); "" is unknown.
SAFETY = {"": (None, None), "chosen_safe": (True, False), "both_safe": (True, True), "both_unsafe": (False, False)}

# What becomes of messages that a spreadsheet or a CSV file keeps: their text, in JSON or as Python writes it.
_WRITTEN = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content)['"]\s*:""")
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class Malformed(Exception):
    """Why one row cannot be used, in words without its place."""


def check_turns(messages: Any, strip: bool = True, blank: bool = False) -> list[Message]:
    """The messages, if they take turns: [system] user assistant user ... Each has something to say, unless `blank`
    ones may stand there; without what is blank around it, if `strip`. Malformed otherwise."""
    if not isinstance(messages, list | tuple) or not messages:
        raise Malformed("not a list of messages")
    for m in messages:
        if not isinstance(m, Mapping) or not isinstance(m.get("content"), str) or not isinstance(m.get("role"), str):
            raise Malformed("a message is not {role, content}")
        if not blank and not m["content"].strip():
            raise Malformed("a turn is empty")
    start = 1 if messages[0]["role"] == "system" else 0
    expected = ["user" if i % 2 == 0 else "assistant" for i in range(len(messages) - start)]
    if not expected or [m["role"] for m in messages[start:]] != expected:
        raise Malformed("turns do not alternate")
    return [{"role": m["role"], "content": m["content"].strip() if strip else m["content"]} for m in messages]


def parse_transcript(text: str) -> list[Message]:
    """Messages of an Anthropic transcript, "\\n\\nHuman: ...\\n\\nAssistant: ...". Malformed unless the two take
    turns, the human first, and say something each time."""
    parts = _SPEAKER.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise Malformed("not a transcript of Human and Assistant")
    roles, turns = {"Human": "user", "Assistant": "assistant"}, zip(parts[1::2], parts[2::2], strict=True)
    return check_turns([{"role": roles[who], "content": said.strip()} for who, said in turns])


def is_dialogue(value: Any) -> bool:
    """Whether this is a dialogue, or at least means to be one, and not a text that somebody says."""
    if isinstance(value, str):
        begins = not _SPEAKER.split(value)[0].strip()
        return value.startswith("\n\nHuman:") or (begins and _SPEAKER.findall(value)[:2] == ["Human", "Assistant"])
    return isinstance(value, list | tuple)


def plain_text(text: str) -> str:
    """The text itself; Malformed for a list of messages that was written as text, which nobody said."""
    if _WRITTEN.match(text):
        raise Malformed("a list of messages written as a text; give messages as JSON (.jsonl) or .parquet")
    return text


def messages_of(value: Any, role: str) -> Any:
    """A dialogue as messages; any other text as one message of `role`. What is neither stays as it is."""
    if isinstance(value, str):
        return parse_transcript(value) if is_dialogue(value) else [{"role": role, "content": plain_text(value)}]
    return value


def prompt_of(value: Any, strip: bool = True, blank: bool = False) -> list[Message]:
    """A prompt, which is a text, a transcript (perhaps with an empty "Assistant:" at its end) or messages, as messages
    that end with the user's."""
    if isinstance(value, str) and is_dialogue(value):
        value = re.sub(r"\n\nAssistant:\s*\Z", "", value)
        messages = parse_transcript(value)
    else:
        messages = check_turns(messages_of(value, "user"), strip, blank)
    if messages[-1]["role"] != "user":
        raise Malformed("the prompt does not end with the user")
    return messages


def pair_of(
    prompt: Any, chosen: Any, rejected: Any, strip: bool = True, blank: bool = False
) -> tuple[list[Message], str, str]:
    """(messages of the prompt, chosen answer, rejected answer) of a pair in any of these shapes:

    - `prompt` is a text or messages, and each side an answer (a text, or one message of the assistant) or a whole
      dialogue that begins with this prompt;
    - `prompt` is None, and both sides are whole dialogues that begin alike.

    Malformed where a side does not end with the assistant's answer, begins with another prompt, or equals the other.
    """
    before = None if prompt is None else prompt_of(prompt, strip, blank)
    sides = []
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        said = parse_transcript(value) if before is None and isinstance(value, str) else messages_of(value, "assistant")
        if before is not None and isinstance(said, list | tuple) and len(said) == 1:
            answer = said[0]
            if not isinstance(answer, Mapping) or answer.get("role") != "assistant":
                raise Malformed(f"{name}: the last message is no answer of the assistant")
            said = [*before, answer]
        said = check_turns(said, strip, blank)
        if said[-1]["role"] != "assistant":
            raise Malformed(f"{name}: the last message is no answer of the assistant")
        if before is not None and _words(said[:-1]) != _words(before):
            raise Malformed(f"{name} begins with another prompt")
        sides.append(said)
    (*start, good), (*other, bad) = sides
    if _words(start) != _words(other):
        raise Malformed("no common prompt")
    if good["content"] == bad["content"]:
        raise Malformed("equal sides")
    return before or start, good["content"], bad["content"]


def _words(messages: list[Message]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"].strip()) for m in messages]
