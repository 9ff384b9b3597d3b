"""The sections "And for real?" of notebooks 06 and 11: what is stored of runs on real text, drawn and in tables. Where
nothing is stored, they say so, and how to make it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from llama2lab.engine.errors import LabError
from llama2lab.engine.paths import DATA
from llama2lab.evidence.real import (
    COMMAND,
    JUDGES,
    RealRun,
    Reward,
    answer,
    by_judge,
    cost_words,
    millions,
    read_real,
    reward_words,
    run_words,
    truth_rows,
    truth_words,
)
from llama2lab.evidence.stored import read_stored
from llama2lab.lab.shown import Table, show
from llama2lab.report.summary import Results, figure_text, short_name

NOTHING = Table(("no run on real text is stored here",), [[f"make one (docs/your_own_data.md), then: {COMMAND}"]])
HEADS = {"linear": "the report's head", "likelihood": "ours, with likelihood"}
KNOWN = {"base": "likelier, untouched model", "sft": "likelier, SFT"}


def reward_name(reward: Reward) -> str:
    """'helpfulness, linear', as short as a row of a plot is."""
    version = reward["stage"].split("-v")[1].split("-")[0]
    return f"{reward['kind']}{'' if version == '1' else f' {version}'}, {reward['head']}"


def rewards_drawn(runs: Sequence[RealRun] | None = None, like_lengths: bool = False) -> go.Figure | Table | None:
    """The reward models of the largest model's run on people's held-out pairs, and who learnt nothing from preferences:
    on all pairs, or on those of like lengths."""
    runs = read_real() if runs is None else runs
    if not runs:
        return NOTHING
    found = {reward_name(reward): by_judge(reward, like_lengths) for reward in runs[-1]["rewards"]}
    series = {words: {r: by[words] for r, by in found.items() if words in by} for words in JUDGES.values()}
    which = "held-out pairs of like lengths" if like_lengths else "held-out pairs"
    return show({words: by for words, by in series.items() if by}, "model", f"right on {which}", chance=0.5)


def rewards_table(runs: Sequence[RealRun] | None = None) -> Table:
    """The reward models of all runs less the longer answer, pair by pair."""
    runs = read_real() if runs is None else runs
    rows = []
    for run in runs:
        for reward in run["rewards"]:
            figures, alike = reward["figures"], reward["equal_length"]
            cells = [figures.get("accuracy"), figures.get("less_longer"), alike.get("model"), alike.get("less_longer")]
            pairs = [f"{f['n']:.0f}" if f else "0" for f in (cells[0], cells[2])]
            said = [figure_text(f) for f in cells]
            rows.append([run["recipe"], reward_words(reward), *said[:2], pairs[0], *said[2:], pairs[1]])
    header = ("run", "reward model", "right [95 %]", "less the longer answer", "pairs", "right, lengths alike")
    return Table((*header, "less the longer answer", "pairs"), rows) if rows else NOTHING


def _told(runs: Sequence[RealRun] | None) -> list[dict[str, Any]]:
    runs = read_real() if runs is None else runs
    town: Results | None = None
    try:
        town = read_stored(DATA).pooled
    except LabError:  # a wheel brings no seeds
        town = None
    return truth_rows(runs, town)


def truth_drawn(runs: Sequence[RealRun] | None = None) -> go.Figure | Table | None:
    """How often a reward model prefers the right fact, by the size of the model and its head."""
    rows = _told(runs)
    if not rows:
        return NOTHING
    pairs = [row["facts"] + " facts" if row["pairs"] is None else f"{row['pairs']:,} pairs" for row in rows]
    places = [f"{millions(row['parameters'])}, {of}" for row, of in zip(rows, pairs, strict=True)]
    series = {
        words: {place: row[key] for place, row in zip(places, rows, strict=True) if row[key]}
        for key, words in (HEADS | KNOWN).items()
    }
    return show({words: by for words, by in series.items() if by}, "parameters", "right fact preferred", chance=0.5)


def truth_table(runs: Sequence[RealRun] | None = None) -> Table:
    """The same in figures, with what they say of the report's head."""
    rows = [[truth_words(row), *(figure_text(row[key]) for key in HEADS | KNOWN), answer(row)] for row in _told(runs)]
    header = ("parameters", *(HEADS | KNOWN).values(), "what that says of the report's head")
    return Table(header, rows) if rows else NOTHING


def policies_drawn(runs: Sequence[RealRun] | None = None) -> go.Figure | Table | None:
    """Win rates of the largest model's policies against SFT, by reward models that trained none of them."""
    runs = read_real() if runs is None else runs
    if not runs:
        return NOTHING
    of = {"helpful prompts": "win_rate_vs_sft", "safety prompts": "safety_win_rate_vs_sft"}
    series = {
        words: {
            f"{short_name(p['stage'])}, {p['method']}": p["figures"][key]
            for p in runs[-1]["policies"]
            if p["stage"] != "sft" and key in p["figures"]
        }
        for words, key in of.items()
    }
    return show(series, "policy", "win rate against SFT, ties half", chance=0.5)


def judges_table(runs: Sequence[RealRun] | None = None) -> Table:
    """How far those who judge can be trusted: their accuracy on people's held-out pairs."""
    runs = read_real() if runs is None else runs
    rows = [
        [run["recipe"], judge["stage"], figure_text(judge["accuracy"]), f"{judge['accuracy']['n']:.0f}"]
        for run in runs
        for judge in run["judges"]
    ]
    return Table(("run", "judge", "right on people's pairs [95 %]", "pairs"), rows) if rows else NOTHING


def samples_table(runs: Sequence[RealRun] | None = None) -> Table:
    """What the largest model's stages answer to questions of our own, as they said it: one sample each, none chosen."""
    runs = read_real() if runs is None else runs
    if not runs:
        return NOTHING
    stages = [p["stage"] for p in runs[-1]["policies"]]
    rows = [[s["prompt"], *(s["answers"].get(name, "-") for name in stages)] for s in runs[-1]["samples"]]
    return Table(("question", *map(short_name, stages)), rows)


def minutes_table(runs: Sequence[RealRun] | None = None) -> Table:
    """Which runs these are, on what they were made and how long that took."""
    runs = read_real() if runs is None else runs
    told = []
    for run in runs:
        parts = [run["machine"].get(key) for key in ("device_name", "cpu")]
        on = next((str(part) for part in parts if part), "a machine that is not known")
        told.append(f"{run_words(run)}: {cost_words(run)} on {on}")
    return Table(("run",), [[line] for line in told]) if told else NOTHING


# ---- as the notebooks show them --------------------------------------------------------------------------------------


def rewards_shown(runs: Sequence[RealRun] | None = None) -> list[Any]:
    """Of notebook 06: reward models on people's pairs; one line where no run is stored."""
    runs = read_real() if runs is None else runs
    if not runs:
        return [NOTHING]
    return [minutes_table(runs), rewards_table(runs), rewards_drawn(runs), rewards_drawn(runs, like_lengths=True)]


def truth_shown(runs: Sequence[RealRun] | None = None) -> list[Any]:
    """Of notebook 06: whether size cures the blind head; the town's part is always stored in a checkout."""
    return [truth_table(runs), truth_drawn(runs)]


def policies_shown(runs: Sequence[RealRun] | None = None) -> list[Any]:
    """Of notebook 11: policies, who judged them, and what they say; one line where no run is stored."""
    runs = read_real() if runs is None else runs
    return [judges_table(runs), policies_drawn(runs), samples_table(runs)] if runs else [NOTHING]
