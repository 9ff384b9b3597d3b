"""How long Run All of each notebook takes: what was measured and stored, and the words for it in the heads of the
notebooks, in notebook 00's table and in the README. `python -m llama2lab.cli.notebooks time --write` measures it and
writes all of them anew; nobody types a figure.

Words are rounded to STEP seconds, and never less than that. Stored beside the other evidence of a checkout; a wheel has
neither notebooks nor this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama2lab.engine.errors import LabError
from llama2lab.engine.files import Number, read_as
from llama2lab.engine.paths import ROOT

FILE = "notebook_seconds.json"
STORED = ROOT / "data" / FILE
CORES = 2  # what the words are about
LIMITS = {"bf16": 60, "fp32": 150}  # by the machine's precision, most seconds of a first Run All
STEP = 5  # seconds; what differs less is the same time
FACTOR = 2.0  # what is measured may differ so much from what is stored
CEILINGS = 1.5  # machines of one kind differ no more than so in the speed of matrix products
COMMAND = "python -m llama2lab.cli.notebooks time --write"
CURE = f"remove it and measure anew: {COMMAND}"
KINDS = {"bf16": "with fast bfloat16", "fp32": "without fast bfloat16"}
NOT_MEASURED = "a time that is not measured yet"


@dataclass(frozen=True)
class Times:
    """Seconds of the notebooks on one machine, by name: the kernel's start and all cells.

    `first`: as shipped, one notebook at a time, nothing measured before. `again`: the same once more. `solved`: as
    `.ci/run` executes them, with all solutions, two notebooks at once, on one store of measurements.
    """

    machine: dict[str, Any]  # of `engine.device.describe_machine`
    date: str
    first: dict[str, Number]
    again: dict[str, Number]
    solved: dict[str, Number]


Stored = Mapping[str, Times]  # by the machine's precision


def read_times(path: Path = STORED) -> dict[str, Times]:
    """What is stored; nothing where there is no file. LabError if it is damaged."""
    found = read_as(dict[str, Times], path, CURE) if path.is_file() else {}
    if unknown := found.keys() - LIMITS.keys():
        raise LabError(f"{path}: {min(unknown)!r} is no precision of {', '.join(LIMITS)}; {CURE}")
    return {kind: found[kind] for kind in LIMITS if kind in found}


def as_json(stored: Stored) -> dict[str, Any]:
    """What `read_times` reads, seconds to a tenth."""

    def plain(times: Times) -> dict[str, Any]:
        parts = {name: getattr(times, name) for name in ("first", "again", "solved")}
        return asdict(times) | {
            name: {k: round(float(v), 1) for k, v in sorted(part.items())} for name, part in parts.items()
        }

    return {kind: plain(times) for kind, times in stored.items()}


# ---- in words ----------------------------------------------------------------------------------------------------


def rounded(seconds: float) -> int:
    """To STEP seconds, and no less than STEP."""
    return max(STEP, STEP * math.floor(seconds / STEP + 0.5))


def in_words(name: str, stored: Stored) -> str:
    """What the head of a notebook says: 'about 25 seconds on two cores with fast bfloat16 (60 without), 10 the next
    time'."""
    known = [kind for kind in stored if name in stored[kind].first]
    if not known:
        return NOT_MEASURED
    best = stored[known[0]]
    without = f" ({rounded(stored['fp32'].first[name])} without)" if len(known) > 1 else ""
    again = f", {rounded(best.again[name])} the next time" if name in best.again else ""
    return f"about {rounded(best.first[name])} seconds on two cores {KINDS[known[0]]}{without}{again}"


def in_table(name: str, stored: Stored) -> str:
    """A first Run All in a cell of a table: '25 seconds (60 without fast bfloat16)'."""
    known = [kind for kind in stored if name in stored[kind].first]
    if not known:
        return "not measured"
    first = [rounded(stored[kind].first[name]) for kind in known]
    more = f"{first[1]} " if len(first) > 1 else ""
    return f"{first[0]} seconds" + (f" ({more}{KINDS['fp32']})" if "fp32" in known else "")


def in_all(stored: Stored) -> str:
    """The README's sentence about all notebooks."""
    begin = "Each runs alone, top to bottom, before any exercise is solved"
    if not stored:
        return f"{begin}; how long that takes is not measured yet."

    def span(seconds: Mapping[str, Number]) -> str:
        low, high = rounded(min(seconds.values())), rounded(max(seconds.values()))
        return f"{low} to {high}" if low < high else str(low)

    (kind, best), *other = stored.items()
    without = f" ({span(other[0][1].first)} without)" if other else ""
    first = f"the first *Run All* takes {span(best.first)} seconds on two cores {KINDS[kind]}{without}"
    return f"{begin}: {first}, the next {span(best.again)}."


HEAD = re.compile(r"(\*\*Takes\*\* <!-- evidence: seconds -->)[^\n]*?(<!-- /evidence -->)")


def with_seconds(head: str, words: str, where: str) -> str:
    """A notebook's first cell with its time written anew; LabError unless it has the mark once. The mark does not begin
    a line: Markdown would take the line for HTML."""
    text, found = HEAD.subn(lambda m: m[1] + words + m[2], head)
    if found != 1:
        raise LabError(
            f"{where}: its first cell wants its time once: **Takes** <!-- evidence: seconds --><!-- /evidence -->"
        )
    return text


# ---- held against what is stored ---------------------------------------------------------------------------------


def unlike(stored: Stored, machine: Mapping[str, Any]) -> str:
    """Why seconds on this machine (`engine.device.describe_machine`) cannot be held against what is stored; empty where
    they can."""
    kind = machine["precision"]
    if kind not in stored:
        return f"none are stored for a machine {KINDS[kind]} ({COMMAND})"
    known = stored[kind].machine
    if known["cores"] != machine["cores"]:
        return f"the stored ones are of {known['cores']} cores, and here are {machine['cores']}"
    there, here = known["gflops"][kind], machine["gflops"][kind]
    if not 1 / CEILINGS <= here / there <= CEILINGS:
        return f"where they were measured matrix products in {kind} ran at {there:,} GFLOP/s, and here at {here:,}"
    return ""


def apart(seconds: float, stored: float) -> bool:
    """Whether a time differs from the stored one beyond FACTOR, and by more than the words would tell."""
    low, high = sorted((seconds, stored))
    return high > FACTOR * low and high - low > STEP
