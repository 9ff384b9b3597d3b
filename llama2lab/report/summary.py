"""What runs found: read, pooled, compared, and as tables on the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from llama2lab.engine import stats
from llama2lab.engine.answers import joined
from llama2lab.engine.errors import LabError
from llama2lab.engine.files import Number, read_json, read_rows, rows_file
from llama2lab.engine.stagefiles import read_marker, read_notes, read_record, stages_in_order, with_notes
from llama2lab.engine.validation import validated

Results = dict[str, Any]


# ---- what pages and pictures read of results.json beside its figures; all else may be anything -----------------------


class _Row(TypedDict, total=False):
    """One row of a curve."""

    step: Number | None
    k: Number | None
    text: str | None


class _Point(TypedDict):
    predicted: Number
    real: Number


class _Picks(TypedDict, total=False):
    """Best of K by one reward head."""

    truth: list[dict[str, Any]] | None


class _Metrics(TypedDict, total=False):
    samples: list[_Row] | None
    curve: list[_Row] | None
    log: list[dict[str, Number | None]] | None
    calibration: list[_Point] | None
    retention: dict[str, dict[str, Any]] | None
    accuracy_by_grade: dict[str, dict[str, Any]] | None
    correct_by_skill: dict[str, dict[str, Any]] | None
    true_score_by_iteration: list[dict[str, dict[str, Any]]] | None
    likelihood: _Picks | None
    linear: _Picks | None
    tokens: Number | None
    parameters: Number | None
    examples: Number | None


class _Curve(TypedDict, total=False):
    """Of a stage whose loss is drawn."""

    loss: list[_Row] | None


class _Stage(TypedDict, total=False):
    metrics: _Metrics
    seconds: Number | None
    peak_memory_mb: Number | None
    device_memory_mb: Number | None


class _Results(TypedDict):
    stages: dict[str, _Stage]
    machine: NotRequired[dict[str, Any] | None]


class _Figure(TypedDict):
    mean: Number | None
    low: Number | None
    high: Number | None
    n: Number


def load_run(run: Path) -> Results:
    """What RUN/results.json holds; of an unfinished run, what its finished stages say (`unfinished` is then true).

    LabError when the folder is no run, has no finished stage, or a file is damaged.
    """
    try:
        if not run.exists():
            raise LabError(f"{run} does not exist; make a run with: llama2lab run --out {run}")
    except OSError as e:  # no name that a folder can have
        raise LabError(f"{run}: {e.strerror or e}; give the folder of a run") from e
    if not run.is_dir():
        raise LabError(f"{run} is a file; give the folder of a run")
    marker = read_marker(run)
    if (run / "results.json").exists():
        path, cure = run / "results.json", "remove it and give the command of the run again"
        results = read_json(path)
        if not isinstance(results, dict) or not isinstance(results.get("stages"), dict):
            raise LabError(f"{path}: has no stages; {cure}")
        check_results(results, str(path), cure)
        return results
    names = stages_in_order(run)
    if not names:
        raise LabError(f"{run} has no finished stage yet; go on with: llama2lab run --out {run}")
    stages = {name: with_notes(read_record(run / name), read_notes(run / name).values()) for name in names}
    results = {**marker, "machine": {}, "stages": stages, "unfinished": True}
    check_results(results, str(run), "remove the stage's folder and give the command of the run again")
    return results


def check_results(results: Results, where: str, cure: str) -> None:
    """LabError if the results have not the shape that pages and pictures count on."""
    validated(_Results, results, where, cure)
    for name, stage in results["stages"].items():
        if name in ("base", "sft", "sft-noisy"):
            validated(_Curve, stage.get("metrics") or {}, f"{where}: stages.{name}.metrics", cure)
        for path, figure in figures_of(stage.get("metrics")):
            at = f"{where}: stages.{name}.{path}"
            checked = validated(_Figure, figure, at, cure)
            if len({checked[k] is None for k in ("mean", "low", "high")}) > 1:
                raise LabError(f"{at}: a figure with a mean or an interval alone; {cure}")


# ---- pooling -------------------------------------------------------------------------------------------------


def is_figure(value: Any) -> bool:
    """Whether this is a measured figure, {mean, low, high, n}."""
    return isinstance(value, dict) and {"mean", "low", "high", "n"} <= value.keys()


def is_number(value: Any) -> bool:
    """Whether a figure's mean is one; of nothing there is none."""
    return isinstance(value, int | float) and math.isfinite(value)


def pool(runs: Sequence[Results]) -> Results:
    """Several runs as one, of the same shape: figures by `stats.pool`, with each run's mean in `each`; numbers and
    curves by their mean; texts of the first run. A stage that one run lacks is pooled from the others."""
    return runs[0] if len(runs) == 1 else _pool(list(runs))


def _pool(values: list[Any]) -> Any:
    first = values[0]
    if is_figure(first):
        figures = [v for v in values if is_figure(v) and is_number(v["mean"])] or [first]
        if not is_number(figures[0]["mean"]):
            return first
        return {**stats.pool(figures), "each": [v["mean"] for v in figures]}
    if isinstance(first, dict):
        dicts = [v for v in values if isinstance(v, dict)]
        keys = dict.fromkeys(k for v in dicts for k in v)
        return {k: _pool([v[k] for v in dicts if k in v]) for k in keys}
    if isinstance(first, list) and first and all(isinstance(v, list) for v in values) and isinstance(first[0], dict):
        return [_pool(list(row)) for row in zip(*values, strict=False)]  # curves that end early end the mean curve
    if isinstance(first, bool) or not all(isinstance(v, int | float) for v in values):
        return first
    return sum(values) / len(values)


def metrics(results: Results, stage: str) -> dict[str, Any]:
    """The metrics of a stage, or nothing where the run has no such stage."""
    return results["stages"].get(stage, {}).get("metrics", {})


def find(results: Results, *path: str) -> dict[str, Any] | None:
    """The figure at (stage, metric, ...), or None where it is missing or empty."""
    value: Any = metrics(results, path[0])
    for key in path[1:]:
        value = value.get(key) if isinstance(value, dict) else None
    return value if is_figure(value) and value["n"] > 0 and is_number(value["mean"]) else None


def difference(a: dict[str, Any] | None, b: dict[str, Any] | None) -> dict[str, Any] | None:
    """a - b of two figures as if measured independently, which is careful where the prompts are the same."""
    if a is None or b is None:
        return None
    gap = a["mean"] - b["mean"]
    down = math.hypot(a["mean"] - a["low"], b["high"] - b["mean"])
    up = math.hypot(a["high"] - a["mean"], b["mean"] - b["low"])
    return {"mean": gap, "low": gap - down, "high": gap + up, "n": min(a["n"], b["n"])}


def paired_gap(runs: Sequence[Path], a: str, b: str, results: Results) -> dict[str, Any] | None:
    """True helpfulness of stage a less that of b on the same held-out prompts, prompt by prompt; from the means
    alone where neither answers nor their scores (of a seed that is shipped) are kept, or not of the same prompts."""
    figures = []
    for run in runs:
        sides = [helpful_scores(run / stage) for stage in (a, b)]
        pairs = []
        with suppress(LabError):
            pairs = joined(*sides) if all(sides) else []
        if not pairs:
            return difference(find(results, a, "helpfulness"), find(results, b, "helpfulness"))
        figures.append(stats.mean([one["score"] - other["score"] for one, other in pairs]))
    return stats.pool(figures)


class Scored(TypedDict):
    """A row of answers.jsonl or scores.jsonl, as far as it is compared."""

    kind: str
    score: Number
    prompt_id: NotRequired[str]


def helpful_scores(folder: Path) -> list[Any]:
    """The scored answers of a stage to helpful prompts; none where none are kept."""
    paths = (rows_file(folder / name) for name in ("answers.jsonl", "scores.jsonl"))
    path = next((p for p in paths if p.exists()), None)
    return [row for row in kept(Scored, path) if row["kind"] == "helpful"] if path else []


def kept(kind: Any, path: Path) -> list[Any]:
    """The rows that were kept beside a measurement, as `kind`; LabError if they are damaged."""
    cure = "remove it and notes.json beside it, then give the command of the run again"
    return validated(list[kind], read_rows(path, cure), str(path), cure)


# ---- names ------------------------------------------------------------------------------------------------------


def last_version(r: Results) -> int:
    """The round of the last reward models."""
    versions = [m[1] for name in r["stages"] if (m := re.fullmatch(r"reward-helpfulness-v(\d+)", name))]
    return max(map(int, versions), default=5)


def chat_stages(r: Results) -> list[str]:
    """The stages that were judged as chat models, in order."""
    return [name for name in r["stages"] if find(r, name, "helpfulness")]


def short_name(stage: str) -> str:
    """What figures call a stage: V5 for rlhf-v5."""
    names = {"sft": "SFT", "sft-noisy": "SFT, noisy", "gatt": "GAtt", "base": "base"}
    if stage.startswith("rlhf-v"):
        version, _, rest = stage.removeprefix("rlhf-").partition("-")
        suffix = {"": "", "random": ", random choice", "linear": ", report's head"}
        return version.upper() + suffix.get(rest, f", {rest}")
    return names.get(stage, stage)


# ---- tables on the terminal --------------------------------------------------------------------------------------


def figure_text(f: dict[str, Any] | None) -> str:
    """'0.81 [0.79, 0.83]', or the number alone where there is no interval."""
    if f is None or not is_number(f["mean"]):
        return "-"
    digits = 0 if abs(f["mean"]) >= 1000 else 1 if abs(f["mean"]) >= 10 else 3
    if f["low"] == f["high"] == f["mean"]:
        return f"{f['mean']:.{digits}f}"
    return f"{f['mean']:.{digits}f} [{f['low']:.{digits}f}, {f['high']:.{digits}f}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text; the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    cells = [[cell.rjust(w) for cell, w in zip(row, widths, strict=True)] for row in (header, *rows)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *others]) for row, (_, *others) in zip((header, *rows), cells, strict=True)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def is_town(results: Results) -> bool:
    """Whether the run was on the town, where the truth is known."""
    return find(results, "base", "known_facts") is not None or results.get("preset") in ("mini", "smoke")


def figures_of(metrics: Any, prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every measured figure in a stage's metrics, with its path."""
    if is_figure(metrics):
        return [(prefix, metrics)]
    if isinstance(metrics, dict):
        return [row for k, v in metrics.items() for row in figures_of(v, f"{prefix}.{k}" if prefix else str(k))]
    return []


def all_figures(results: Results) -> list[list[str]]:
    """Every measured figure of a run: stage, path, text, n."""
    return [
        [name, path, figure_text(f), f"{f['n']:.0f}"]
        for name, stage in results["stages"].items()
        for path, f in figures_of(stage.get("metrics"))
        if f["n"]
    ]


def total_seconds(results: Results) -> float:
    """Of all stages whose time is known."""
    return sum(stage.get("seconds") or 0.0 for stage in results["stages"].values())


def most_memory(results: Results) -> float | None:
    """MB that the stage which took the most held; None where no stage says."""
    return max((mb for stage in results["stages"].values() if (mb := stage.get("peak_memory_mb"))), default=None)


def warnings(results: Results) -> list[str]:
    """What stages found wrong with themselves, in words."""
    return [str(line) for stage in results["stages"] for line in metrics(results, stage).get("warnings") or []]


def stage_table(results: Results) -> str:
    """The stages of a run in a few columns: seconds, and the figures that say most."""
    columns = {
        "helpful": "helpfulness",
        "correct": "correct",
        "violations": "violation_rate",
        "refusals": "false_refusal_rate",
        "borderline": "borderline_refusal_rate",
        "wins": "win_rate_vs_sft",
        "reward acc.": "accuracy",
    }
    rows = []
    for name, stage in results["stages"].items():
        seconds, figures = stage.get("seconds"), [find(results, name, metric) for metric in columns.values()]
        shown = [f"{f['mean']:.3f}" if f else "" for f in figures]
        rows.append([name, "" if seconds is None else f"{seconds:.0f}", *shown])
    rows.append(["total", f"{total_seconds(results):.0f}", *[""] * len(columns)])
    warned = [f"\nWARNING: {line}" for line in warnings(results)]
    return "\n".join([table(["stage", "seconds", *columns], rows), *warned])
