"""What is stored of the evidence, for the pages that are written from it: data/seeds (figures and scores of each seed),
data/run (the shipped run with its experiments), evidence.json, bench.json, notebook_seconds.json and, of runs on real
text, real.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llama2lab.engine import stats
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import digest, read_as
from llama2lab.evidence.real import RealRun, read_real
from llama2lab.lab.run_all import FILE, Times, read_times
from llama2lab.report.promises import NOTE
from llama2lab.report.summary import Results, difference, find, is_figure, is_number, load_run, paired_gap, pool
from llama2lab.run.presets import PRESETS, preset

Figure = dict[str, Any]
Measured = list[tuple[str, Figure]]  # in words, and the figure
CURE = "give the command llama2lab evidence again"


@dataclass(frozen=True)
class Stored:
    """The evidence: runs of one preset that differ in their seed, and what was measured on the first of them."""

    seeds: tuple[Path, ...]
    experiments: dict[str, Any] = field(default_factory=dict)  # by name, what each gave
    shipped: Results = field(default_factory=dict)  # results.json of the run that the experiments were measured on
    note: dict[str, Any] = field(default_factory=dict)  # evidence.json
    bench: dict[str, Any] = field(default_factory=dict)
    real: Sequence[RealRun] = ()  # runs on real text
    notebooks: dict[str, Times] = field(default_factory=dict)  # by precision, how long they take

    @cached_property
    def each(self) -> list[Results]:
        return [load_run(seed) for seed in self.seeds]

    @cached_property
    def pooled(self) -> Results:
        return pool(self.each)

    @cached_property
    def of_one_run(self) -> bool:
        """Whether the experiments were measured on one of the seeds, and not on some other run."""
        return any(one["stages"] == self.shipped.get("stages") for one in self.each)

    @cached_property
    def of_todays_preset(self) -> bool:
        """Whether every seed was made with the settings that its preset has now, as far as is noted."""
        runs = self.note.get("runs") or {}
        made = {(runs.get(str(one.get("seed"))) or {}).get("settings") for one in self.each}
        name = self.pooled.get("preset")
        return name in PRESETS and made == {settings_of(name)}

    def gap(self, one: Sequence[str], other: Sequence[str]) -> Figure | None:
        """The figure at (stage, metric, ...) less that at another place: as `summary.difference` over the items, and at
        least as uncertain as the seeds' own differences are."""
        whole, *by_seed = (difference(find(r, *one), find(r, *other)) for r in (self.pooled, *self.each))
        return over_seeds(whole, [f for f in by_seed if f])

    def less(self, a: str, b: str, *path: str) -> Figure | None:
        """A figure of stage a less that of stage b."""
        return self.gap((a, *path), (b, *path))

    def paired(self, a: str, b: str) -> Figure | None:
        """True helpfulness of stage a less that of stage b, prompt by prompt where scores are kept."""
        by_seed = [paired_gap([run], a, b, one) for run, one in zip(self.seeds, self.each, strict=True)]
        return over_seeds(paired_gap(self.seeds, a, b, self.pooled), [f for f in by_seed if f])


def settings_of(name: str) -> str:
    """Changes with any setting of a preset; LabError where there is no such preset."""
    return digest(asdict(preset(name)))


def over_seeds(whole: Figure | None, by_seed: Sequence[Figure]) -> Figure | None:
    """A pooled figure with each seed's own mean, its interval no narrower than Student's over these."""
    if whole is None or len(by_seed) < 2:
        return whole
    each = [f["mean"] for f in by_seed]
    over = stats.mean(each)
    ends = {"low": min(whole["low"], over["low"]), "high": max(whole["high"], over["high"])}
    return {**whole, **ends, "runs": len(each), "each": each}


def read_stored(data: Path) -> Stored:
    """What the folder holds; LabError if it has no seeds, or a file is damaged. Parts that are not there are empty."""
    folders = [p for p in (data / "seeds").glob("*") if (p / "results.json").is_file() and p.name.isdecimal()]
    if not folders:
        raise LabError(f"{data / 'seeds'} holds no runs; make them with: llama2lab evidence --write")
    experiments = {
        path.stem: read_as(dict[str, Any] | list[Any], path, CURE)
        for path in sorted((data / "run" / "experiments").glob("*.json"))
    }
    return Stored(
        tuple(sorted(folders, key=lambda p: int(p.name))),
        experiments,
        load_run(data / "run") if (data / "run" / "results.json").is_file() else {},
        _optional(data / NOTE),
        _optional(data / "bench.json"),
        read_real(data),
        read_times(data / FILE),
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_as(dict[str, Any], path, CURE) if path.is_file() else {}


def measured(words: str, figure: Any) -> Measured:
    """One figure with its words, or nothing where it was not measured."""
    return [(words, figure)] if is_figure(figure) and is_number(figure["mean"]) and figure["n"] else []
