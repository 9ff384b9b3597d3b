"""Choosing or scoring? What a linear reward learns from an hour of annotation, by what one assumes of people (Llama 2,
section 3.2.1). People are simulated, pairs and their true worth are real."""

from __future__ import annotations

import html
from typing import Any

from llama2lab.lab.explorer import Explorer, slider
from llama2lab.lab.pictures import lines
from llama2lab.lessons.n05_preferences.experiments import WAYS, Effort, accuracy_by_hours

HOURS = (0.25, 0.5, 1.0, 2.0, 4.0)


class AnnotationTime(Explorer):
    """Sliders for what is assumed of people, and the accuracy that each way of asking yields by hours of work.
    `features` are those of `experiments.probe_features`; `seconds` your own median for a pair, if known."""

    def __init__(self, features: dict[str, Any], seconds: float | None = None, repeats: int = 4):
        self.features, self.repeats = features, repeats
        chosen = min(60.0, max(3.0, seconds or Effort.seconds_choice))
        late: dict[str, Any] = {"continuous_update": False}
        self.choice = slider("seconds for a choice", chosen, 3, 60, 1, **late)
        self.grade = slider("more for its grade", Effort.seconds_grade, 0, 30, 1, **late)
        self.score = slider("seconds to score one answer", chosen, 3, 60, 1, **late)
        self.noise = slider("carelessness", Effort.noise, 0, 3, 0.25, **late)
        self.strictness = slider("annotators differ in strictness", Effort.strictness, 0, 3, 0.25, **late)
        assumed = [self.choice, self.grade, self.score, self.noise, self.strictness]
        super().__init__("A choice, or two scores?", assumed)

    @property
    def effort(self) -> Effort:
        return Effort(self.choice.value, self.grade.value, self.score.value, self.noise.value, self.strictness.value)

    def draw(self) -> str:
        effort = self.effort
        most = len(self.features["train"]["worth"]) // 2
        found = accuracy_by_hours(self.features, effort, HOURS, self.repeats)
        series = [(way, [(h, found[way][f"{h:g}"]["mean"]) for h in HOURS]) for way in WAYS]
        counts = ", ".join(f"{way}: {min(most, effort.pairs(way, 1.0))} pairs" for way in WAYS)
        best = max(WAYS, key=lambda way: found[way]["1"]["mean"])
        said = (
            f"In one hour: {counts}. Best at one hour: {best}, right on {found[best]['1']['mean']:.0%} of held-out "
            f"pairs. There are {most} pairs; who has judged all of them stops."
        )
        return (
            lines(series, "accuracy by hours of annotation", "hours of annotation", "accuracy on the truth", dots=True)
            + f"<p>{html.escape(said)}</p>"
        )
