"""Talk to two stages of the recipe side by side."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Sequence
from typing import Any

import ipywidgets as w

from llama2lab.engine.errors import LabError
from llama2lab.lab.explorer import LABEL, Explorer, button, dropdown, slider
from llama2lab.lab.finished import SHIPPED, Finished
from llama2lab.model.chat import Message
from llama2lab.model.tokenizer import encode_text
from llama2lab.report.look import BLUE, GREY, tame
from llama2lab.report.summary import short_name
from llama2lab.run import talk

MAX_NEW_TOKENS = 48  # as the recipe's own answers
ENTER = 0.3  # seconds after Enter within which the text itself must have come


def talkers(lab: Finished) -> list[str]:
    """The stages that one can talk to, in the order of the recipe."""
    names = set(talk.talking_stages(lab.folder)) | (set(talk.talking_stages(SHIPPED)) if SHIPPED.is_dir() else set())
    order = list(lab.figures["stages"])
    return sorted(filter(lab.has, names), key=lambda name: (order.index(name) if name in order else len(order), name))


def examples(lab: Finished, helpful: int = 12, unsafe: int = 3, borderline: int = 3) -> list[str]:
    """Held-out questions to try: one of each skill, then what one should not ask, and what only looks so."""
    prompts = lab.prompts(helpful, unsafe, borderline, seed=3)
    return list(dict.fromkeys(p.question for p in prompts if len(p.messages) == 1))


def reply(lab: Finished, stage: str, messages: Sequence[Message], temperature: float, seed: int) -> str:
    """The next answer of a stage to a conversation that ends with a user message. The base model knows no
    conversations: it goes on with the text of the last message. LabError for an empty message and for what is longer
    than the context."""
    if not messages or not messages[-1]["content"].strip():
        raise LabError("the message is empty; type a question")
    model, tokenizer = lab.model(stage), lab.tokenizer
    if stage == "base":
        ids = [tokenizer.bos_token_id, *encode_text(tokenizer, messages[-1]["content"].strip())]
        return talk.decode_answer(tokenizer, talk.write(model, tokenizer, ids, temperature, MAX_NEW_TOKENS, seed))
    return talk.answer(model, tokenizer, list(messages), temperature, MAX_NEW_TOKENS, seed)


def dialogue_html(stage: str, messages: Sequence[Message]) -> str:
    """A dialogue to read; everything in it is escaped."""
    name = short_name(stage)
    how = " (goes on with your text)" if stage == "base" else ""
    body = "".join(
        f'<p style="margin: 4px 0; padding: 2px 8px; overflow-wrap: anywhere; '
        f'border-left: 3px solid {GREY if m["role"] == "user" else BLUE}">'
        f'<span style="opacity: .7">{"you" if m["role"] == "user" else html.escape(name)}:</span> '
        f"{html.escape(tame(m['content'])) or '<em>(nothing)</em>'}</p>"
        for m in messages
    )
    return (
        f'<div style="flex: 1 1 260px; min-width: 0"><strong>{html.escape(name + how)}</strong>'
        f"{body or '<p><em>Nothing said yet.</em></p>'}</div>"
    )


class ChatExplorer(Explorer):
    """Two columns, each with its own dialogue for each stage that was chosen in it; one text field for both. `first` is
    asked at once; `stored`, an example of the recipe map, stands there with its answers and can be gone on with."""

    def __init__(
        self,
        lab: Finished,
        stages: tuple[str, str] = ("sft", "rlhf-v5"),
        first: str = "",
        stored: dict[str, Any] | None = None,
    ):
        names = talkers(lab)
        if not names:
            raise LabError("this run has no model to talk to yet; go on with: llama2lab run")
        self.lab, self.sent, self.notice, self.entered = lab, 0, "", False
        self.talks: dict[tuple[int, str], list[Message]] = {}  # by column and stage
        options = [(short_name(s), s) for s in names]
        self.stages = [
            dropdown(side, options, s if s in names else names[-1], "220px")
            for side, s in zip(("left", "right"), stages, strict=True)
        ]
        self.temperature = slider("temperature", 0.7, 0.0, 1.5, 0.1, None, continuous_update=False)
        asked = [("choose one, or type your own below", ""), *((tame(q), q) for q in examples(lab))]
        self.example = dropdown("examples", asked, width="460px")
        self.text = w.Text(
            description="message",
            placeholder="type a question and press Enter",
            style=LABEL,
            continuous_update=False,
            layout=w.Layout(flex="1 1 260px", width="auto"),
        )
        self.send = button("Send", "send the message to both models", self.say)
        self.clear = button("Clear", "forget the dialogues that are shown", self.forget)
        below = w.Box([self.text, self.send, self.clear], layout=w.Layout(flex_flow="row wrap", width="100%"))
        super().__init__("Talk to two models", [*self.stages, self.temperature, self.example], below=[below])
        self.example.observe(lambda change: setattr(self.text, "value", change["new"]), "value")
        self.text.on_msg(self._enter)
        self.text.observe(self._typed, "value")
        if first:
            self.say(first)
        elif stored:
            self._recall(stored)

    def _recall(self, stored: dict[str, Any]) -> None:
        """Put an example's dialogues where its stages answered; of the base model there is none."""
        for i in (0, 1):
            for _, stage in self.stages[i].options:
                if stage in stored["says"] and stage != "base":
                    asked: Message = {"role": "user", "content": stored["prompt"]}
                    self.talks[i, stage] = [asked, {"role": "assistant", "content": stored["says"][stage]["text"]}]
        self.notice = f"Stored answers to a held-out prompt ({stored['rule']}). Go on: yours are answered live."
        self.redraw()

    def _enter(self, _: Any, content: dict, buffers: Any) -> None:
        """Enter was pressed. The text comes with the next message, unless the field had been left before."""
        if content.get("event") == "submit":
            self.entered = True
            try:
                asyncio.get_running_loop().call_later(ENTER, self._late)
            except RuntimeError:  # no loop, so no browser either
                self.say()

    def _late(self) -> None:
        if self.entered:
            self.say()

    def _typed(self, change: dict) -> None:
        if self.entered and change["new"]:
            self.say()

    def dialogue(self, column: int) -> list[Message]:
        return self.talks.get((column, self.stages[column].value), [])

    def say(self, text: str | None = None) -> None:
        """Send the text to both. Where one of them cannot answer nothing is sent, and the text stays in its field."""
        self.entered = False
        text = self.text.value if text is None else text
        asked: Message = {"role": "user", "content": text}
        try:
            answers = [
                reply(self.lab, self.stages[i].value, [*self.dialogue(i), asked], self.temperature.value, self.sent)
                for i in (0, 1)
            ]
        except LabError as e:
            self.notice = f"Nothing was sent: {e}" + ("" if not self.dialogue(0) else " (or press Clear)")
            self.redraw()
            return
        for i, answer in enumerate(answers):
            self.talks[i, self.stages[i].value] = [*self.dialogue(i), asked, {"role": "assistant", "content": answer}]
        self.sent, self.notice, self.text.value = self.sent + 1, "", ""
        self.redraw()

    def forget(self) -> None:
        """Forget the two dialogues that are shown; those with other stages stay."""
        for i in (0, 1):
            self.talks.pop((i, self.stages[i].value), None)
        self.notice = ""
        self.redraw()

    def draw(self) -> str:
        columns = "".join(dialogue_html(self.stages[i].value, self.dialogue(i)) for i in (0, 1))
        notice = f'<p role="status">{html.escape(tame(self.notice))}</p>' if self.notice else ""
        return (
            '<div style="display: flex; flex-wrap: wrap; gap: 16px; color: var(--jp-content-font-color1, inherit)">'
            f"{columns}</div>{notice}"
        )
