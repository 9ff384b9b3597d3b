"""Ghost Attention as one picture (Llama 2, section 3.3, figure 28): one instruction, the same questions asked of the
model without and with Ghost Attention, which answers obey, and how much of their attention goes back to it.

    GhostPicture(lab)

Texts and obedience are those of the run's evaluation (`dialogues.jsonl` of both stages); the attention is computed for
the dialogue that is shown, each model reading what it wrote itself: some .1 seconds of one core for each model.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import traitlets

from llama2lab.engine import stats
from llama2lab.engine.errors import LabError
from llama2lab.lab.finished import Finished
from llama2lab.lab.picture import Picture
from llama2lab.lab.pictures import label, svg, table
from llama2lab.lessons.n09_gatt.dialogues import Dialogue, instruction_attention, kept_dialogues
from llama2lab.report.look import BLUE, ORANGE
from llama2lab.report.summary import short_name
from llama2lab.town.items import SPLITS, Prompt
from llama2lab.town.prompts import every_prompt
from llama2lab.town.town import Town

STAGES = ("rlhf-v3", "gatt")  # without, with
SKILLS = ("facts", "opposites", "arithmetic", "small_talk")  # what `dialogue_prompts` asks
LOOKS = (
    ("whole", "mean"),
    ("first", "max"),
)  # mean of all heads over the answer; at its first word, the most of a head
RULE = (
    "Shown first: of the dialogues in which the model with Ghost Attention obeys at turn 1 and more than half of its "
    "answers are right, the one in which it obeys most turns more than the model without."
)


@dataclass(frozen=True)
class Pair:
    """One stored dialogue as both models wrote it; `right` of the answers with Ghost Attention are correct."""

    without: Dialogue
    ghost: Dialogue
    right: int

    @property
    def kept(self) -> tuple[int, int]:
        """Turns obeyed, without and with."""
        return sum(self.without.obeyed), sum(self.ghost.obeyed)

    @property
    def gain(self) -> int:
        return self.kept[1] - self.kept[0]


def stored_pairs(lab: Finished, stages: Sequence[str] = STAGES) -> list[Pair]:
    """The dialogues that both stages were asked in the run's evaluation, in stored order. LabError if there is none."""
    written = [{(d.instruction.id, d.questions): d for d in kept_dialogues(lab, stage)} for stage in stages]
    asked = questions_of(lab.town)

    def right(d: Dialogue) -> int:
        known = [(asked[q], a) for q, a in zip(d.questions, d.answers, strict=True) if q in asked]
        return sum(lab.oracle.judge(prompt, answer).correct for prompt, answer in known)

    pairs = [Pair(written[0][key], ghost, right(ghost)) for key, ghost in written[1].items() if key in written[0]]
    if not pairs:
        raise LabError(f"{lab!r} holds no dialogue that both {' and '.join(stages)} answered: measure both anew")
    return pairs


@lru_cache(maxsize=2)
def questions_of(town: Town) -> dict[str, Prompt]:
    """The prompt behind each question that a dialogue may ask, so that the oracle can judge its answer."""
    return {p.question: p for split in SPLITS for p in every_prompt(town, split, SKILLS)}


def shown_first(pairs: Sequence[Pair]) -> int:
    """The place of the dialogue that `RULE` names (the first of equals; of all, where none is as the rule asks)."""
    good = [i for i, p in enumerate(pairs) if p.ghost.obeyed[0] and 2 * p.right > len(p.ghost.answers)]
    return max(good or range(len(pairs)), key=lambda i: pairs[i].gain)


def overview(pairs: Sequence[Pair]) -> dict[str, Any]:
    """All stored dialogues: turns obeyed in each, the mean share with its interval over dialogues, and how many obey
    at each turn."""
    sides = [[p.without for p in pairs], [p.ghost for p in pairs]]
    turns = max(len(p.ghost.answers) for p in pairs)
    return {
        "names": [f"without ({short_name(STAGES[0])})", "with Ghost Attention"],
        "rule": RULE,
        "first": shown_first(pairs),
        "dialogues": [
            {"instruction": p.ghost.instruction.text, "kept": list(p.kept), "turns": len(p.ghost.answers)}
            for p in pairs
        ],
        "share": [stats.mean([sum(d.obeyed) / len(d.obeyed) for d in side]) for side in sides],
        "by_turn": [[sum(d.obeyed[t : t + 1] == (True,) for d in side) for side in sides] for t in range(turns)],
    }


def opened(lab: Finished, pair: Pair, number: int, stages: Sequence[str] = STAGES) -> dict[str, Any]:
    """One dialogue to read, turn by turn: each side's answer, whether it obeys, and the share of attention that it
    pays to the instruction's tokens, counted in each way of `LOOKS`; "even": if all tokens so far were looked at
    alike. `start` is the first turn at which the model without has forgotten and the other has not."""
    turns: list[dict[str, Any]] = [
        {"question": q, "sides": []} for q in pair.ghost.questions[: len(pair.ghost.answers)]
    ]
    for stage, d in zip(stages, (pair.without, pair.ghost), strict=True):
        look = instruction_attention(lab, lab.model(stage), d, len(d.answers))
        for t, row in enumerate(turns):
            paid = [look[place][how][t] for place, how in LOOKS]
            even = [look[place]["even"][t] for place, _ in LOOKS]
            row["sides"].append({"answer": d.answers[t], "obeys": d.obeyed[t], "attention": paid, "even": even})
    parted = [t for t, row in enumerate(turns) if [s["obeys"] for s in row["sides"]] == [False, True]]
    config = lab.model(stages[1]).config
    return {
        "number": number,
        "instruction": pair.ghost.instruction.text,
        "asks": {"words": list(pair.ghost.instruction.marker), "place": pair.ghost.instruction.position},
        "kept": list(pair.kept),
        "right": pair.right,
        "start": parted[0] if parted else 0,
        "turns": turns,
        "heads": [config.n_layers, config.n_heads],
    }


class GhostPicture(Picture):
    """`chosen` is the place of a stored dialogue; `shown` follows it (see `opened`), `data` stays (see `overview`)."""

    chosen = traitlets.Int(0).tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)

    def __init__(self, lab: Finished):
        pairs = stored_pairs(lab)
        self._open = lru_cache(maxsize=64)(lambda i: opened(lab, pairs[i], i))
        data = overview(pairs)
        super().__init__(data=data, chosen=data["first"], shown=self._open(data["first"]))
        self.observe(self._choose, "chosen")

    def _choose(self, change: Any) -> None:
        self.shown = self._open(change["new"] % len(self.data["dialogues"]))

    def static(self) -> str:
        turn = self.shown["turns"][self.shown["start"]]
        said = [
            (name, side["answer"], "obeys" if side["obeys"] else "fails")
            for name, side in zip(self.data["names"], turn["sides"], strict=True)
        ]
        share = [
            f"{name}: {f['mean']:.0%} ({f['low']:.0%} to {f['high']:.0%})"
            for name, f in zip(self.data["names"], self.data["share"], strict=True)
        ]
        return (
            "<p><strong>Ghost Attention: one instruction, twenty turns</strong></p>"
            f"<p>&ldquo;{html.escape(self.shown['instruction'])}&rdquo;, said once, before the first question.</p>"
            f"{drawing(self.shown, self.data['names'])}"
            f"<p>Turn {self.shown['start'] + 1}: {html.escape(turn['question'])}</p>{table(('', 'answer', ''), said)}"
            "<p>Bars: the share of the attention of an answer's tokens that falls on the instruction's, mean of all "
            f"heads.</p><p>Share of answers that obey, over all {len(self.data['dialogues'])} stored dialogues: "
            f"{html.escape('; '.join(share))}. {html.escape(self.data['rule'])}</p>"
        )


def drawing(shown: dict[str, Any], names: Sequence[str]) -> str:
    """A row a turn: obedience as sign and word, the attention on the instruction as a bar away from the middle."""
    row, top, middle, long = 20, 44, 320, 170
    most = max(side["attention"][0] for turn in shown["turns"] for side in turn["sides"]) or 1.0
    body = label(middle, 14, "turn", "middle")
    for way, name in zip((-1, 1), names, strict=True):
        ends = "end" if way < 0 else "start"
        body += label(middle + way * 24, 14, name, ends) + label(middle + way * 110, 34, "attention on it", ends)
    for t, turn in enumerate(shown["turns"]):
        y = top + t * row
        body += label(middle, y + 14, str(t + 1), "middle")
        for way, side in zip((-1, 1), turn["sides"], strict=True):
            ends, colour = "end" if way < 0 else "start", BLUE if side["obeys"] else ORANGE
            x, wide = middle + way * 110, side["attention"][0] / most * long
            body += label(middle + way * 34, y + 14, "✓ obeys" if side["obeys"] else "✗ fails", ends)
            body += (
                f'<rect x="{min(x, x + way * wide):.1f}" y="{y + 4}" width="{wide:.1f}" height="12" fill="{colour}"/>'
            )
            body += label(x + way * (wide + 5), y + 14, f"{side['attention'][0]:.1%}", ends)
    words = f"obedience and attention at {len(shown['turns'])} turns, without and with Ghost Attention"
    return svg(body, 2 * middle, top + row * len(shown["turns"]) + 6, words)
