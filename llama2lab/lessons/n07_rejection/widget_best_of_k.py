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

from llama2lab.lab.explorer import LABEL, Explorer, wide
from llama2lab.lab.finished import Finished
from llama2lab.lab.pictures import lines, number, table
from llama2lab.lab.shown import oracle_words
from llama2lab.lessons.n07_rejection.experiments import of_k
from llama2lab.model.sample import sample_answers
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
    (answers,) = sample_answers(
        lab.model(stage),
        lab.tokenizer,
        [prompt.messages],
        k=k,
        temperature=temperature,
        seed=seed,
        precision=lab.machine.precision,
    )
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


def there(lab: Finished, stages: Sequence[str]) -> list[str]:
    """Those stages that the run has."""
    return [stage for stage in stages if lab.has(stage)]


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
        self.prompt = w.Dropdown(options=list(self.prompts), description="prompt", **wide("98%"))
        self.stage = w.Dropdown(
            options=[(short_name(s), s) for s in there(lab, STAGES)], description="model", **wide("140px")
        )
        self.judge = w.Dropdown(
            options=[(s.removeprefix("reward-"), s) for s in there(lab, JUDGES)],
            description="judged by",
            **wide("250px"),
        )
        self.k = w.IntSlider(value=min(k, most), min=1, max=most, description="K", style=LABEL)
        self.temperature = w.FloatSlider(
            value=1.0, min=0.2, max=2.0, step=0.1, description="temperature", style=LABEL, continuous_update=False
        )
        self.reveal = w.Checkbox(description="reveal what is true", indent=False)
        self.again = w.Button(description="Draw again", tooltip="draw other answers with the same settings")
        self.again.on_click(self._again)
        super().__init__(
            "Best of K",
            [self.prompt, self.stage, self.judge, self.temperature, self.k, self.reveal, self.again],
            self.view,
        )

    def _again(self, _: Any) -> None:
        self.seed += 1
        self.redraw()

    @property
    def drawn(self) -> list[Drawn]:
        """All draws of the present setting."""
        key = (self.prompt.value, self.stage.value, self.temperature.value, self.judge.value, self.seed)
        if key not in self.kept:
            self.kept[key] = sample_k(self.lab, self.prompts[key[0]], key[1], self.most, key[2], self.seed, key[3])
        return self.kept[key]

    def view(self) -> str:
        drawn, k, open_ = self.drawn, self.k.value, self.reveal.value
        first = sorted(drawn[:k], key=lambda d: -d.score)
        rows = curves([d.score for d in drawn], [d.truth for d in drawn])
        now = rows[k - 1]
        series = [(name, [(r["k"], r[name]) for r in rows]) for name in ("max", "mean", "median")]
        picture = lines(
            series,
            "reward of the best, mean and median answer by K",
            "K answers (means over all choices of K of the draws)",
            "score, logit of the reward",
            marks=[(k, now["max"])],
        )
        if open_:
            truth = [
                ("picked", [(r["k"], r["pick"]) for r in rows]),
                ("truly best", [(r["k"], r["ceiling"]) for r in rows]),
            ]
            picture += lines(
                truth,
                "true worth of the picked and of the best answer by K",
                "K answers",
                "true worth",
                marks=[(k, now["pick"])],
                height=200,
            )
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
