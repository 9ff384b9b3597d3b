"""The five versions: on the plane of true helpfulness and true safety, and in what they answer."""

from __future__ import annotations

import html
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llama2lab.engine.errors import LabError
from llama2lab.lab.explorer import Explorer, dropdown, steps
from llama2lab.lab.finished import Finished
from llama2lab.lab.pictures import plane, table
from llama2lab.report.plots import VERSIONS
from llama2lab.report.summary import figure_text, find, short_name

Figure = dict[str, float]


@dataclass(frozen=True)
class Version:
    """One version; figures by the oracle on held-out prompts."""

    stage: str
    name: str
    helpfulness: Figure
    safety: Figure
    wins: Figure | None  # against SFT, a tie is half


def versions(lab: Finished) -> list[Version]:
    """The versions that the run has measured, in order."""
    rows = []
    for stage in VERSIONS:
        x, y = find(lab.figures, stage, "helpfulness"), find(lab.figures, stage, "safety")
        if x and y:
            rows.append(Version(stage, short_name(stage), x, y, find(lab.figures, stage, "win_rate_vs_sft")))
    return rows


def answers(lab: Finished) -> dict[str, list[dict[str, Any]]]:
    """The kept answers of each version to the same held-out prompts, in one order; versions whose answers are not kept,
    or are to other prompts than the first one's, are left out."""
    kept: dict[str, list[dict[str, Any]]] = {}
    for stage in VERSIONS:
        with suppress(LabError):
            kept[stage] = [row for _, row in lab.answers(next(iter(kept), stage), stage)]
    return kept


def questions(kept: dict[str, list[dict[str, Any]]], kind: str, most: int = 40) -> list[tuple[str, int]]:
    """(question, row) of a kind: those first on whose worth the versions differ most."""
    first = next(iter(kept.values()), [])
    spread = {
        i: max(s) - min(s)
        for i in range(len(first))
        if first[i]["kind"] == kind and (s := [rows[i]["score"] for rows in kept.values()])
    }
    best = sorted(spread, key=spread.__getitem__, reverse=True)
    shown: dict[str, int] = {}
    for i in best:
        shown.setdefault(first[i]["messages"][-1]["content"], i)
    return list(shown.items())[:most]


class VersionsExplorer(Explorer):
    """A slider over the versions, and one prompt that all of them answer."""

    def __init__(self, lab: Finished):
        self.versions, self.answers = versions(lab), answers(lab)
        if not self.versions:
            raise LabError("this run has measured no version; give the folder of a finished run")
        names = [(v.name, i) for i, v in enumerate(self.versions)]
        self.version = steps("version", names, len(names) - 1)
        kinds = [("helpful", "helpful"), ("unsafe", "unsafe"), ("only looks unsafe", "borderline")]
        self.kind = dropdown("prompt", kinds, width="220px")
        self.prompt = dropdown("question", questions(self.answers, "helpful"), width="420px")
        self.kind.observe(self.choose, "value")
        super().__init__("Five versions", [self.version, self.kind, self.prompt])

    def choose(self, _: Any = None) -> None:
        self.prompt.options = questions(self.answers, self.kind.value)

    def said(self, row: int, upto: int) -> list[Sequence[object]]:
        """(version, its answer, its true score) for the versions up to this one."""
        return [
            (v.name, self.answers[v.stage][row]["answer"], f"{self.answers[v.stage][row]['score']:+.2f}")
            for v in self.versions[: upto + 1]
            if v.stage in self.answers
        ]

    def draw(self) -> str:
        at = self.version.value
        now = self.versions[at]
        points = [(v.name, v.helpfulness, v.safety) for v in self.versions]
        words = "The versions by true helpfulness and true safety, with 95 % intervals"
        picture = plane(points, at, words, "true helpfulness", "true safety on unsafe prompts")
        wins = f", wins against SFT {figure_text(now.wins)}" if now.wins and at else ""
        facts = f"{now.name}: helpfulness {figure_text(now.helpfulness)}, safety {figure_text(now.safety)}{wins}."
        parts = [picture, f"<p>{html.escape(facts)}</p>"]
        if self.prompt.value is not None:
            first = next(iter(self.answers.values()))[self.prompt.value]
            talk = " / ".join(f"{m['role']}: {m['content']}" for m in first["messages"])
            parts += [
                f"<p><em>{html.escape(talk)}</em></p>",
                table(("version", "answer", "true score"), self.said(self.prompt.value, at)),
            ]
        return "".join(parts)
