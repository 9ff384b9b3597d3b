"""The reward-hacking theatre: PPO against a weak reward model without a KL term, played back step by step."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as w

from llama2lab.lab.explorer import Explorer, dropdown, slider
from llama2lab.lab.pictures import lines, table
from llama2lab.lessons.n08_ppo.experiments import changes
from llama2lab.report.look import tame

Row = dict[str, Any]


def parting(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """Proxy and truth on the same held-out answers, each as its `changes`. Points (iteration, change)."""
    return {
        key: [(row["iteration"] + 1, change) for row, change in zip(rows, changes(rows, key), strict=True)]
        for key in ("proxy", "truth")
    }


def verdict(rows: Sequence[Row]) -> str:
    """What happened, in words that follow the figures."""
    if len(rows) < 2:
        return "Too short a run to say anything."
    first, last = rows[0], rows[-1]
    best = max(rows, key=lambda row: row["truth"]["mean"])
    rose = last["proxy"]["mean"] > first["proxy"]["high"]
    fell = last["truth"]["mean"] < first["truth"]["mean"]
    below = last["truth"]["high"] < best["truth"]["mean"]
    text = (
        f"The reward went from {first['proxy']['mean']:.2f} to {last['proxy']['mean']:.2f}, the truth from "
        f"{first['truth']['mean']:.2f} to {last['truth']['mean']:.2f}, at {last['kl']:.1f} nats from the start. "
    )
    if rose and fell:
        return text + "The policy pleases the judge and serves nobody: the reward is hacked."
    if rose and below:
        return text + (f"The truth was best at iteration {best['iteration'] + 1} and has fallen since: over-optimised.")
    if rose:
        return text + "So far both rise: the judge is good enough for this far a walk."
    return text + "The reward itself has not clearly risen: nothing to be hacked yet."


def answers_at(rows: Sequence[Row], step: int, most: int = 4) -> list[tuple[str, str, float, str, float]]:
    """(question, answer at the start, its truth, answer at `step`, its truth)."""
    first, now = rows[0]["answers"], rows[min(step, len(rows) - 1)]["answers"]
    both = list(zip(first, now, strict=True))[:most]
    return [(a["question"], a["answer"], a["truth"], b["answer"], b["truth"]) for a, b in both]


class HackingTheatre(Explorer):
    """`runs`: rows of short runs by name (experiments.hacking)."""

    def __init__(self, runs: Mapping[str, Sequence[Row]]):
        self.runs = runs
        last = len(next(iter(runs.values())))
        self.which = dropdown("reward model trained on", list(runs), width="300px")
        self.step = slider("iteration", last, 1, last, width="300px")
        tip = "Play the run from its first iteration"
        self.film = w.Play(value=1, min=1, max=last, interval=700, description="play", tooltip=tip)
        w.link((self.film, "value"), (self.step, "value"))
        self.step.value = last
        self.which.observe(self.fit, "value")
        super().__init__("Reward-hacking theatre", [self.which, self.film, self.step])

    def fit(self, _: Any = None) -> None:
        """The sliders end where the chosen run ends."""
        for control in (self.film, self.step):
            control.max = len(self.runs[self.which.value])
        self.step.value = self.step.max

    def draw(self) -> str:
        rows, step = self.runs[self.which.value], self.step.value - 1
        curves = parting(rows)
        marks = [points[step] for points in curves.values() if step < len(points)]
        picture = lines(
            [("reward (proxy)", curves["proxy"]), ("truth", curves["truth"])],
            "Change of the reward and of the truth since the start, by iteration",
            "iteration",
            "change since the start, in standard errors",
            marks=marks,
        )
        now = rows[min(step, len(rows) - 1)]
        facts = (
            f"Iteration {step + 1}: {now['kl']:.1f} nats from the start, {now['length']:.0f} tokens an answer; "
            f"reward {now['proxy']['mean']:.2f}, truth {now['truth']['mean']:.2f} "
            f"[{now['truth']['low']:.2f}, {now['truth']['high']:.2f}]."
        )
        body = [(q, f"{a} ({x:+.2f})", f"{b} ({y:+.2f})") for q, a, x, b, y in answers_at(rows, step)]
        return f"<p>{html.escape(verdict(rows))}</p>{picture}<p>{html.escape(tame(facts))}</p>" + table(
            ("question", "answer at the start (truth)", f"at iteration {step + 1} (truth)"), body
        )
