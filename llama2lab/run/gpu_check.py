"""`python -m llama2lab.run.gpu_check`: all that needs a GPU, in under eight minutes, in one table.

    tests    those that are marked `gpu` (tests/test_gpu.py)
    speed    training and generation at SmolLM2-135M's size in bfloat16, beside transformers; the share of the ceiling;
             whether torch.compile pays; what training takes of the GPU's memory
    bench    `llama2lab bench` of the lab's own models: training and generation
    mini     the preset, as far as it comes in its time
    smollm2  data/recipes/smollm2.yaml, as far as it comes, where its checkpoint and data are

Each part is a process of its own with a time limit, so that none can hold up or bring down the others; what it had
measured by then counts. With --smoke all of it is tiny, for a machine without a GPU: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama2lab.engine.device import Machine, describe_machine, device_memory_gb, pick_device, this_machine
from llama2lab.engine.errors import LabError, first_line
from llama2lab.engine.paths import DATA, ROOT
from llama2lab.model.network import SIZES, Llama, ModelConfig

# HuggingFaceTB/SmolLM2-135M's shape
SMOLLM2 = ModelConfig(49152, 576, 30, 9, 3, 1536, max_seq_len=8192, rope_theta=1e5, tie_embeddings=True)
LIMITS = {"tests": 70, "speed": 110, "bench": 60, "mini": 120, "smollm2": 110}  # seconds, 470 in all
DONE, LATE, FAILED, SKIPPED = "done", "out of time", "failed", "skipped"


@dataclass
class Outcome:
    """What became of a part; `rows` are (what, figure in words)."""

    part: str
    ended: str
    seconds: float = 0.0
    why: str = ""
    rows: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """A command with a limit; `read` finds what it measured in its folder, whether or not it came to its end."""

    name: str
    words: Sequence[str]
    limit: float
    read: Callable[[Path, str], list[tuple[str, str]]]
    missing: str = ""  # why it cannot be done here
    wants: int | None = None  # the exit code that says what it wants and has not


def run_part(part: Part, folder: Path) -> Outcome:
    """Run the part's command, whose output is kept in FOLDER/log."""
    if part.missing:
        return Outcome(part.name, SKIPPED, why=part.missing)
    folder.mkdir(parents=True, exist_ok=True)
    begin, log = time.monotonic(), folder / "log"
    with open(log, "wb") as kept:
        child = subprocess.Popen(
            part.words, stdin=subprocess.DEVNULL, stdout=kept, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            child.wait(part.limit)
            ended = {0: DONE, part.wants: SKIPPED}.get(child.returncode, FAILED)
        except subprocess.TimeoutExpired:
            ended = LATE
        finally:
            if child.poll() is None:
                _end(child)
    said = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "no word"
    why = {FAILED: f"exit code {child.returncode}: {last}", SKIPPED: last}.get(ended, "")
    try:
        rows = part.read(folder, said)
    except (LabError, OSError, ValueError, KeyError) as e:
        rows = []
        why = why or (first_line(e) if ended == DONE else "")
        ended = FAILED if ended == DONE else ended
    return Outcome(part.name, ended, round(time.monotonic() - begin, 1), why, rows)


def _end(child: subprocess.Popen[bytes]) -> None:
    """The process and what it started, in peace and then without."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, sent)
            child.wait(5)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


# ---- the parts -------------------------------------------------------------------------------------------------------


def parts_of(smoke: bool, folder: Path, data: Path | None) -> list[Part]:
    """All parts, in their order."""
    python, device = [sys.executable, "-m"], pick_device()
    lab = [*python, "llama2lab"]
    tests, recipe = ROOT / "tests" / "test_gpu.py", DATA / "recipes" / "smollm2.yaml"
    no_tests = "" if tests.is_file() else f"{tests} is not there: a checkout has it"
    if not no_tests and importlib.util.find_spec("pytest") is None:
        no_tests = "pytest is not installed: pip install -e '.[dev]'"
    no_recipe = "left out of a smoke run" if smoke else "" if recipe.is_file() else f"{recipe} is not there"
    preset, out = ("smoke" if smoke else "mini"), str(folder / "mini" / "run")
    where = ["--device", str(device), "--precision", "fp32" if smoke else "auto"]
    given = ["--data", str(data)] if data else []
    real = str(folder / "smollm2" / "run")
    small = ["--smoke"] if smoke else []
    words = {
        "tests": [*python, "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", str(tests)],
        "speed": [*python, "llama2lab.run.gpu_check", "--only-speed", str(folder / "speed" / "rows.json"), *small],
        "bench": [*lab, "bench", "--json", str(folder / "bench" / "rows.json"), "--sections", "training,generation"],
        "mini": [*lab, "run", "--preset", preset, "--out", out, *where],
        "smollm2": [*lab, "run", "--recipe", str(recipe), "--out", real, *where, *given],
    }
    reads: dict[str, Callable[[Path, str], list[tuple[str, str]]]] = {
        "tests": _read_tests,
        "speed": _read_speed,
        "bench": _read_bench,
        "mini": _read_run,
        "smollm2": _read_run,
    }
    missing = {"tests": no_tests, "smollm2": no_recipe, "bench": "left out of a smoke run" if smoke else ""}
    wants = {"smollm2": 2}  # a checkpoint or data that are not here are one line and this code
    return [
        Part(name, words[name], LIMITS[name], reads[name], missing.get(name, ""), wants.get(name)) for name in LIMITS
    ]


def _read_tests(folder: Path, said: str) -> list[tuple[str, str]]:
    lines = [line for line in said.splitlines() if line.strip()]
    return [("pytest", lines[-1].strip("= "))] if lines else []


def _read_speed(folder: Path, said: str) -> list[tuple[str, str]]:
    rows = json.loads((folder / "rows.json").read_text())
    return [(what, words) for what, words in rows]


def _read_bench(folder: Path, said: str) -> list[tuple[str, str]]:
    whole = json.loads((folder / "rows.json").read_text())
    rows = [("training", row) for row in whole["training"]]
    rows += [(f"generation, {row['batch']} rows", row) for row in whole["generation"]]
    return [(f"{row['model']}: {what}", row_words(row)) for what, row in rows]


def _read_run(folder: Path, said: str) -> list[tuple[str, str]]:
    """How far a run came, finished or not."""
    from llama2lab.report.summary import find, load_run, total_seconds

    results = load_run(folder / "run")
    stages = results["stages"]
    whole = "finished" if not results.get("unfinished") else f"stopped after {list(stages)[-1]}"
    rows = [("stages", f"{len(stages)}, {whole}; {total_seconds(results):,.0f} seconds in them")]
    speed = stages.get("base", {}).get("metrics", {}).get("tokens_per_second")
    rows += [("pretraining, tokens a second", f"{speed:,.0f}")] if speed else []
    memory = [stage["device_memory_mb"] for stage in stages.values() if stage.get("device_memory_mb")]
    rows += [("most of the GPU's memory, MB", f"{max(memory):,.0f}")] if memory else []
    right = find(results, "rlhf-v5", "correct")
    return rows + ([("V5 right", f"{right['mean']:.3f}")] if right else [])


def row_words(row: dict[str, Any]) -> str:
    """A row of the benchmark in words."""
    parts = [f"{row['ours']:,.0f} tokens/s"]
    if row.get("transformers"):
        parts.append(f"transformers {row['transformers']:,.0f}, ratio {row['ratio']:.2f}")
    if "share" in row:
        parts.append(f"share of the ceiling {row['share']:.1%}")
    return "; ".join([*parts, row["precision"]])


# ---- speed -----------------------------------------------------------------------------------------------------------


def speed(machine: Machine, config: ModelConfig, keep: Callable[[str, str], None], smoke: bool = False) -> None:
    """Tell `keep` (what, figure in words) as it is measured."""
    import torch

    from llama2lab.run import bench
    from llama2lab.run.turns import offline

    repeats = 1 if smoke else 3
    with offline():
        ours, theirs = bench.pair(config, machine.device)
        count = sum(p.numel() for p in ours.parameters())
        keep("parameters", f"{count:,}")
        keep("training", row_words(bench.train_row(ours, theirs, machine, repeats)))
        if machine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(machine.device)
            train_seconds(ours, machine, 2)
            most = torch.cuda.max_memory_allocated(machine.device) / 1e9
            keep("memory of training", f"{most:.1f} of {device_memory_gb(machine.device):.1f} GB")
        for rows in (1, 4) if smoke else (1, 16, 64):
            found = bench.generate_row(ours, theirs, rows, machine, repeats)
            keep(f"generation, {rows} rows", row_words(found))
        if not smoke:
            keep("torch.compile", compile_words(ours, machine))


def train_seconds(ours: Llama, machine: Machine, steps: int, compiled: bool = False) -> float:
    """Of `steps` steps of a copy, after as many that do not count."""
    from llama2lab.run.bench import ROWS, SEQ, Work, training_of_ours
    from llama2lab.run.turns import seconds_of_loop

    train = training_of_ours(ours, machine, Work(ROWS, SEQ, steps), compiled)
    train()
    return seconds_of_loop(train, machine.device)


def compile_words(ours: Llama, machine: Machine) -> str:
    """Whether compiling pays; what torch says where it cannot."""
    plain = train_seconds(ours, machine, 5)
    try:
        ratio = plain / train_seconds(ours, machine, 5, compiled=True)
    except Exception as e:  # torch raises all kinds
        return f"does not compile: {type(e).__name__}: {first_line(e)}"
    return f"{ratio:.2f} times as fast: it {'pays' if ratio > 1.1 else 'does not pay'}"


def only_speed(path: Path, smoke: bool) -> None:
    """The part of the process for it: each row is kept as it comes."""
    rows: list[tuple[str, str]] = []

    def keep(what: str, words: str) -> None:
        rows.append((what, words))
        path.write_text(json.dumps(rows))
        print(f"{what}: {words}", flush=True)

    machine = this_machine(precision="fp32" if smoke else "auto")
    speed(machine, SIZES["nano"] if smoke else SMOLLM2, keep, smoke)


# ---- all of it -------------------------------------------------------------------------------------------------------


def table(outcomes: Sequence[Outcome]) -> str:
    """One table of what was measured."""
    rows = [("part", "ended", "seconds", "what", "")]
    for o in outcomes:
        shown = o.rows or [("", "")]
        if o.why:
            shown = [*o.rows, ("why", o.why)]
        for i, (what, words) in enumerate(shown):
            rows.append((o.part, o.ended, f"{o.seconds:.0f}", what, words) if i == 0 else ("", "", "", what, words))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in rows
    )


def check(smoke: bool, names: Sequence[str], data: Path | None, folder: Path) -> dict[str, Any]:
    """Run the parts; {"machine", "smoke", "seconds", "parts"}, which is plain JSON. LabError without a GPU, unless
    `smoke`, and for a part that there is not."""
    if unknown := [name for name in names if name not in LIMITS]:
        raise LabError(f"unknown part {unknown[0]}; choose of {','.join(LIMITS)}")
    if not smoke and pick_device().type != "cuda":
        raise LabError("there is no GPU here that torch can use; give --smoke to try the plumbing on this machine")
    begin, machine = time.monotonic(), describe_machine()
    outcomes = []
    for part in parts_of(smoke, folder, data):
        if part.name in names:
            print(f"{part.name} ... at most {part.limit:.0f} seconds", file=sys.stderr, flush=True)
            outcomes.append(run_part(part, folder / part.name))
    print(table(outcomes))
    parts = [asdict(o) for o in outcomes]
    return {"machine": machine, "smoke": smoke, "seconds": round(time.monotonic() - begin, 1), "parts": parts}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llama2lab.run.gpu_check", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--json", type=Path, help="write the table here too")
    parser.add_argument("--parts", default=",".join(LIMITS), help="only some, such as tests,speed")
    parser.add_argument("--data", type=Path, help="local copies of the recipe's data sets (or set LLAMA2LAB_DATA)")
    parser.add_argument("--smoke", action="store_true", help="tiny, without a GPU: figures mean nothing")
    parser.add_argument("--only-speed", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.only_speed:
        only_speed(given.only_speed, given.smoke)
        return 0
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            result = check(given.smoke, given.parts.split(","), given.data, Path(folder))
        if given.json:
            given.json.write_text(json.dumps(result, indent=1))
    except LabError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"error: {e.filename or given.json}: {e.strerror}; give another file", file=sys.stderr)
        return 2
    return 1 if any(part["ended"] == FAILED for part in result["parts"]) else 0


if __name__ == "__main__":
    sys.exit(main())
