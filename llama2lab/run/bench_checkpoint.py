"""`llama2lab bench --model PATH`: what somebody's checkpoint costs here beside transformers, turn by turn in one run.

Loading is measured in processes of its own, of which each has imported everything first: seconds until every weight has
been read, and by how much the process's memory grew at its most.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from llama2lab.engine.device import describe_machine, this_machine
from llama2lab.engine.errors import LabError
from llama2lab.model.checkpoint import load_model
from llama2lab.model.tokenizer import find_folder
from llama2lab.run.bench import PEER, Work, generate_row, keep_json, line, peer_of, train_row
from llama2lab.run.turns import OURS, offline

BATCHES = (1, 16)  # rows that are generated together
TRAINED = Work(rows=4, seq=128, steps=1)
REPEATS = 3

# What a process does: argv is the side, the path and the dtype. transformers needs `accelerate` for GGUF files.
LOADING = """
import json, sys, time
from pathlib import Path
import torch
from transformers import LlamaForCausalLM
from llama2lab.engine.device import begin_peak_memory, peak_memory_mb
from llama2lab.model.checkpoint import load_model

side, path, dtype = sys.argv[1], Path(sys.argv[2]), getattr(torch, sys.argv[3])
before, peak, begin = peak_memory_mb(), begin_peak_memory(), time.perf_counter()
if side == "ours":
    model = load_model(path, dtype)
else:
    where = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    safe = {"trust_remote_code": False, "local_files_only": True}
    model = LlamaForCausalLM.from_pretrained(where[0], dtype=dtype, **where[1], **safe)
read = sum(float(weight.sum()) for weight in model.parameters())
seconds = time.perf_counter() - begin
print(json.dumps({"seconds": seconds, "peak_mb": max(0.0, (peak() or before) - before)}))
"""


def bench_checkpoint(path: str, json_path: str | Path | None = None, repeats: int = REPEATS) -> dict[str, Any]:
    """Measure, print a table, and write it as JSON if asked. Returns {"machine", "model", "parameters", "loading",
    "generation", "training"}, the last three lists of rows with `ours`, `transformers` and their `ratio`: how many
    times as fast as transformers ours is. Rows of loading are for a dtype, in seconds, with `peak_mb` of both; where
    transformers cannot load the file here its figures are None.

    LabError for what is no checkpoint, or if the JSON cannot be written.
    """
    machine, place = this_machine(), find_folder(path)
    model = load_model(place)
    count = sum(p.numel() for p in model.parameters())
    result: dict[str, Any] = {"machine": describe_machine(), "model": Path(path).name, "parameters": count}
    print(f"{place}: {count:,} parameters, {machine.device}; this machine's precision is {machine.precision}")
    result["loading"] = [loading_row(place, dtype, repeats) for dtype in ("float32", "bfloat16")]
    with offline():
        peer = peer_of(model).to(machine.device)
        model = model.to(machine.device)
        result["generation"] = []
        for batch in BATCHES:
            row = {"batch": batch, **generate_row(model, peer, batch, machine, repeats)}
            result["generation"].append(row)
            print(line(f"generation {batch:>3} rows", row, "tokens/s", PEER))
        row = train_row(model, peer, machine, repeats, TRAINED)
        result["training"] = [row]
        print(line(f"training {TRAINED.rows} x {TRAINED.seq}", row, "tokens/s", PEER))
    keep_json(json_path, result)
    return result


def loading_row(place: Path, dtype: str, repeats: int) -> dict[str, Any]:
    """Seconds and memory of loading, ours and transformers' in turn; the first turn, which fetches the file's pages,
    does not count. Printed too."""
    found: dict[str, list[dict[str, float]]] = {OURS: [], PEER: []}
    for turn in range(repeats + 1):
        for side in list(found):
            told = loaded(side, place, dtype)
            if told is None:
                del found[side]
            elif turn:
                found[side].append(told)

    def of(side: str, key: str) -> float | None:
        return statistics.median(told[key] for told in found[side]) if found.get(side) else None

    ours, theirs = of(OURS, "seconds"), of(PEER, "seconds")
    peaks = {side: of(side, "peak_mb") for side in (OURS, PEER)}
    row: dict[str, Any] = {
        "dtype": dtype,
        OURS: ours,
        PEER: theirs,
        "ratio": theirs / ours if ours and theirs else None,
        "peak_mb": peaks,
    }
    for side, peak in peaks.items():
        words = "cannot load it here" if peak is None else f"{row[side]:.2f} s, {peak:,.0f} MB"
        print(f"  loading {dtype:<9} {side:<12} {words}" + (f"   ratio {row['ratio']:.2f}" if row["ratio"] else ""))
    return row


def loaded(side: str, place: Path, dtype: str) -> dict[str, float] | None:
    """What a process that loads the checkpoint says; None where transformers could not. LabError where we could not."""
    command = [sys.executable, "-c", LOADING, side, str(place), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if side == OURS:
        raise LabError(f"{place}: loading failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:300]}")
    return None
