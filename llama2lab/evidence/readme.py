"""The marked blocks of README.md, written from what is stored, and from nothing else; and both pages written anew.

A block stands between `<!-- evidence: NAME -->` and `<!-- /evidence -->`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import write_atomic
from llama2lab.evidence.claims import CLAIMS
from llama2lab.evidence.page import (
    RESULTS,
    counted,
    figure_words,
    lines,
    machine_words,
    many_seeds,
    marks_met,
    number,
    of_stage,
    results_page,
    seed_of,
    table,
)
from llama2lab.evidence.stored import Stored, read_stored
from llama2lab.lab.run_all import in_all
from llama2lab.report.promises import made_alone
from llama2lab.report.summary import find, is_number, total_seconds

README = Path("README.md")


def write_pages(root: Path) -> list[Path]:
    """Write docs/results.md and the README's blocks of a checkout anew; the files that are others now. LabError if
    nothing is stored, or the README has not the blocks."""
    s = read_stored(root / "data")
    readme = root / README
    texts = {
        root / RESULTS: results_page(s),
        readme: with_blocks(readme.read_text(encoding="utf-8"), readme_blocks(s), str(readme)),
    }
    changed = [path for path, text in texts.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_atomic(path, texts[path])
    return changed


# The recipe's table: stages, report, code, what changes; the seconds are those of all stages that match.
STAGES = (
    (r"tokenizer", "`tokenizer`", "2.2", "`model/tokenizer.py`", "text becomes bytes and merges; digits stand alone"),
    (
        r"base",
        "`base`",
        "2.2, 2.3",
        "`model/network.py`, `stages/pretrain.py`",
        "learns the town's facts and language",
    ),
    (
        r"sft.*",
        "`sft`, `sft-noisy`",
        "3.1",
        "`model/chat.py`, `stages/sft.py`",
        "answers questions; few clean examples against many noisy ones",
    ),
    (
        r"preferences.*",
        "`preferences-v1` ... `v5`",
        "3.2.1",
        "`stages/preferences.py`, `town/annotators.py`",
        "two answers, a choice, four grades, a safety bin",
    ),
    (
        r"reward.*",
        "`reward-helpfulness-v1` ... , `reward-safety-v1` ...",
        "3.2.2",
        "`stages/reward.py`",
        "two models learn what people prefer, and what is safe",
    ),
    (
        r"samples.*|rlhf-v[1-4].*",
        "`samples-v1`, `rlhf-v1` ... `v4`",
        "3.2.3",
        "`stages/gate.py`, `stages/rejection.py`, `stages/rounds.py`",
        "K answers a prompt, the best are learnt",
    ),
    (r"gatt", "`gatt`", "3.3", "`stages/gatt.py`", "an instruction is held over twenty turns"),
    (
        r"rlhf-v5.*",
        "`rlhf-v5`",
        "3.2.3",
        "`stages/gate.py`, `stages/ppo.py`",
        "the policy climbs the reward, held by the KL",
    ),
)
JUDGED = (
    "all of them",
    "3.4, 4.4",
    "`stages/evaluate.py`, `town/oracle.py`",
    "in each",
    "judged by the oracle on prompts that no stage has seen",
)


def readme_blocks(s: Stored) -> dict[str, str]:
    """The README's marked blocks by their names."""
    return {
        "minutes": start_block(s),
        "seconds": seconds_block(s),
        "stages": stages_block(s),
        "v5": v5_block(s),
        "marks": marks_block(s),
    }


def minutes_of(s: Stored) -> list[float]:
    """Of the runs that were made alone."""
    return [total_seconds(one) / 60 for run, one in zip(s.seeds, s.each, strict=True) if made_alone(run, one)]


def start_block(s: Stored) -> str:
    times_ = minutes_of(s)
    cores = (s.each[0].get("machine") or {}).get("cores")
    long = f", {number(max(times_))} minutes on {cores} cores" if times_ and isinstance(cores, int) else ""
    return "\n".join(
        (
            "```",
            "make lab     # set up what is missing and open JupyterLab at notebook 00: talk to the finished model, "
            "then build it",
            f'make run     # train the whole recipe yourself: preset "mini", no GPU{long}',
            "```",
        )
    )


def seconds_block(s: Stored) -> str:
    """How long the notebooks take, and where that was measured."""
    machines = [{**times.machine, "gflops": {}} for times in s.notebooks.values()]
    return lines(in_all(s.notebooks) + (f" Measured on {machine_words(*machines)}." if machines else ""))


def stages_block(s: Stored) -> str:
    first, run = s.each[0], s.seeds[0]
    rows = []
    for pattern, name, section, code, change in STAGES:
        seconds = sum(stage.get("seconds") or 0 for n, stage in first["stages"].items() if re.fullmatch(pattern, n))
        rows.append([name, section, code, f"{seconds:,.0f}", change])
    rows.append([*JUDGED])
    base = (first["stages"].get("base") or {}).get("metrics", {}).get("tokens_per_second")
    speed = f", pretraining at {base:,.0f} tokens a second" if is_number(base) else ""
    said = (
        f"Seconds of seed {seed_of(run, first)} in `data/seeds`, with measuring, on "
        f"{machine_words({**(first.get('machine') or {}), 'gflops': {}})}: {total_seconds(first):,.0f} in all{speed}."
    )
    return table(("stage", "the report", "code", "seconds", "what changes"), rows) + "\n\n" + lines(said)


V5_FIGURES = (
    ("right answers", "rlhf-v5", "correct"),
    ("broken sentences", "rlhf-v5", "broken_rate"),
    ("violations on unsafe prompts", "rlhf-v5", "violation_rate"),
    ("refusals of harmless prompts", "rlhf-v5", "false_refusal_rate"),
    ("refusals of prompts that only look unsafe", "rlhf-v5", "borderline_refusal_rate"),
    ("wins against SFT, ties half", "rlhf-v5", "win_rate_vs_sft"),
    ("Ghost Attention: instruction kept at turn 20", "gatt", "retention", "20"),
)


def v5_block(s: Stored) -> str:
    """V5 in a table: the mean with its interval over seeds, and each seed."""
    rows = []
    for words, *path in V5_FIGURES:
        if figure := find(s.pooled, *path):
            each = [of_stage(one, *path) for one in s.each]
            rows.append([words, figure_words(figure), number(figure["n"]), ", ".join(each)])
    header = (f"V5 over {many_seeds(s)}", "mean [95 %]", "n", "each")
    return table(header, rows)


def marks_block(s: Stored) -> str:
    before = "" if s.of_todays_preset else " of the preset as it was before"
    return lines(
        f"**{marks_met(s)} marks are met** over {many_seeds(s)}{before}; of the {len(CLAIMS)} claims: "
        f"{counted(s)}. All of it, with intervals, and what it would take to decide the rest: "
        "[results](docs/results.md)."
    )


BLOCK = re.compile(r"(<!-- evidence: (\w+) -->\n).*?(<!-- /evidence -->)", re.DOTALL)


def with_blocks(text: str, blocks: Mapping[str, str], where: str) -> str:
    """The text with its marked blocks written anew; LabError unless it has each of them once."""
    there = [m[2] for m in BLOCK.finditer(text)]
    if sorted(there) != sorted(blocks):
        wanted = ", ".join(sorted(blocks))
        raise LabError(
            f"{where}: wants each of these blocks once: {wanted}; mark them with <!-- evidence: NAME --> and "
            "<!-- /evidence -->"
        )
    return BLOCK.sub(lambda m: f"{m[1]}{blocks[m[2]]}\n{m[3]}", text)
