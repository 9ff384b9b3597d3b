"""The finished run that notebooks look at, and what they measure themselves.

lab = finished_run()                    # your last run, or the one shipped with the project
model = lab.model("rlhf-v5")
lab.figures["stages"]["sft"]["metrics"]["helpfulness"]    # {"mean": ..., "low": ..., "high": ..., "n": ...}
lab.measured(margins)                   # an experiment of the last full run (`llama2lab experiments`), or live
lab.live(gqa_variants, seconds=10)      # measured here and now, kept in runs/lab: the next Run All is quick
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from llama2lab.engine.answers import joined
from llama2lab.engine.device import Machine, this_machine
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import digest, read_as, read_json, read_rows, write_atomic
from llama2lab.engine.identity import alone, code_digest, folder_digest
from llama2lab.engine.paths import DATA, ROOT
from llama2lab.engine.stagefiles import finished_at, finished_stages, stage_folder
from llama2lab.model.checkpoint import load_model
from llama2lab.model.generate import Generation, generate
from llama2lab.model.network import Llama
from llama2lab.model.sample import sample_answers
from llama2lab.model.tokenizer import load_tokenizer
from llama2lab.report import summary
from llama2lab.stages.reward import RewardModel, load_reward, score_answers
from llama2lab.town.items import Prompt
from llama2lab.town.oracle import Oracle
from llama2lab.town.prompts import TownSource
from llama2lab.town.town import Town, load_town

RUN = "LLAMA2LAB_RUN"  # the folder of a run to look at
LIVE = "LLAMA2LAB_LIVE"  # where notebooks keep what they measured; runs/lab beside the notebooks' folder otherwise
SHIPPED = ROOT / "data" / "run"  # seed 0 of the preset mini, in bfloat16: in a checkout, not in a wheel
TOKENIZER = "tokenizer.json"
Experiment = Callable[..., dict[str, Any]]


def finished_run(path: str | Path | None = None) -> Finished:
    """The run in `path`, or in the folder that LLAMA2LAB_RUN names, or your last finished run of the preset mini in
    runs/ (by what its stages say: a copy is no newer than its original), or the one shipped with the project. Where
    there is none, a tiny one is trained, in about a minute: it shows the plumbing, and its figures mean nothing.
    Another notebook that trains it already is waited for."""
    named = path or os.environ.get(RUN)
    if named:
        return Finished(Path(os.path.expanduser(named)))
    folders = (Path("runs"), Path("..", "runs"), ROOT / "runs")
    own = [p.parent for folder in folders for p in folder.glob("*/results.json") if _preset(p) == "mini"]
    if own:
        return Finished(sorted(own, key=lambda run: (finished_at(run), run.name))[-1])
    if (SHIPPED / "results.json").is_file():
        return Finished(SHIPPED)
    from llama2lab.run.presets import preset
    from llama2lab.run.recipe import run_town

    tiny = live_folder().parent / "smoke-0"
    if not (tiny / "results.json").is_file():
        with alone(tiny):
            if not (tiny / "results.json").is_file():  # another notebook may have made it meanwhile
                print(
                    "There is no finished run here: a tiny one is trained now, in about a minute. For figures that "
                    "mean something: llama2lab run"
                )
                run_town(preset("smoke"), tiny)
    return Finished(tiny)


def _preset(results: Path) -> Any:
    found = read_json(results)
    return found.get("preset") if isinstance(found, dict) else None


def live_folder() -> Path:
    """Where notebooks keep what they measured themselves. Delete it to measure anew."""
    named = os.environ.get(LIVE)
    if named:
        return Path(os.path.expanduser(named))
    return (ROOT if (ROOT / "notebooks").is_dir() else Path()) / "runs" / "lab"


@dataclass(frozen=True)
class Finished:
    """A finished run: its models, rows and figures. What it lacks is taken from the shipped run, where that has it and
    its models read the same tokens."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "run.json").is_file():
            raise LabError(
                f"{self.folder} is not a run of llama2lab (no run.json); make one with: llama2lab run, or "
                f"leave {RUN} empty for the one shipped with the project"
            )

    def __repr__(self) -> str:
        which = "shipped with the project, in bfloat16" if self.folder == SHIPPED else str(self.folder)
        return f"run of the preset {self.figures.get('preset')}, seed {self.figures.get('seed')} ({which})"

    @cached_property
    def figures(self) -> dict[str, Any]:
        """What its results.json holds."""
        return summary.load_run(self.folder)

    @cached_property
    def machine(self) -> Machine:
        return this_machine()

    @cached_property
    def town(self) -> Town:
        return load_town()

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.town)

    @cached_property
    def tokenizer_folder(self) -> Path:
        """The stage whose tokenizer all models of this run are given: its own; the shipped run's where it has none."""
        there = set(finished_stages(self.folder))
        names = [name for name in ("sft", "base", "tokenizer", *sorted(there)) if name in there]
        own = next((self.folder / name for name in names if (self.folder / name / TOKENIZER).is_file()), None)
        return own or stage_folder(SHIPPED if SHIPPED.is_dir() else self.folder, "sft")

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.tokenizer_folder)

    def stage(self, name: str) -> Path:
        """The folder of a stage; LabError that lists the stages there are, and for a stage whose model reads other
        tokens than the run's, such as the shipped run's beside another tokenizer: its answers would be noise."""
        own = (self.folder / name / "stage.json").is_file() or not (SHIPPED / name / "stage.json").is_file()
        folder = stage_folder(self.folder, name) if own else SHIPPED / name
        if (folder / TOKENIZER).is_file() and not same_tokenizer(folder, self.tokenizer_folder):
            lacks = "" if own else f"{self.folder} has no stage {name!r}, and the one shipped with the project: "
            raise LabError(
                f"{lacks}{folder} has another tokenizer than {self.tokenizer_folder}, so its model would "
                f"read and write other words; finish this run (llama2lab run --out {self.folder}), or look "
                f"at the shipped one (leave {RUN} empty)"
            )
        return folder

    def has(self, stage: str) -> bool:
        """Whether `stage` can be looked at."""
        with contextlib.suppress(LabError):
            self.stage(stage)
            return True
        return False

    def model(self, stage: str = "rlhf-v5") -> Llama:
        """A chat or base model. The same object at every call: copy it (`copy.deepcopy`) before training it."""
        return _model(self.stage(stage)).to(self.machine.device)

    def reward(self, stage: str = "reward-helpfulness-v5") -> RewardModel:
        """A reward model. The same object at every call."""
        return _reward(self.stage(stage)).to(self.machine.device)

    def sample_answers(self, stage: str, conversations: Sequence[Sequence[dict]], **settings: Any) -> list[list[str]]:
        """What a stage answers to each conversation; `settings` are those of `sample.sample_answers`."""
        precision = self.machine.precision
        return sample_answers(self.model(stage), self.tokenizer, conversations, precision=precision, **settings)

    def score_answers(self, stage: str, conversations: Sequence[Sequence[dict]], answers: Sequence[str]) -> list[float]:
        """What a reward model gives to an answer to each conversation, before the sigmoid."""
        return score_answers(self.reward(stage), self.tokenizer, conversations, answers, self.machine)

    def generate(self, model: Llama, prompts: Sequence[list[int]], longest: int, **settings: Any) -> list[Generation]:
        """What a model writes after each prompt, until </s>; `settings` are those of `generate.generate`."""
        ends = {"eos_id": self.tokenizer.eos_token_id, "pad_id": self.tokenizer.pad_token_id}
        return generate(model, prompts, longest, **ends, **settings)

    def rows(self, stage: str, file: str) -> list[dict]:
        """The rows of a stage's JSON lines file, such as ("preferences-v1", "helpfulness.train.jsonl")."""
        return read_rows(self.stage(stage) / file)

    def answers(self, *stages: str) -> list[tuple[dict, ...]]:
        """What several stages answered to the same held-out prompts: one row of each stage's answers.jsonl by prompt,
        in the first one's order. LabError if they were not asked the same prompts, so that nothing can be compared."""
        try:
            return joined(*(self.rows(stage, "answers.jsonl") for stage in stages))
        except LabError as e:
            raise LabError(f"{' and '.join(stages)} of {self!r}: {e}") from e

    def metrics(self, stage: str) -> dict[str, Any]:
        """The figures of one stage; empty if the run has no such stage."""
        return summary.metrics(self.figures, stage)

    def prompts(
        self, helpful: int = 0, unsafe: int = 0, borderline: int = 0, seed: int = 0, split: str = "test"
    ) -> list[Prompt]:
        """Prompts of the town. "test" and "dev" are held out, "train" are those of RLHF."""
        source, found = TownSource(self.town), []
        for i, (kind, n) in enumerate((("helpful", helpful), ("borderline", borderline), ("unsafe", unsafe))):
            found += source.prompts(kind, n, seed + i, split) if n else []
        return found

    def measured(self, experiment: Experiment) -> dict[str, Any]:
        """The figures of an experiment: those that `llama2lab experiments` kept with this run, else those shipped with
        the project, else measured now (the experiment's docstring says how long it takes) and kept in runs/lab."""
        for folder in (self.folder, SHIPPED):
            path = folder / "experiments" / f"{experiment.__name__}.json"
            if path.is_file():
                return read_json(path)
        return self.live(experiment)

    @cached_property
    def identity(self) -> str:
        """Changes with the run's weights, rows and figures (and those of the shipped run, which may stand in), and with
        the town; not with the place of their folders."""
        return digest([folder_digest(folder) for folder in (self.folder, SHIPPED, DATA / "world") if folder.is_dir()])

    def live(self, experiment: Experiment, **settings: Any) -> dict[str, Any]:
        """Measure now, `experiment(lab, **settings)`, or give what was measured before with the same settings by the
        same code (all of the library that the experiment's module imports) on the same run. What it gives must be plain
        data: numbers, texts, lists, dicts. Another notebook that measures the same is waited for."""
        key = digest([code_digest(experiment), settings, self.identity])
        path = live_folder() / f"{experiment.__name__}-{key}.json"
        if not path.is_file():
            with alone(path):
                if not path.is_file():
                    write_atomic(path, json.dumps(experiment(self, **settings), indent=1))
        return read_json(path)  # as it will be next time

    def work_folder(self, name: str, code: Callable[..., Any], settings: Any) -> Path:
        """Where a live training keeps its state, so that it goes on after the stop button: one folder for each settings
        and each state of the code. Train there within `identity.alone`."""
        return live_folder() / f"{name}-{digest([code_digest(code), settings, self.identity])}"


@lru_cache(maxsize=32)
def _tokens(path: Path, size: int, time: int) -> dict[str, Any]:
    """All of a tokenizer.json that decides which tokens a text gets; read once for each state of the file."""
    whole = read_as(dict[str, Any], path, "save the model with its tokenizer again")
    return {key: value for key, value in whole.items() if key not in ("version", "truncation", "padding")}


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two folders' tokenizers give the same tokens."""

    def tokens(path: Path) -> dict[str, Any]:
        return _tokens(path, path.stat().st_size, path.stat().st_mtime_ns)

    return one == other or tokens(one / TOKENIZER) == tokens(other / TOKENIZER)


@lru_cache(maxsize=16)
def _model(folder: Path) -> Llama:
    return load_model(folder).eval()


@lru_cache(maxsize=8)
def _reward(folder: Path) -> RewardModel:
    return load_reward(folder)
