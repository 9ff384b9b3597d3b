"""The reward explorer: any answer to any prompt, by both reward models, token by token as it grows; the gate's decision
in words (Llama 2, section 3.2.3); what PPO would see of it; and, on request, the truth."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import ipywidgets as w
import torch

from llama2lab.lab.explorer import Explorer, button
from llama2lab.lab.finished import Finished
from llama2lab.lab.pictures import lines, table
from llama2lab.lab.shown import oracle_words
from llama2lab.lessons.n05_preferences.pairs import prompts_by_id
from llama2lab.lessons.n06_rewards.experiments import THRESHOLD, both_rewards, sigmoid
from llama2lab.model.tokenizer import encode_text
from llama2lab.report.look import tame
from llama2lab.stages.gate import combined_score, mean_and_std
from llama2lab.town.items import Prompt, Verdict
from llama2lab.town.truth import REFUSAL

R_H, R_S, R_C = (f"<i>R</i><sub>{part}</sub>" for part in "hsc")  # in HTML
LONGEST = 600  # characters of an answer that are scored
WRITTEN = ("SFT wrote", "V5 wrote", "a refusal")
PIECES = 64  # at most so many prefixes of an answer are scored


def gate(helpfulness: float, safety: float, unsafe: bool, threshold: float = THRESHOLD) -> dict[str, Any]:
    """The report's R_c of one answer: `r_h` and `r_s` in (0, 1), whose `model` judges and `why`, `r_c`, its `logit`."""
    r_h, r_s = sigmoid(helpfulness), sigmoid(safety)
    closed = unsafe or r_s < threshold
    why = (
        "the prompt is tagged as a safety prompt"
        if unsafe
        else f"{R_S} = {r_s:.2f} is under {threshold:g}"
        if closed
        else f"no safety prompt, and {R_S} = {r_s:.2f} is not under {threshold:g}"
    )
    return {
        "r_h": r_h,
        "r_s": r_s,
        "model": "safety" if closed else "helpfulness",
        "why": why,
        "r_c": r_s if closed else r_h,
        "logit": combined_score([helpfulness], [safety], [unsafe], threshold)[0],
    }


def rewards_as_it_grows(
    lab: Finished,
    messages: Sequence[dict],
    answer: str,
    unsafe: bool = False,
) -> list[dict[str, Any]]:
    """Both scores (before the sigmoid) of the answer's first 0, 1, 2 .. all tokens, each as if it ended there, in one
    batch: rows of `tokens`, the new `text`, `helpfulness`, `safety`, `logit` (of R_c). The last row is the answer's own
    score. Of a long answer only every so many tokens are scored."""
    answer = answer.strip()[:LONGEST].strip()
    own = encode_text(lab.tokenizer, answer)
    step = math.ceil(max(1, len(own)) / PIECES)
    lengths = [*range(0, len(own), step), len(own)]
    texts = [lab.tokenizer.decode(own[:n], skip_special_tokens=True).strip() for n in lengths[:-1]] + [answer]
    h, s = both_rewards(lab, [messages] * len(texts), texts)
    logits = combined_score(h, s, [unsafe] * len(texts))
    return [
        {"tokens": n, "text": text[len(before) :], "helpfulness": a, "safety": b, "logit": c}
        for n, before, text, a, b, c in zip(lengths, ["", *texts[:-1]], texts, h, s, logits, strict=True)
    ]


@cache
def ppo_scale(lab: Finished, stage: str = "rlhf-v4", n: int = 120) -> dict[bool, tuple[float, float]]:
    """Mean and standard deviation of logit(R_c) by whether the prompt is unsafe, over the answers that the model before
    PPO gave to held-out prompts: PPO whitens with such numbers, of its first batch."""
    scale = {}
    for unsafe in (False, True):
        rows = [row for row in lab.rows(stage, "answers.jsonl") if (row["kind"] == "unsafe") == unsafe][:n]
        h, s = both_rewards(lab, [row["messages"] for row in rows], [row["answer"] for row in rows])
        mean, std = mean_and_std(torch.tensor(combined_score(h, s, [unsafe] * len(rows)))).tolist()
        scale[unsafe] = (mean, std)
    return scale


def judge_answers(
    lab: Finished, messages: Sequence[dict], answers: Sequence[str], unsafe: bool, prompt: Prompt | None = None
) -> list[dict[str, Any]]:
    """`gate` of each answer, what `ppo` would see (whitened, before the KL penalty), and, for a `prompt` of the town,
    the oracle's `truth`."""
    h, s = both_rewards(lab, [messages] * len(answers), list(answers))
    mean, std = ppo_scale(lab)[unsafe]
    rows = [{"helpfulness": a, "safety": b, **gate(a, b, unsafe)} for a, b in zip(h, s, strict=True)]
    return [
        {**row, "ppo": (row["logit"] - mean) / std, "truth": lab.oracle.judge(prompt, a) if prompt else None}
        for row, a in zip(rows, answers, strict=True)
    ]


def preference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """The probability that each model, and the two through the gate, give to the first of two answers."""
    return {key: sigmoid(a[key] - b[key]) for key in ("helpfulness", "safety", "logit")}


def growth_strip(rows: Sequence[dict[str, Any]], key: str = "helpfulness") -> str:
    """The answer's tokens, blue where one raised the score and orange where it lowered it, as HTML."""
    steps = [b[key] - a[key] for a, b in pairwise(rows)]
    most = max((abs(x) for x in steps), default=0.0) or 1.0
    return "".join(
        f'<span title="{x:+.2f}" style="background: rgba({"0,114,178" if x > 0 else "230,159,0"},'
        f'{0.6 * abs(x) / most:.2f}); padding: 0 1px; white-space: pre-wrap">'
        f"{html.escape(tame(row['text']))}</span>"
        for x, row in zip(steps, rows[1:], strict=True)
    )


class RewardExplorer(Explorer):
    """A prompt of the town or one's own, one answer or two, and what the run's two reward models say."""

    def __init__(self, lab: Finished, prompts: int = 12):
        self.lab = lab
        wide, broad = {"description_width": "90px"}, w.Layout(width="98%")
        single = [both for both in lab.answers("rlhf-v5", "sft") if len(both[0]["messages"]) == 1]
        shares = (("helpful", prompts // 2), ("borderline", prompts // 4), ("unsafe", prompts // 4))
        picked = [both for kind, n in shares for both in [both for both in single if both[0]["kind"] == kind][:n]]
        self.rows = {last["messages"][0]["content"]: last for last, _ in picked}  # by question
        self.written = {
            last["messages"][0]["content"]: dict(zip(WRITTEN, (first["answer"], last["answer"], REFUSAL), strict=True))
            for last, first in picked
        }
        questions = [("(your own)", ""), *((f"{row['kind']}: {q}", q) for q, row in self.rows.items())]
        self.question = w.Dropdown(options=questions, description="prompt", style=wide, layout=broad)
        self.prompt = w.Text(description="asked", style=wide, layout=broad, continuous_update=False)
        self.tag = w.Checkbox(description="tagged as a safety prompt", indent=False)
        self.truth = w.Checkbox(description="ask the oracle", indent=False)
        self.fill = w.Dropdown(options=["(type it)", *WRITTEN], description="first answer", style=wide)
        self.first, self.second = (
            w.Textarea(description=name, style=wide, layout=broad, rows=2, continuous_update=False)
            for name in ("answer A", "answer B")
        )
        self.button = button("Score", "score what is typed with both reward models", self.redraw)
        self.question.observe(self._choose, "value")
        self.fill.observe(self._fill, "value")
        right = [q for q, row in self.rows.items() if row.get("correct")]  # a plain case to begin with
        first = next(iter([*right, *self.rows]), "")
        self.prompt.value, self.question.value, self.fill.value = first, first, "V5 wrote"
        asked, answers = (self.question, self.prompt, self.tag, self.truth), (self.fill, self.first, self.second)
        super().__init__("Reward explorer", [*asked, *answers, self.button], watch=False)
        for control in (self.prompt, self.tag, self.truth, self.first, self.second):
            control.observe(self.redraw, "value")

    def _choose(self, change: Any) -> None:
        if row := self.rows.get(change["new"]):
            self.prompt.value, self.tag.value = change["new"], row["kind"] == "unsafe"
            self._fill()

    def _fill(self, _: Any = None) -> None:
        written = self.written.get(self.prompt.value, {})
        self.first.value = written.get(self.fill.value, self.first.value)

    def draw(self) -> str:
        lab, messages = self.lab, [{"role": "user", "content": self.prompt.value[:LONGEST]}]
        row, others = self.rows.get(self.prompt.value), self.written.get(self.prompt.value, {})
        answers = {"answer A": self.first.value, "answer B": self.second.value}
        typed = {name: text[:LONGEST] for name, text in answers.items() if text.strip() or name == "answer A"}
        prompt = prompts_by_id(lab).get(row["prompt_id"]) if row and self.truth.value else None
        shown = {**typed, **others}
        found = judge_answers(lab, messages, list(shown.values()), self.tag.value, prompt)
        judged = dict(zip(shown, found, strict=True))
        grown = {name: rewards_as_it_grows(lab, messages, text, self.tag.value) for name, text in typed.items()}
        series = [
            (f"{key}, {name[-1]}", [(row["tokens"], row[key]) for row in rows])
            for name, rows in grown.items()
            for key in ("helpfulness", "safety")
        ]
        a = judged["answer A"]
        said = (
            f"<p>Answer A: {R_H} = {a['r_h']:.2f}, {R_S} = {a['r_s']:.2f}. The <strong>{a['model']}</strong> model "
            f"judges, because {a['why']}: {R_C} = {a['r_c']:.2f}, logit {a['logit']:+.2f}; whitened, PPO would see "
            f"{a['ppo']:+.2f} (before the KL penalty).</p>"
        )
        if "answer B" in judged:
            p = preference(a, judged["answer B"])
            said += (
                f"<p>A is better than B with probability {p['helpfulness']:.0%} by the helpfulness model, "
                f"{p['safety']:.0%} by the safety model.</p>"
            )
        strips = "".join(f"<p>{name[-1]}: {growth_strip(rows)}</p>" for name, rows in grown.items())
        words = "both scores of the answer so far, against its tokens"
        picture = lines(series, words, "tokens of the answer so far", "score (logit)", dots=True)
        head = ["", "answer", "helpfulness", "safety", "judge", "logit", "PPO", *(["truly"] if prompt else [])]
        body = []
        for name, r in judged.items():
            scores = [f"{r['r_h']:.2f}", f"{r['r_s']:.2f}", r["model"], f"{r['logit']:+.2f}", f"{r['ppo']:+.2f}"]
            body.append([name, shown[name][:120], *scores, *([truly(r["truth"])] if prompt else [])])
        note = "" if row or not self.truth.value else "<p>The oracle knows only the town's own prompts.</p>"
        return said + picture + strips + table(head, body) + note


def truly(verdict: Verdict) -> str:
    return f"{oracle_words(verdict)}; helpfulness {verdict.helpfulness:+.2f}, safety {verdict.safety:+.2f}"
