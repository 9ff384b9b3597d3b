"""The tour of notebook 00: the recipe of a finished run step by step beside the report's, and what is in
the notebooks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from llama2lab.engine.files import read_json
from llama2lab.engine.paths import ROOT
from llama2lab.lab.finished import Finished
from llama2lab.lab.run_all import in_table, read_times
from llama2lab.lab.shown import Table, side, signed
from llama2lab.report.look import BLUE, style
from llama2lab.report.plots import VERSIONS
from llama2lab.report.summary import difference, figure_text, find, metrics, paired_gap, short_name
from llama2lab.town.town import Town


@dataclass(frozen=True)
class Step:
    """A step of the recipe: the stages of a run that belong to it, and what the report gives for it."""

    name: str
    stages: str  # a regular expression
    notebook: str
    report: str  # with its table or section


STEPS = (
    Step("tokenizer", r"tokenizer", "01", "32,000 tokens (2.2)"),
    Step("pretraining", r"base", "03", "2.0T tokens (table 1)"),
    Step("supervised fine-tuning", r"sft", "04", "27,540 examples (3.1)"),
    Step("preferences", r"preferences-v\d|annotations", "05", "1,418,091 comparisons (table 26)"),
    Step(
        "reward models",
        r"reward-(helpfulness|safety)-v\d",
        "06",
        "63.2 % right on helpfulness, 64.5 % on safety (table 8)",
    ),
    Step("rejection sampling", r"samples-v\d|rlhf-v[1-4]", "07", "versions V1 to V4 (3.2.3)"),
    Step("Ghost Attention", r"gatt", "09", "100 % of instructions kept at turn 20 (table 30)"),
    Step("PPO", r"rlhf-v5", "08", "200 to 400 iterations (3.2.3)"),
)


def seconds_of(lab: Finished, step: Step) -> float:
    """Of all its stages, each with its evaluation."""
    return sum(s["seconds"] for name, s in lab.figures["stages"].items() if re.fullmatch(step.stages, name))


def ours(lab: Finished, step: Step) -> str:
    """What this run has to say of a step; "-" where it did not take it."""
    r = lab.figures
    if step.name == "tokenizer":
        size = metrics(r, "tokenizer").get("vocab_size")
        return f"{size:,} tokens" if size else "-"
    if step.name == "pretraining":
        tokens, known = metrics(r, "base").get("tokens"), figure_text(find(r, "base", "known_facts"))
        return f"{tokens / 1e6:.1f} million tokens; facts known {known}" if tokens else "-"
    if step.name == "supervised fine-tuning":
        examples = metrics(r, "sft").get("examples")
        return f"{round(examples):,} examples; correct {figure_text(find(r, 'sft', 'correct'))}" if examples else "-"
    if step.name == "preferences":
        kinds = [kind for v in range(1, 6) for kind in metrics(r, f"preferences-v{v}").values()]
        pairs = sum(kind["pairs"] for kind in kinds if isinstance(kind, dict) and "pairs" in kind)
        return f"{pairs:,} comparisons" if pairs else "-"
    if step.name == "reward models":
        right = {kind: find(r, f"reward-{kind}-v5", "accuracy") for kind in ("helpfulness", "safety")}
        return "right: " + ", ".join(f"{figure_text(f)} on {kind}" for kind, f in right.items())
    if step.name == "Ghost Attention":
        return f"kept at turn 20: {figure_text(find(r, 'gatt', 'retention', '20'))}"
    stage = "rlhf-v4" if step.name == "rejection sampling" else "rlhf-v5"
    return f"{short_name(stage)} wins against SFT: {figure_text(find(r, stage, 'win_rate_vs_sft'))}"


def recipe_table(lab: Finished) -> list[list[str]]:
    """Step, notebook, seconds, ours, the report's."""
    return [[s.name, s.notebook, f"{seconds_of(lab, s):.0f}", ours(lab, s), s.report] for s in STEPS]


def recipe_seconds(lab: Finished) -> go.Figure | None:
    """Where a run's time goes; what trains only for comparison is a bar of its own."""
    rows = {s.name: seconds_of(lab, s) for s in STEPS}
    every = sum(s["seconds"] for s in lab.figures["stages"].values())
    rows["for comparison only"] = every - sum(rows.values())
    words = {"text": [f"{v:.0f}" for v in rows.values()], "textposition": "outside", "cliponaxis": False}
    bars = go.Bar(x=list(rows.values()), y=list(rows), orientation="h", marker_color=BLUE, **words)
    fig = go.Figure(bars)
    fig.update_yaxes(autorange="reversed")
    fig.update_yaxes(automargin=True)
    return style(fig, "seconds, with evaluation", "step", legend=False, height=360)


def steps_table(lab: Finished) -> Table:
    """How true helpfulness changed from each version to the next, prompt by prompt, and, from the first to the last, it
    and both measures of safety, these as if on other prompts."""
    steps = [s for s in VERSIONS if find(lab.figures, s, "helpfulness")]
    whole = [(steps[0], steps[-1])] if len(steps) > 1 else []
    rows: list[tuple[str, str, str, Any]] = [
        ("true helpfulness", before, after, paired_gap([lab.folder], after, before, lab.figures))
        for before, after in [*pairwise(steps), *whole]
    ]
    for what, words in (("safety", "true safety"), ("violation_rate", "complies with an unsafe prompt, share")):
        for first, last in whole:
            gap = difference(find(lab.figures, last, what), find(lab.figures, first, what))
            rows.append((words, first, last, gap))
    body = [
        [words, short_name(before), short_name(after), signed(gap, 2), side(gap, "up", "down", "cannot be told")]
        for words, before, after, gap in rows
        if gap
    ]
    return Table(("measure", "from", "to", "change [95 %]", "what it says"), body)


def notebooks(folder: Path = ROOT / "notebooks") -> list[tuple[str, str, str, str]]:
    """(file, title, stored time of its first Run All, claims that are put to the test in it) of every notebook there
    is: its first cell has the title, headings name the claims."""
    found, stored = [], read_times()
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        # Plain JSON: nbformat would load a grammar for seconds, to check what is our own.
        cells = ["".join(c["source"]) for c in read_json(path)["cells"] if c["cell_type"] == "markdown"]
        claims: set[int] = set()
        for line in "\n".join(cells).splitlines():
            if line.startswith("#") and "laim" in line:
                claims |= {int(n) for n in re.findall(r"\b\d+\b", line.partition("laim")[2].partition(":")[0])}
        title = cells[0].splitlines()[0].lstrip("# ") if cells else path.stem
        numbers = ", ".join(map(str, sorted(claims)))
        found.append((path.name, re.sub(r"^\d+\W+", "", title), in_table(path.stem, stored), numbers))
    return found


def people_table(town: Town, who: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of some people's facts."""
    people = [town.people[key] for key in who]
    return ["name", *town.attributes], [[p.name, *(str(p.facts[a]) for a in town.attributes)] for p in people]
