"""The teacher's dashboard: figures and tables of a store's labels, and one page that opens offline and holds them all.

What people wrote, names above all, is untrusted text: the template escapes it, and `look.plain` keeps plotly from
reading markup in it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from llama2lab import __version__
from llama2lab.annotation.agreement import charts
from llama2lab.annotation.agreement.charts import COEFFICIENTS, figure_text, moment, percent_text
from llama2lab.annotation.agreement.coefficients import WHATS, Label, agreement_table, judged
from llama2lab.annotation.agreement.quality import Alarm, By, Quality, alarms, careless, quality
from llama2lab.engine.errors import LabError
from llama2lab.engine.stats import Figure
from llama2lab.report import look
from llama2lab.report.look import Section, tame


@dataclass(frozen=True)
class Cell:
    text: str
    odd: bool = False


Table = tuple[list[str], list[list[Cell]]]
TESTED = {  # column: habit
    "with the others": "others",
    "with gold": "gold",
    "left": "left",
    "ten words more": "length",
    "one grade": "grade",
    "median s": "fast",
}


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


# ---- tables ------------------------------------------------------------------------------------------------------


def agreement_rows(table: dict[Any, dict[str, Figure]]) -> Table:
    header = ["", "items judged twice", *(name for _, name, _, _ in COEFFICIENTS)]
    body = [
        [what, str(table[what]["percent"]["n"]), *(figure_text(table[what][key]) for key, *_ in COEFFICIENTS)]
        for what in WHATS
    ]
    return header, [[Cell(text) for text in row] for row in body]


def quality_rows(rows: Sequence[Quality], found: Sequence[Alarm], by: By = "annotator") -> Table:
    """Every figure of every annotator or vendor; those of `found` that stand out are marked."""
    odd = {(a.name, a.what) for a in found if a.raised}
    columns: list[tuple[str, Callable[[Quality], str]]] = [
        (by, lambda r: tame(r.name)),
        *([("vendor", lambda r: tame(r.vendor) or "-")] if by == "annotator" else []),
        ("labels", lambda r: str(r.labels)),
        ("skips", lambda r: str(r.skips)),
        ("flags", lambda r: str(r.flags)),
        ("with the others", lambda r: percent_text(r.others)),
        ("with gold", lambda r: percent_text(r.gold)),
        ("left", lambda r: percent_text(r.left)),
        ("p", lambda r: "-" if math.isnan(r.left_p) else f"{r.left_p:.3f}"),
        ("longer", lambda r: percent_text(r.longer)),
        ("ten words more", lambda r: figure_text(r.length, 1, True)),
        ("safe", lambda r: percent_text(r.safe)),
        ("one grade", lambda r: percent_text(r.one_grade)),
        ("median s", lambda r: "-" if math.isnan(r.seconds) else f"{r.seconds:.1f}"),
    ]
    body = [[Cell(text(r), (r.name, TESTED.get(title)) in odd) for title, text in columns] for r in rows]
    return [title for title, _ in columns], body


def tested(labels: Sequence[Label]) -> list[tuple[By, list[Quality], list[Alarm]]]:
    """All annotators, and all vendors if there are several, with their figures and the tests of these. Careless are
    people, not vendors."""
    groups: tuple[By, ...] = ("annotator", "vendor") if len({x["vendor"] for x in labels}) > 1 else ("annotator",)
    return [
        (by, rows := quality(labels, by), [*alarms(rows), *(careless(rows) if by == "annotator" else ())])
        for by in groups
    ]


# ---- the page ----------------------------------------------------------------------------------------------------

LIMITS = (
    "Agreement is not truth: annotators can agree on a mistake. Gold items say more, if their answers are right.",
    "Agreement figures leave out gold items and skips; flagged labels count.",
    "Intervals are 95 %: Wilson's for shares, bootstrap over items for agreement. A difference within them is none.",
    "The side an answer stands on is drawn by seed, so any preference for a side is a habit. The length of answers is "
    "compared with what the other annotators find: a habit that most of them share does not show.",
    "Time is what passed while the item was on the screen, breaks included.",
)


def sections_of(labels: Sequence[Label]) -> list[Section]:
    """The parts of the page that have something to show."""
    (_, people, odd), *vendors = tested(labels)
    table = agreement_table(labels)
    tables = [agreement_rows(table)]
    kinds = sorted({x["annotator_kind"] for x in labels})
    words = {"person": "people only", "simulated": "simulated annotators only"}
    if len(kinds) > 1:
        for kind in kinds:
            header, rows = agreement_rows(agreement_table([x for x in labels if x["annotator_kind"] == kind]))
            tables.append(([words.get(kind, kind), *header[1:]], rows))
    found = [
        Section(
            "Agreement",
            "How far different annotators say the same of the same pair. Alpha and AC correct for "
            "chance in different ways: where nearly all answers are safe, alpha falls although nearly all labels "
            "agree, and AC does not.",
            "Whether the grade agrees less than the choice, and how wide the intervals "
            "are: more items with two labels make them narrower.",
            charts.agreement_figure(table),
            tables,
        ),
        Section(
            "Annotators",
            "One row an annotator; what stands out is red. 'Longer' is the share of longer answers "
            "among the choices; 'ten words more' is how many steps of the scale they are worth beyond the others' "
            "median; 'one grade' is the share of the grade that is used most.",
            "",
            None,
            [quality_rows(people, odd)],
        ),
        Section(
            "Left or right",
            "The share of choices that stood on the left.",
            "Intervals that do not touch the dotted line at one half.",
            charts.dots(people, "left", odd, "chose the left answer", 0.5),
        ),
        Section(
            "With the others",
            "How often each annotator chose what most of the others chose.",
            "Who is below all the rest.",
            charts.dots(people, "others", odd, "agrees with the majority of the others"),
        ),
        Section(
            "With gold",
            "How often each annotator chose the answer that is known to be better.",
            "Who is below all the rest; the others may be wrong, gold should not.",
            charts.dots(people, "gold", odd, "agrees with gold"),
        ),
        Section(
            "Length of answers",
            "How many steps of the scale ten words more are worth to an annotator, less the "
            "median of the others; what the others find of the same answers is taken into account.",
            "Intervals that do not touch zero: to the right, length is liked for its own sake.",
            charts.dots(people, "length", odd, "ten words more, in steps of the scale", 0.0, False),
        ),
        Section(
            "Grades",
            "How sure each annotator is.",
            "Who uses one grade only: the grade becomes the margin of the loss.",
            charts.grades_figure(people),
        ),
        Section("Time", "Seconds on an item.", "Who is faster than one can read.", charts.time_figure(labels)),
        Section(
            "Progress",
            "Labels over time.",
            "Where a line grows flat: a break, or the end of patience.",
            charts.progress_figure(labels),
        ),
        *(
            Section(
                "Vendors",
                "The labels of each vendor together, as if it were one annotator. The report found that platforms "
                "differ.",
                "Who differs in what, and whether that is careless or a habit.",
                charts.vendors_figure(rows, odd_vendors),
                [quality_rows(rows, odd_vendors, by)],
            )
            for by, rows, odd_vendors in vendors
        ),
    ]
    return [s for s in found if s.figure is not None or any(rows for _, rows in s.tables)]


def write_page(labels: Sequence[Label], path: Path) -> Path:
    """Write the page of these labels to `path`. LabError when it cannot be written."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = resources.files("llama2lab").joinpath("report/templates/annotations.html.j2").read_text(encoding="utf-8")
    odd = [(f"{by.capitalize()}s", [a for a in found if a.raised], bool(found)) for by, _, found in tested(labels)]
    page = environment.from_string(source).render(
        version=__version__,
        css=look.css(),
        plotlyjs=get_plotlyjs(),
        facts=facts(labels),
        odd=odd,
        p_text=p_text,
        tame=tame,
        sections=sections_of(labels),
        limits=LIMITS,
    )
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8", errors="replace")
        os.replace(temporary, path)
    except OSError as e:
        raise LabError(f"cannot write {path}: {e.strerror or e}; free some space or mend the permissions") from e
    return path


def facts(labels: Sequence[Label]) -> str:
    """How much there is, in a line."""
    choices = judged(labels, gold=True)
    people = len({x["annotator"] for x in labels if x["annotator_kind"] == "person"})
    simulated = len({x["annotator"] for x in labels}) - people
    times = [when for when in (moment(x["created_at"]) for x in labels) if when is not None]
    days = sorted({f"{when:%Y-%m-%d}" for when in times})
    span = f", {days[0]}" + (f" to {days[-1]}" if days[1:] else "") if days else ""
    return (
        f"{len(choices)} labels of {len({x['item_id'] for x in choices})} items by {people} people and {simulated} "
        f"simulated annotators, {len(labels) - len(choices)} skips{span}"
    )


def summary_text(labels: Sequence[Label]) -> str:
    """What `llama2lab agreement` prints: agreement, one line an annotator, who stands out."""
    groups = tested(labels)
    parts = [facts(labels), _columns(agreement_rows(agreement_table(labels)))]
    parts += [_columns(quality_rows(rows, found, by)) for by, rows, found in groups]
    raised = [a for *_, found in groups for a in found if a.raised]
    parts.append(
        "\n".join(["stands out:", *(f"  {tame(a.name)} {a.words} ({p_text(a.p)})" for a in raised)])
        if raised
        else "nobody stands out"
    )
    return "\n\n".join(parts)


def _columns(table: Table) -> str:
    header, rows = table
    texts = [header, *([cell.text + (" !" if cell.odd else "") for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(header))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in texts
    )
