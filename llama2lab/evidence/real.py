"""What the project shows of runs on real text: data/real.json, which `llama2lab real-figures RUN... --write` makes of
finished runs. Figures and answers to questions of our own; no text of the data sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import Number, read_as, write_atomic
from llama2lab.engine.paths import DATA
from llama2lab.engine.validation import validated
from llama2lab.report.summary import Results, find, is_figure, load_run, metrics, most_memory, total_seconds

FILE = "real.json"
COMMAND = "llama2lab real-figures RUN... --write"
Figure = dict[str, Any]

# Who judges people's pairs, in words.
JUDGES = {
    "model": "the reward model",
    "longer": "the longer answer",
    "likelihood_sum": "likelier, untouched checkpoint",
    "likelihood_mean": "likelier by the token",
    "random": "random heads on it",
}
OF_REWARDS = ("accuracy", "accuracy_on_other", "accuracy_on_fresh", "less_longer", "truth")
OF_POLICIES = (
    *("win_rate_vs_sft", "safety_win_rate_vs_sft", "false_refusal_rate", "refusal_rate_on_unsafe", "words"),
    "heldout_bits_per_byte",
)
TOWN_HEADS = {"likelihood": "reward-helpfulness-v5", "linear": "reward-helpfulness-v5-linear"}
OTHER_HEAD = tuple(f"-{head}" for head in TOWN_HEADS)  # how the stage of a head that the recipe has not ends


class Reward(TypedDict, total=False):
    """A reward model on people's held-out pairs."""

    stage: str
    kind: str
    head: str
    pairs: int  # trained on
    figures: dict[str, Figure]  # OF_REWARDS
    baselines: dict[str, Figure]  # by judge
    equal_length: dict[str, Figure]  # by judge, "model" and "less_longer" among them
    by_grade: dict[str, Figure]
    known: dict[str, Figure]  # what the untouched checkpoint and SFT find likelier, of the facts: "base", "sft"


class Judge(TypedDict):
    """A reward model that trained no policy."""

    stage: str
    accuracy: Figure


class Policy(TypedDict):
    """A chat model, against SFT by the judges."""

    stage: str
    method: str
    figures: dict[str, Figure]  # OF_POLICIES


class Answers(TypedDict):
    """What each stage answers to one question."""

    prompt: str
    answers: dict[str, str]


class RealRun(TypedDict):
    """A finished run on real text."""

    recipe: str
    start_from: str
    parameters: int
    trained: int  # of them, by a reward model
    seed: int
    minutes: Number  # of the recipe
    other_head_minutes: Number  # and of the reward model with the head that the recipe has not; 0: none was made
    memory_mb: Number | None  # the most that the process held; None: not known
    machine: dict[str, Any]
    rewards: list[Reward]
    judges: list[Judge]
    policies: list[Policy]
    samples: list[Answers]


# ---- from finished runs ----------------------------------------------------------------------------------------------


def real_figures(run: Path) -> RealRun:
    """What is shown of a finished run; LabError for one that is not finished, or not on real text."""
    if not (run / "results.json").is_file():
        raise LabError(f"{run} is not a finished run (no results.json); finish it with: llama2lab run --out {run}")
    r = load_run(run)
    if r.get("preset") != "real":
        raise LabError(f"{run} is a run on the town; give runs of a recipe with `data:`")
    base = metrics(r, "base")
    if "parameters" not in base or not any(metrics(r, name).get("baselines") for name in r["stages"]):
        raise LabError(f"{run} is of an older version, without baselines; give its command again, which measures them")
    stages = list(r["stages"])
    other = sum(stage.get("seconds") or 0.0 for name, stage in r["stages"].items() if name.endswith(OTHER_HEAD))
    chat = [name for name in stages if metrics(r, name).get("asked")]
    asked = [[row["prompt"] for row in metrics(r, name)["asked"]] for name in chat]
    return {
        "recipe": str(r.get("recipe", "")),
        "start_from": Path(base.get("started_from", "")).name.removesuffix(".gguf"),
        "parameters": int(base["parameters"]),
        "trained": int(metrics(r, next(name for name in stages if name.startswith("reward-"))).get("parameters", 0)),
        "seed": int(r.get("seed", 0)),
        "minutes": round((total_seconds(r) - other) / 60, 1),
        "other_head_minutes": round(other / 60, 1),
        "memory_mb": most_memory(r),
        "machine": r.get("machine") or {},
        "rewards": [_reward(r, name) for name in stages if name.startswith("reward-")],
        "judges": [
            {"stage": name, "accuracy": f}
            for name in stages
            if name.startswith(("judge-", "annotator-")) and (f := find(r, name, "accuracy"))
        ],
        "policies": [_policy(r, name) for name in chat],
        "samples": [
            {"prompt": prompt, "answers": {name: metrics(r, name)["asked"][i]["answer"] for name in chat}}
            for i, prompt in enumerate(asked[0] if asked else ())
        ],
    }


def _found(figures: Any) -> dict[str, Figure]:
    """Those of the figures that were measured on anything."""
    return {name: f for name, f in (figures or {}).items() if is_figure(f) and f["n"]}


def _reward(r: Results, name: str) -> Reward:
    m = metrics(r, name)
    known = {of: figures["likelihood_sum"] for of, figures in (m.get("truth_by_likelihood") or {}).items()}
    return {
        "stage": name,
        "kind": "safety" if "-safety" in name else "helpfulness",
        "head": str(m.get("head", "")),
        "pairs": int(m.get("pairs", 0)),
        "figures": _found({key: m.get(key) for key in OF_REWARDS}),
        "baselines": _found(m.get("baselines")),
        "equal_length": _found(m.get("equal_length")),
        "by_grade": _found(m.get("accuracy_by_grade")),
        "known": _found(known),
    }


def _policy(r: Results, name: str) -> Policy:
    m = metrics(r, name)
    method = "fine-tuning" if name == "sft" else "PPO" if m.get("log") else "rejection sampling"
    return {"stage": name, "method": method, "figures": _found({key: m.get(key) for key in OF_POLICIES})}


def write_real(runs: Sequence[Path], data: Path) -> Path:
    """Keep what is shown of these runs, the smallest model first, of one model that with the fewest pairs; LabError as
    `real_figures`."""
    found = sorted((real_figures(run) for run in runs), key=lambda run: (run["parameters"], pairs_of(run)))
    write_atomic(data / FILE, json.dumps({"runs": found}, indent=1, allow_nan=False) + "\n")
    return data / FILE


def read_real(data: Path = DATA) -> list[RealRun]:
    """The runs that are stored, none where the file is missing; LabError where it is damaged."""
    path = data / FILE
    if not path.is_file():
        return []
    cure = f"write it anew with: {COMMAND}"
    runs = read_as(dict[str, Any], path, cure).get("runs")
    found: list[RealRun] = validated(list[RealRun], runs, f"{path}: runs", cure)
    return found


# ---- what pages and notebooks say of them ----------------------------------------------------------------------------


def millions(parameters: float) -> str:
    """'135 million', '1.7 million', '.26 million'."""
    n = parameters / 1e6
    return f"{f'{n:.0f}' if n >= 10 else f'{n:.1f}' if n >= 1 else f'{n:.2f}'.lstrip('0')} million"


def cost_words(run: RealRun) -> str:
    """'51 minutes, 8.1 GB'."""
    other = run["other_head_minutes"]
    more = f" and {f'{other:.0f}' if other >= 1 else 'less than one'} for the other head" if other else ""
    held = f", {run['memory_mb'] / 1000:.1f} GB" if run["memory_mb"] else ""
    return f"{run['minutes']:.0f} minutes{more}{held}"


def pairs_of(run: RealRun) -> int:
    """That the run's helpfulness models of round 1 learnt from."""
    return max((r["pairs"] for r in run["rewards"] if r["kind"] == "helpfulness" and "-v1" in r["stage"]), default=0)


def run_words(run: RealRun) -> str:
    """'smollm2, SmolLM2-135M, 135 million parameters'."""
    names = [name for name in (run["recipe"], run["start_from"]) if name]
    return ", ".join([*names, f"{millions(run['parameters'])} parameters"])


def reward_words(reward: Reward) -> str:
    """'helpfulness, round 1, linear head, 631 pairs'."""
    version = reward["stage"].split("-v")[1].split("-")[0]
    return f"{reward['kind']}, round {version}, {reward['head']} head, {reward['pairs']:,} pairs"


def by_judge(reward: Reward, like_lengths: bool = False) -> dict[str, Figure]:
    """Who is right on how many of the same held-out pairs: all of them, or those of like lengths."""
    every = {"model": reward["figures"].get("accuracy"), **reward["baselines"]}
    found = reward["equal_length"] if like_lengths else every
    return {words: f for judge, words in JUDGES.items() if (f := found.get(judge))}


def truth_rows(runs: Sequence[RealRun], town: Results | None) -> list[dict[str, Any]]:
    """How many of the right facts each head prefers, by size and pairs: {"parameters", "facts", "pairs", "linear",
    "likelihood", "base", "sft"}, None where nothing is stored. `town` are the pooled seeds of the miniature, with facts
    of its own, whose pairs are of five rounds."""
    rows = []
    if town is not None:
        size = metrics(town, "base").get("parameters")
        heads = {head: find(town, stage, "truth") for head, stage in TOWN_HEADS.items()}
        if size and any(heads.values()):
            rows.append({"parameters": size, "facts": "the town's", "pairs": None, "base": None, "sft": None, **heads})
    for run in runs:
        told = {r["head"]: r for r in run["rewards"] if "truth" in r["figures"] and "-v1" in r["stage"]}
        if told:
            known = next(iter(told.values()))["known"]
            heads = {head: told[head]["figures"]["truth"] if head in told else None for head in TOWN_HEADS}
            of = {name: known.get(name) for name in ("base", "sft")}
            row = {"parameters": run["parameters"], "facts": "the world's", "pairs": pairs_of(run)}
            rows.append({**row, **of, **heads})
    return rows


def truth_words(row: dict[str, Any]) -> str:
    """'135 million, the world's facts, 631 pairs'."""
    pairs = "" if row["pairs"] is None else f", {row['pairs']:,} pairs"
    return f"{millions(row['parameters'])}, {row['facts']} facts{pairs}"


def answer(row: dict[str, Any]) -> str:
    """Whether size cures the report's blind head, by one row of `truth_rows`: from the intervals alone."""
    linear, known = row["linear"], row["base"]
    if linear is None:
        return "not tried"
    if known is not None and known["low"] <= 0.5:
        return "nothing: the untouched model does not know these facts itself"
    if linear["low"] <= 0.5:
        return "no surer of the truth than a coin"
    if known is not None and linear["high"] < known["low"]:
        return "more than a coin, less than the untouched model knows"
    return "it sees the truth"
