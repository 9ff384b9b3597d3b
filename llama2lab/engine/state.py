"""What a training keeps while it goes: one safetensors file of weights and moments, whole or not at all, that is read
back only as it was written. Nothing is pickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.files import disk_error
from llama2lab.engine.sharded import divided_like
from llama2lab.engine.validation import parse_json, validated


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """One file, written whole or not at all: tensors, and `facts` as JSON and the sum of both in its header."""
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        text = json.dumps(facts, allow_nan=False)
        save_file(there, temporary, metadata={"facts": text, "sha256": state_sum(there, text)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise disk_error(e if isinstance(e, OSError) else OSError(str(e)), path) from e


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_state` wrote, or None where there is nothing or only the beginning of it: then the stage starts over.

    Raises:
        LabError: the file is whole, but not as it was written: a damaged disk or memory, or another program's file.
    """
    if not path.exists() or cut_short(path):
        return None
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
            header = f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise LabError(f"{path}: damaged ({first_line(e)}); {start_over(path)}") from e
    facts = parse_json(header.get("facts", ""), str(path), start_over(path))
    if "sha256" in header and header["sha256"] != state_sum(tensors, header["facts"]):  # older states have none
        raise LabError(f"{path}: damaged, it is not as it was written; {start_over(path)}")
    return tensors, validated(dict[str, Any], facts, str(path), start_over(path))


def start_over(path: Path) -> str:
    return f"remove {path.parent} and give the same command again: this stage starts over, finished ones are kept"


def state_sum(tensors: dict[str, Tensor], facts: str) -> str:
    """SHA-256 of contiguous tensors on the CPU, with their names and shapes, and of `facts`."""
    total = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def cut_short(path: Path) -> bool:
    """Whether a safetensors file ends before the end that its header names, as after a power cut or half a copy."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > 10**8 and size >= 8:  # more than the format allows: damaged
            return False
        if size < 8 + length:
            return True
        try:
            header = json.loads(f.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            return bool(size < 8 + length + max(ends, default=0))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):  # no header at all: damaged
            return False


def module_tensors(prefix: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The weights that are trained and Adam's moments (themselves, no copies) under plain names, for `save_state`."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    tensors = {f"{prefix}.{name}": p.detach() for name, p in trained.items()}
    for name, p in trained.items():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"{prefix}.adam.{key}.{name}"] = torch.as_tensor(value)
    return tensors


def restore_module(
    prefix: str, module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """The reverse of `module_tensors`."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if not p.requires_grad:  # as it was when the stage began
                continue
            p.copy_(divided_like(tensors[f"{prefix}.{name}"], p))
            names = {key: f"{prefix}.adam.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            state = {key: tensors[full].to(p.device) for key, full in names.items() if full in tensors}
            state |= {key: divided_like(value, p) for key, value in state.items() if key != "step"}
            if state:
                if len(state) < len(names):
                    raise KeyError(f"{prefix}.adam of {name}")
                optimizer.state[p] = state
