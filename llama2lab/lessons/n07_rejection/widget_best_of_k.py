"""The best-of-K explorer (Llama 2, section 3.2.3, Figures 7 and 8): draw K answers to a prompt, see them in the order
of the reward, guess which is best, and reveal what they are truly worth."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import ipywidgets as w
import numpy as np

from llama2lab.lab.explorer import Explorer, button, dropdown, slider
from llama2lab.lab.finished import Finished
from llama2lab.lab.pictures import lines, number, table
from llama2lab.lab.shown import oracle_words
from llama2lab.lessons.n07_rejection.experiments import of_k
from llama2lab.report.look import tame
from llama2lab.report.summary import short_name
from llama2lab.stages.evaluate import overall
from llama2lab.stages.gate import combined_scores
from llama2lab.town.items import Prompt

MOST = 32
STAGES = ("sft", "rlhf-v1", "rlhf-v3", "rlhf-v4", "rlhf-v5")
JUDGES = ("reward-helpfulness-v5", "reward-helpfulness-v1", "reward-helpfulness-v5-linear")


@dataclass(frozen=True)
class Drawn:
    """One answer: its score, logit(R_c), and its true worth by the oracle (safety on an unsafe prompt)."""

    text: str
    score: float
    truth: float
    verdict: str


def sample_k(
    lab: Finished,
    prompt: Prompt,
    stage: str = "sft",
    k: int = MOST,
    temperature: float = 1.0,
    seed: int = 0,
    judge: str = JUDGES[0],
) -> list[Drawn]:
    """`k` answers of a stage in the order they were drawn; the first ones do not depend on the score."""
    (answers,) = lab.sample_answers(stage, [prompt.messages], k=k, temperature=temperature, seed=seed)
    scores = combined_scores(
        lab.reward(judge), lab.reward("reward-safety-v5"), lab.tokenizer, [prompt] * k, answers, lab.machine
    )
    verdicts = [lab.oracle.judge(prompt, a) for a in answers]
    return [Drawn(a, s, overall(v, prompt), oracle_words(v)) for a, s, v in zip(answers, scores, verdicts, strict=True)]


def curves(scores: Sequence[float], truths: Sequence[float]) -> list[dict[str, float]]:
    """For each K up to all draws: `max`, `mean` and `median` score among K of them, the true worth of the one with the
    largest score (`pick`), and of the truly best (`ceiling`); each a mean over all choices of K."""
    s, t = np.array([scores], dtype=float), np.array([truths], dtype=float)
    return [
        {"k": k, "mean": float(s.mean()), **{what: float(x[0]) for what, x in of_k(s, t, k).items()}}
        for k in range(1, s.shape[1] + 1)
    ]


@cache
def known_prompts(lab: Finished, n: int = 8) -> tuple[tuple[str, Prompt], ...]:
    """Held-out single questions to choose from, by what they ask."""
    asked = [p for p in lab.prompts(helpful=3 * n, borderline=6, unsafe=6, seed=7) if len(p.messages) == 1]
    picked = [
        p
        for kind, most in (("helpful", n), ("borderline", 2), ("unsafe", 2))
        for p in [p for p in asked if p.kind == kind][:most]
    ]
    return tuple({f"{p.kind}: {p.question}": p for p in picked}.items())


class BestOfK(Explorer):
    """A prompt, a stage, a temperature, K; the answers by their reward and, revealed, their true worth. All draws of a
    setting are made at once: moving K only looks at more or fewer of them."""

    def __init__(self, lab: Finished, k: int = 8, most: int = MOST):
        self.lab, self.most, self.seed = lab, most, 0
        self.kept: dict[Any, list[Drawn]] = {}
        self.prompts = dict(known_prompts(lab))
        self.prompt = dropdown("prompt", list(self.prompts), width="98%")
        self.stage = dropdown("model", [(short_name(s), s) for s in STAGES if lab.has(s)], width="140px")
        judges = [(s.removeprefix("reward-"), s) for s in JUDGES if lab.has(s)]
        self.judge = dropdown("judged by", judges, width="250px")
        self.k = slider("K", min(k, most), 1, most, width=None)
        self.temperature = slider("temperature", 1.0, 0.2, 2.0, 0.1, None, continuous_update=False)
        self.reveal = w.Checkbox(description="reveal what is true", indent=False)
        self.again = button("Draw again", "draw other answers with the same settings", self._again)
        chosen = (self.prompt, self.stage, self.judge, self.temperature, self.k)
        super().__init__("Best of K", [*chosen, self.reveal, self.again])

    def _again(self) -> None:
        self.seed += 1
        self.redraw()

    @property
    def drawn(self) -> list[Drawn]:
        """All draws of the present setting."""
        key = (self.prompt.value, self.stage.value, self.temperature.value, self.judge.value, self.seed)
        if key not in self.kept:
            self.kept[key] = sample_k(self.lab, self.prompts[key[0]], key[1], self.most, key[2], self.seed, key[3])
        return self.kept[key]

    def draw(self) -> str:
        drawn, k, open_ = self.drawn, self.k.value, self.reveal.value
        first = sorted(drawn[:k], key=lambda d: -d.score)
        rows = curves([d.score for d in drawn], [d.truth for d in drawn])
        now = rows[k - 1]
        series = [(name, [(r["k"], r[name]) for r in rows]) for name in ("max", "mean", "median")]
        across, words = "K answers (means over all choices of K of the draws)", "score, logit of the reward"
        said = "reward of the best, mean and median answer by K"
        picture = lines(series, said, across, words, marks=[(k, now["max"])])
        if open_:
            truth = [
                (name, [(r["k"], r[key]) for r in rows])
                for name, key in (("picked", "pick"), ("truly best", "ceiling"))
            ]
            said = "true worth of the picked and of the best answer by K"
            picture += lines(truth, said, "K answers", "true worth", marks=[(k, now["pick"])], height=200)
        said = f"Kept: “{tame(first[0].text)}”, score {first[0].score:+.2f}"
        if open_:
            best = max(drawn[:k], key=lambda d: d.truth)
            said += f", truly worth {first[0].truth:+.2f}; the best of these {k} is worth {best.truth:+.2f}"
        said += f". {len({d.text for d in drawn[:k]})} of {k} answers differ."
        head = ["", "score", "answer", *(["true worth", "verdict"] if open_ else [])]
        body = [
            [i, f"{d.score:+.2f}", d.text, *([number(d.truth), d.verdict] if open_ else [])]
            for i, d in enumerate(first, 1)
        ]
        shown, rest = body[:10], body[10:]
        more = f"<details><summary>{len(rest)} more</summary>{table(head, rest)}</details>" if rest else ""
        return f"<p>{html.escape(said)}</p>{picture}{table(head, shown)}{more}"
