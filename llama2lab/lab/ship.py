"""Make of a finished run what is shipped with the project: `python -m llama2lab.lab.ship runs/mini-0`.

The folder stays a run (`llama2lab chat data/run` talks to it) and every checkpoint a plain transformers folder. Weights
are rounded to bfloat16, which halves them; stages that no notebook needs are left out.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llama2lab.errors import LabError
from llama2lab.lab.finished import SHIPPED
from llama2lab.runs import read_json, stage_folder

MODELS = ("base", "sft", "sft-noisy", "rlhf-v1", "rlhf-v3", "gatt", "rlhf-v4", "rlhf-v5", "reward-helpfulness-v1",
          "reward-helpfulness-v5", "reward-helpfulness-v5-linear", "reward-safety-v5")
ROWS = ("tokenizer", "best-of-k", *(f"preferences-v{v}" for v in range(1, 6)), *(f"samples-v{v}" for v in range(1, 5)))
LEFT_OUT = ("rollouts", "gatt.jsonl", "random.jsonl", "sft-noisy/rows.jsonl",  # large, and of use to a run that goes on
            *(f"samples-v{v}/samples.jsonl" for v in range(2, 5)))


def ship(run: Path, out: Path = SHIPPED) -> None:
    """Copy what notebooks need of a finished run into `out`, which is replaced."""
    if not (run / "results.json").is_file():
        raise LabError(f"{run} is not a finished run (no results.json); finish it with: llama2lab run --out {run}")
    fresh = out.with_name(out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    for stage in (*MODELS, *ROWS):
        left_out = [name.split("/")[-1] for name in LEFT_OUT if "/" not in name or name.startswith(f"{stage}/")]
        shutil.copytree(stage_folder(run, stage), fresh / stage, ignore=shutil.ignore_patterns(*left_out))
    for file in ("run.json", "results.json"):
        shutil.copy(run / file, fresh / file)
    if (run / "experiments").is_dir():
        shutil.copytree(run / "experiments", fresh / "experiments")
    for weights in fresh.rglob("*.safetensors"):
        tensors = load_file(weights)
        save_file({k: t.to(torch.bfloat16) if t.is_floating_point() else t for k, t in tensors.items()}, weights,
                  {"format": "pt"})
        config = weights.with_name("config.json")
        if weights.name == "model.safetensors" and config.is_file():
            config.write_text(json.dumps({**read_json(config), "dtype": "bfloat16"}, indent=2) + "\n", encoding="utf-8")
    for path in fresh.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m llama2lab.lab.ship RUN")
    try:
        ship(Path(sys.argv[1]))
    except LabError as e:
        sys.exit(f"error: {e}")
