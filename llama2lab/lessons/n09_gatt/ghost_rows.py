"""How a training row of Ghost Attention is made (Llama 2, section 3.3), in three steps on a real row: sampled with the
instruction in every user message, kept in the first one only, learnt on the last answer only.

    GhostRows(lab, training_row(lab))      # one or two seconds: the answers are sampled as the stage samples them
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from llama2lab.engine.errors import LabError
from llama2lab.lab.finished import Finished
from llama2lab.lab.picture import Picture
from llama2lab.lessons.n09_gatt.dialogues import Dialogue, judged
from llama2lab.model.chat import encode_chat
from llama2lab.report.look import BLUE, tame
from llama2lab.stages.gatt import SEEN_TURNS, GattSettings, gatt_rows, instructed, sample_dialogues
from llama2lab.town.prompts import TownSource

TURNS = 3
RULE = (
    "Of the first dialogues that Ghost Attention trains on, answered anew over their first three turns: the one with "
    "most answers that obey, the shortest of equals."
)


def training_row(lab: Finished, stage: str = "rlhf-v3", dialogues: int = 12, seed: int = 0) -> dict[str, Any]:
    """{"messages", "loss", "turns", "instruction"}: a row of `gatt_rows` that holds three turns, chosen by `RULE`, from
    the questions and instructions of the stage's own training, sampled as there (`rounds.gatt_stage`). Half of the
    time the stage shortens the instruction; here it stands whole."""
    asked, chosen = TownSource(lab.town).dialogues(dialogues, GattSettings().turns, seed + 31)
    asked, told = [questions[:TURNS] for questions in asked], [i.text for i in chosen]
    answers = sample_dialogues(
        lab.model(stage),
        lab.tokenizer,
        asked,
        told,
        everywhere=True,
        temperature=GattSettings().temperature,
        seed=seed + 32,
        precision=lab.machine.precision,
        seen_turns=SEEN_TURNS,
    )
    judgements = [judged(lab, *one) for one in zip(chosen, asked, answers, strict=True)]

    def order(d: Dialogue) -> tuple[int, int]:
        return -sum(d.obeyed), sum(map(len, d.answers))

    whole = [d for d in judgements if all(a.strip() for a in d.answers)]
    if not whole:
        raise LabError(
            f"{stage} answers nothing at some turn of all {dialogues} dialogues: give it more (dialogues=...)"
        )
    best = min(whole, key=order)
    made = gatt_rows([best.questions], [best.instruction.text], [best.answers], 16, seed + 33)
    row = max(made, key=lambda row: row["turns"])
    return {**row, "instruction": best.instruction.text}


def tokens_of(lab: Finished, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the picture shows of a row: for each message its tokens as training reads them, [text, learnt by
    fine-tuning, learnt by Ghost Attention], and the message as it stood while the answers were sampled."""
    messages, told = list(row["messages"]), row["instruction"]
    ids, everywhere = encode_chat(lab.tokenizer, messages)
    _, last = encode_chat(lab.tokenizer, messages, mask_turns=row["loss"])
    ends = [
        len(encode_chat(lab.tokenizer, messages[:k], add_generation_prompt=k % 2 == 1)[0])
        for k in range(1, len(messages) + 1)
    ]
    shown, start = [], 0
    for k, (message, end) in enumerate(zip(messages, ends, strict=True)):
        part = slice(start, end)
        words = [tame(str(lab.tokenizer.decode([token]))) for token in ids[part]]
        asked = message["content"].removeprefix(instructed(told, "")) if k == 0 else message["content"]
        shown.append(
            {
                "role": message["role"],
                "instruction": told if message["role"] == "user" else "",
                "text": asked,
                "tokens": [list(t) for t in zip(words, everywhere[part], last[part], strict=True)],
            }
        )
        start = end
    return {
        "messages": shown,
        "counts": {"all": sum(everywhere), "last": sum(last), "tokens": len(ids)},
        "seen_turns": SEEN_TURNS,
        "rule": RULE,
    }


class GhostRows(Picture):
    """`row`: what `training_row` gives."""

    def __init__(self, lab: Finished, row: Mapping[str, Any]):
        super().__init__(data=tokens_of(lab, row))

    def static(self) -> str:
        counts, body = self.data["counts"], ""
        for k, message in enumerate(self.data["messages"]):
            told = html.escape(message["instruction"])
            told = f"<strong>{told}</strong> " if k == 0 else f"<s>{told}</s> " if told else ""
            words = html.escape("".join(word for word, _, learnt in message["tokens"] if learnt))
            text = html.escape(tame(message["text"]))
            if words:  # the last answer: what the loss counts is filled and underlined, so that colour is not all
                text = f'<span style="background: {BLUE}55; border-bottom: 3px solid {BLUE}">{words}</span>'
            body += f'<tr><td style="text-align: left">{html.escape(message["role"])}</td>'
            body += f'<td style="text-align: left">{told}{text}</td></tr>'
        return (
            "<p><strong>Three steps to a training row</strong></p>"
            f'<table style="border-collapse: collapse; color: var(--jp-content-font-color1, inherit)">{body}</table>'
            "<p>1. Sampled with the instruction in every user message. 2. Struck out: dropped from all but the first. "
            f"3. Filled: the last answer alone is learnt, {counts['last']} of {counts['tokens']} tokens; fine-tuning "
            f"would learn {counts['all']}.</p>"
        )
