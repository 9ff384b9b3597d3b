"""Make of finished runs what is shipped with the project; `llama2lab evidence --write` does it.

`ship`: the folder stays a run (`llama2lab chat data/run` talks to it) and every checkpoint a plain transformers folder.
Weights are rounded to bfloat16, which halves them; rows are packed; stages that no notebook needs are left out.

`ship_figures`: of another seed only what `llama2lab report` pools, figures and scores.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from llama2lab.engine import folders
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import GZ, pack_rows, read_json, read_rows, write_rows
from llama2lab.engine.stagefiles import stage_folder
from llama2lab.lab.finished import SHIPPED

POLICIES = ("base", "sft", "sft-noisy", "rlhf-v1", "rlhf-v3", "gatt", "rlhf-v4", "rlhf-v5")
REWARDS = ("helpfulness-v1", "helpfulness-v5", "helpfulness-v5-linear", "safety-v5")
MODELS = (*POLICIES, *(f"reward-{name}" for name in REWARDS))
ROWS = ("tokenizer", "best-of-k", *(f"preferences-v{v}" for v in range(1, 6)), *(f"samples-v{v}" for v in range(1, 5)))
PAIRED = ("sft", "sft-noisy", "gatt", "rlhf-v3", "rlhf-v4", "rlhf-v5")  # see report.promises
# large, and of use to a run that goes on
SAMPLES = (f"samples-v{v}/samples.jsonl" for v in range(2, 5))
LEFT_OUT = ("rollouts", "measured", "gatt.jsonl", "random.jsonl", "sft-noisy/rows.jsonl", *SAMPLES)


def ship(run: Path, out: Path = SHIPPED) -> None:
    """Copy what notebooks need of a finished run into `out`, which is replaced; LabError as `_begin`."""
    fresh = _begin(run, out)
    for stage in (*MODELS, *ROWS):
        left_out = [name.split("/")[-1] for name in LEFT_OUT if "/" not in name or name.startswith(f"{stage}/")]
        shutil.copytree(stage_folder(run, stage), fresh / stage, ignore=shutil.ignore_patterns(*left_out))
    for file in ("run.json", "results.json"):
        shutil.copy(run / file, fresh / file)
    if (run / "experiments").is_dir():
        shutil.copytree(run / "experiments", fresh / "experiments")
    for weights in fresh.rglob("*.safetensors"):
        tensors = {k: t.bfloat16() if t.is_floating_point() else t for k, t in load_file(weights).items()}
        save_file(tensors, weights, {"format": "pt"})
        config = weights.with_name("config.json")
        if weights.name == "model.safetensors" and config.is_file():
            config.write_text(json.dumps({**read_json(config), "dtype": "bfloat16"}, indent=2) + "\n", encoding="utf-8")
    _pack(fresh)
    for record in fresh.glob("*/stage.json"):  # the sums are of what is shipped, where the stage has any
        known = read_json(record)
        if known.get("sums"):
            names = [name for known_as in known["sums"] for name in (known_as, known_as + GZ)]
            sums = {name: folders.sum_of(record.parent / name) for name in names if (record.parent / name).is_file()}
            record.write_text(json.dumps({**known, "sums": sums}, indent=1), encoding="utf-8")
    _end(fresh, out)


def ship_figures(run: Path, out: Path) -> None:
    """Keep of a finished run, in `out`, which is replaced, what pools with other seeds in a report: results.json, and
    the true scores of the stages that are compared prompt by prompt."""
    fresh = _begin(run, out)
    fresh.mkdir(parents=True)
    shutil.copy(run / "run.json", fresh)
    results = json.dumps(read_json(run / "results.json"), separators=(",", ":"), allow_nan=False)
    (fresh / "results.json").write_text(results)
    for stage in PAIRED:
        rows = read_rows(stage_folder(run, stage) / "answers.jsonl")
        scores = [{k: row[k] for k in ("prompt_id", "kind", "score") if k in row} for row in rows]
        (fresh / stage).mkdir()
        write_rows(fresh / stage / "scores.jsonl", scores)
    _pack(fresh)
    _end(fresh, out)


def _pack(folder: Path) -> None:
    for rows in sorted(folder.rglob("*.jsonl")):
        pack_rows(rows)


def _begin(run: Path, out: Path) -> Path:
    """Where to build `out`; LabError if the run is not finished, or `out` is not to be replaced."""
    if not (run / "results.json").is_file():
        raise LabError(f"{run} is not a finished run (no results.json); finish it with: llama2lab run --out {run}")
    if out.exists() and not (out / "run.json").is_file():
        raise LabError(f"{out} is there and no run, so it is not replaced; give a new folder")
    if out.resolve() == run.resolve() or run.resolve().is_relative_to(out.resolve()):
        raise LabError(f"{out} holds the run itself; give another folder")
    fresh = out.with_name(out.name + ".partial")
    if fresh.exists():
        folders.discard(fresh)
    folders.clear_up(out)
    return fresh


def _end(fresh: Path, out: Path) -> None:
    for path in fresh.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    folders.put_in_place(fresh, out)
