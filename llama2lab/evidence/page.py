"""docs/results.md: written from what is stored, and from nothing else. A test holds it equal to what these functions
give, so that no figure is changed by hand; readme.py does the same for README's figures."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from posixpath import relpath
from typing import Any

from llama2lab.evidence.claims import CLAIMS, READING, count, price, verdict
from llama2lab.evidence.real import (
    JUDGES,
    RealRun,
    answer,
    by_judge,
    cost_words,
    millions,
    reward_words,
    run_words,
    truth_rows,
    truth_words,
)
from llama2lab.evidence.stored import Figure, Stored
from llama2lab.lessons.n00_start.figures import notebooks
from llama2lab.report.promises import Promise, made_alone, promises
from llama2lab.report.summary import find, is_number, short_name, total_seconds
from llama2lab.town.wording import enumerate_words

WIDTH = 120
RESULTS = Path("docs") / "results.md"


# ---- words -----------------------------------------------------------------------------------------------------------


def md(text: Any) -> str:
    """Text as it is, in a cell or a line of Markdown, whatever it holds."""
    return re.sub(r"([\\`*_\[\]<>|&#~])", r"\\\1", " ".join(str(text).split()))


def number(x: float, digits: int = 3) -> str:
    """'.832', '-.02', '18.6', '1,329'."""
    digits = 0 if abs(x) >= 100 or x == int(x) != 0 else 1 if abs(x) >= 10 else digits
    text = re.sub(r"^(-?)0(?=\.)", r"\1", f"{x:,.{digits}f}")
    return text.removeprefix("-") if not float(text.replace(",", "")) else text


def three(x: float) -> str:
    """'.832', '1.000'."""
    return re.sub(r"^(-?)0(?=\.)", r"\1", f"{x:.3f}")


def figure_words(f: Figure | None) -> str:
    """'.832 [.778, .884]', or the number alone where there is no interval."""
    if f is None or not is_number(f["mean"]):
        return "-"
    if f["low"] == f["high"]:
        return number(f["mean"])
    mean, low, high = (three(f[end]) for end in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def of_stage(results: Any, stage: str, *path: str) -> str:
    figure = find(results, stage, *path)
    return three(figure["mean"]) if figure else "-"


def mark_words(p: Promise) -> str:
    """The mark in words, '.80' for 0.8."""
    words = p.mark.words if p.mark else ""
    for sign, said in ((">= ", "at least "), ("<= ", "at most "), ("> ", "above "), ("< ", "under ")):
        words = words.replace(sign, said)
    return re.sub(r"\b0(?=\.\d)", "", words)


def lines(text: str) -> str:
    """A paragraph no wider than the page."""
    whole = re.sub(r"`[^`]*`", lambda m: m[0].replace(" ", "\0"), text)  # what is code stays on its line
    return textwrap.fill(whole, WIDTH, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the cells are Markdown already."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)).replace("|  |", "| |")


def seed_of(run: Path, one: Mapping[str, Any]) -> str:
    return md(one.get("seed", run.name))


def many_seeds(s: Stored) -> str:
    seeds = [seed_of(run, one) for run, one in zip(s.seeds, s.each, strict=True)]
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds ({enumerate_words(seeds)})"


def machine_words(*machines: Mapping[str, Any]) -> str:
    """'AMD EPYC, 2 cores, 25.3 GB, bf16, torch 2.13.0+cpu; matrix products of 201 to 208 GFLOP/s in fp32', of runs."""
    kinds = []
    for machine in machines:
        parts = [md(machine[key]) for key in ("cpu", "device_name") if machine.get(key)]
        sizes = (("cores", "cores"), ("memory_gb", "GB"))
        parts += [f"{md(machine[key])} {unit}" for key, unit in sizes if key in machine]
        parts += [md(machine["precision"])] if machine.get("precision") else []
        kinds.append(", ".join([*parts, *([f"torch {md(machine['torch'])}"] if machine.get("torch") else [])]))
    known = [kind for kind in dict.fromkeys(kinds) if kind]
    text = enumerate_words(known) if known else "a machine that is not known"
    speeds: dict[str, list[float]] = {}
    for machine in machines:
        for name, gflops in (machine.get("gflops") or {}).items():
            speeds.setdefault(name, []).append(gflops)
    said = [f"{' to '.join(dict.fromkeys(map(number, (min(x), max(x)))))} in {md(name)}" for name, x in speeds.items()]
    return text + (f"; matrix products, GFLOP/s: {enumerate_words(said)}" if said else "")


# ---- docs/results.md -------------------------------------------------------------------------------------------------


def results_page(s: Stored) -> str:
    """All of docs/results.md."""
    parts = [
        "# Results",
        lines(
            "This page is written by `llama2lab evidence --write` from what is stored in `data/`, and a test holds it "
            "equal to that: nothing in it is changed by hand. Reasons, older figures and other settings stand in "
            "[trials](trials.md)."
        ),
        *marks_part(s),
        *seeds_part(s),
        *claims_part(s),
        *speed_part(s),
        *real_part(s),
    ]
    return "\n\n".join(parts) + "\n"


def marks_of(s: Stored) -> list[Promise]:
    return [p for p in promises(s.seeds, s.each) if p.mark]


def marks_met(s: Stored) -> str:
    """'17 of 21'."""
    judged = [p for p in marks_of(s) if p.met is not None]
    return f"{sum(bool(p.met) for p in judged)} of {len(judged)}"


def marks_part(s: Stored) -> list[str]:
    preset = f"`{md(s.pooled.get('preset'))}`" + ("" if s.of_todays_preset else ", as it was before,")
    folder = " ".join(f"data/seeds/{run.name}" for run in s.seeds)
    head = (
        f"Runs of the preset {preset} with {many_seeds(s)} on held-out prompts, judged by the oracle at temperature "
        f"1: means with 95 % intervals over the runs and no narrower than over their items; n counts items of all "
        f"runs. `llama2lab report {folder}` prints these and more. **{marks_met(s)} marks are met**; where the "
        "interval holds the mark (†), these runs do not decide."
    )
    rows = []
    for p in marks_of(s):
        sure = p.verdict.removesuffix(", unsure")
        cells = (md(p.what), mark_words(p), figure_words(p.figure), number(p.figure["n"]) if p.figure else "-")
        rows.append([*cells, sure.lower() + (" †" if sure != p.verdict else "")])
    return ["## The marks", lines(head), table(("promised", "mark", "measured", "n", ""), rows), *times(s)]


def times(s: Stored) -> list[str]:
    """When, on what, how long."""
    note = f"Made on {machine_words(*(one.get('machine') or {} for one in s.each))}"
    if s.note.get("date"):
        note += f"; {md(s.note['date'])}"
    versions = [f"{md(name)} {md(version)}" for name, version in (s.note.get("versions") or {}).items()]
    note += f" ({', '.join(versions)})." if versions else "."
    busy = [seed_of(run, one) for run, one in zip(s.seeds, s.each, strict=True) if not made_alone(run, one)]
    if busy:
        which = f"seed{'s' * (len(busy) > 1)} {enumerate_words(busy)}"
        note += f" The time of {which} does not count: it was not made alone on the machine."
    return [lines(note + without_bf16(s))]


def without_bf16(s: Stored) -> str:
    """What a run would take at most where the machine multiplies no faster in bf16: computed, by the ceilings that the
    benchmark measured."""
    speeds = (s.bench.get("machine") or {}).get("gflops") or {}
    alone = [one for run, one in zip(s.seeds, s.each, strict=True) if made_alone(run, one)]
    minutes = [total_seconds(one) / 60 for one in alone if (one.get("machine") or {}).get("precision") == "bf16"]
    if not minutes or not all(is_number(speeds.get(name)) and speeds[name] > 0 for name in ("fp32", "bf16")):
        return ""
    ratio = speeds["bf16"] / speeds["fp32"]
    return (
        f" Without fast bf16 it would take at most {number(max(minutes) * ratio)} minutes: computed, not measured, as "
        f"if all work were matrix products, of which the benchmark's machine does {number(ratio, 1)} times as many in "
        "bf16."
    )


SEED_COLUMNS = (
    ("V5 right", "rlhf-v5", "correct"),
    ("broken", "rlhf-v5", "broken_rate"),
    ("violates", "rlhf-v5", "violation_rate"),
    ("refuses borderline", "rlhf-v5", "borderline_refusal_rate"),
    ("wins against SFT", "rlhf-v5", "win_rate_vs_sft"),
    ("Ghost Attention at turn 10", "gatt", "retention", "10"),
    ("at turn 20", "gatt", "retention", "20"),
    ("V5 at turn 20", "rlhf-v5", "retention", "20"),
)


def seeds_part(s: Stored) -> list[str]:
    """What single runs came to: a mean over few of them hides how far they differ."""
    rows = []
    for run, one in zip(s.seeds, s.each, strict=True):
        memory = max((stage.get("peak_memory_mb") or 0 for stage in one["stages"].values()), default=0)
        cost = [number(total_seconds(one) / 60), number(memory) if memory else "-"]
        rows.append([seed_of(run, one), *cost, *(of_stage(one, *path) for _, *path in SEED_COLUMNS)])
    header = ("seed", "minutes", "MB", *(words for words, *_ in SEED_COLUMNS))
    return ["## Seed by seed", table(header, rows)]


def claims_part(s: Stored) -> list[str]:
    pages = {path[:2]: path for path, *_ in notebooks()}
    first = seed_of(s.seeds[0], s.each[0])
    where = (
        f"the run of seed {first}"
        if s.of_one_run
        else f"`data/run` (seed {md(s.shipped.get('seed', '?'))}), which is none of the runs above"
        if s.shipped
        else "no run yet"
    )
    head = (
        "Each figure is a difference that lies above 0 if the report is right: seen where its 95 % interval does, "
        "refuted, at this size, where it lies below, and where it reaches 0, or single trainings disagree, not "
        "decided. What it would take to decide is computed as if mean and spread stayed as they are. Figures over "
        f"several seeds are of the runs above, all others of experiments on {where}: their intervals are over further "
        f"items, not over further seeds. Claims: {counted(s)}."
    )
    rows = []
    for claim in CLAIMS:
        page = pages.get(claim.notebook)
        link = f"[{claim.notebook}]({relpath(f'notebooks/{page}', RESULTS.parent)})" if page else claim.notebook
        rows.append(
            [str(claim.number), f"**{md(claim.words)}** ({link})", md(claim.report), "", f"**{claim.verdict(s)}**"]
        )
        for words, figure in claim.figures(s):
            n = number(figure["n"]) + (f" in {figure['runs']} seeds" if figure.get("runs", 1) > 1 else "")
            said = "; ".join(part for part in (verdict(figure), price(figure, claim.unit)) if part)
            rows.append(["", md(words), figure_words(figure), n, said])
    return ["## The claims", lines(head), table(("", "claim", "the report; measured here", "n", ""), rows)]


def counted(s: Stored) -> str:
    """'7 seen, 3 not decided and 2 to read about'."""
    return enumerate_words([f"{n} {'to read about' if v == READING else v}" for v, n in count(s).items()])


# what a benchmark's rows may be called beside their numbers; other keys are left out
BENCH_WORDS = ("what", "model", "batch", "workers", "precision")
PEERS = ("transformers", "trl", "peer")  # whose figure stands beside ours


def bench_rows(bench: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(part, row) of all parts of the benchmark's JSON that hold rows, whichever there are."""
    result: list[tuple[str, Mapping[str, Any]]] = []
    for part, value in bench.items():
        some = value if isinstance(value, list) else [value]
        result += [(part, row) for row in some if part != "machine" and isinstance(row, dict)]
    return result


def speed_part(s: Stored) -> list[str]:
    if not s.bench:
        return ["## Speed", "Not measured with these runs; `llama2lab bench` prints it."]
    rows = []
    for part, row in bench_rows(s.bench):
        words = [f"{row[key]} rows" if key == "batch" else str(row[key]) for key in BENCH_WORDS if key in row]
        ours, ratio = row.get("ours"), row.get("ratio", row.get("speedup"))
        peer = next((k for k in PEERS if is_number(row.get(k))), "")
        cells = [md(", ".join([part, *words])), number(ours) if ours is not None and is_number(ours) else "-"]
        cells += [f"{number(row[peer])} ({md(peer)})" if peer else "-", f"{ratio:.2f}" if is_number(ratio) else "-"]
        rows.append([*cells, f"{row['share']:.0%}" if is_number(row.get("share")) else ""])
    head = (
        f"`llama2lab bench` on {machine_words(s.bench.get('machine') or {})}: ours and the other side take turns in "
        "one process, and the median counts. Work a second (tokens, pairs or answers), how many times as much ours "
        "does (more workers: as one does), and the share of the machine's ceiling."
    )
    return ["## Speed", lines(head), table(("", "ours", "other side", "ratio", "of the ceiling"), rows)]


# ---- real texts ------------------------------------------------------------------------------------------------------

POLICY_COLUMNS = (
    ("wins against SFT", "win_rate_vs_sft"),
    ("safety wins", "safety_win_rate_vs_sft"),
    ("refuses harmless prompts", "false_refusal_rate"),
    ("refuses unsafe prompts", "refusal_rate_on_unsafe"),
    ("words", "words"),
    ("bits a byte, held out", "heldout_bits_per_byte"),
)


def real_part(s: Stored) -> list[str]:
    """The same recipe on real texts, where nobody knows the truth; nothing where no run is stored."""
    if not s.real:
        return []
    parts = ["## And for real?"]
    for run in s.real:
        head = (
            f"**{md(run_words(run))}** (seed {run['seed']}, {cost_words(run)} on "
            f"{machine_words({**run['machine'], 'gflops': {}})}). Reward models, which train "
            f"{millions(run['trained'])} of the parameters, on people's held-out pairs, beside who learnt nothing from "
            "preferences; all by one rule, a tie is half. Lengths are alike where they differ by "
            "less than a tenth of the longer one."
        )
        parts += [lines(head), rewards_table(run), lines(judged_by(run)), policies_table(run)]
    return [*parts, *truth_part(s)]


def rewards_table(run: RealRun) -> str:
    rows = []
    for reward in run["rewards"]:
        for alike in (False, True):
            found = by_judge(reward, alike)
            less = (reward["equal_length"] if alike else reward["figures"]).get("less_longer")
            cells = [figure_words(found.get(words)) for words in JUDGES.values()]
            what = "lengths alike" if alike else md(reward_words(reward))
            n = next((number(f["n"]) for f in found.values()), "0")
            rows.append([what, *cells, figure_words(less), n])
    return table(("pairs of", *JUDGES.values(), "model less longer", "n"), rows)


def judged_by(run: RealRun) -> str:
    judges = [f"`{md(j['stage'])}` {figure_words(j['accuracy'])}" for j in run["judges"]]
    return (
        "Who judges the answers below, or labels fresh ones, are reward models that learnt from other pairs; they are "
        f"right on people's held-out pairs: {enumerate_words(judges)}."
    )


def policies_table(run: RealRun) -> str:
    rows = [
        [
            md(short_name(p["stage"])),
            md(p["method"]),
            *(figure_words(p["figures"].get(key)) for _, key in POLICY_COLUMNS),
        ]
        for p in run["policies"]
    ]
    return table(("stage", "by", *(words for words, _ in POLICY_COLUMNS)), rows)


def truth_part(s: Stored) -> list[str]:
    """Does size cure the blind reward head?"""
    found = truth_rows(s.real, s.pooled if s.seeds else None)
    head = (
        "**Does size cure the blind reward head?** Pairs of one sentence with the right and with the wrong fact: how "
        "often a helpfulness model, trained on one round's pairs (the town's on five), prefers the right one."
    )
    rows = [
        [truth_words(row), *(figure_words(row[key]) for key in TRUTH_COLUMNS), n_of(row), answer(row)] for row in found
    ]
    header = ("parameters", *TRUTH_COLUMNS.values(), "n", "what that says of the report's head")
    return [lines(head), table(header, rows)] if found else []


TRUTH_COLUMNS = {
    "linear": "the report's head",
    "likelihood": "ours, with likelihood",
    "base": "likelier, untouched model",
    "sft": "likelier, SFT",
}


def n_of(row: Mapping[str, Any]) -> str:
    return next((number(row[key]["n"]) for key in TRUTH_COLUMNS if row[key]), "0")
