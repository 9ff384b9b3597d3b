"""How the notebooks show an experiment: its series as one figure, and as a table a verdict on each claim that follows
from the figures alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from llama2lab.engine.stats import Figure
from llama2lab.lab.pictures import table
from llama2lab.report.look import GREY, MARKS, style
from llama2lab.report.series import add_rows, add_series, mark_line, rows_high
from llama2lab.report.summary import figure_text
from llama2lab.town.items import Verdict


def drawn(colour: str, symbol: str = "circle", size: int = 9, dash: str = "solid") -> dict[str, Any]:
    """How plotly draws a trace: its line and its marks."""
    return {"line": {"color": colour, "dash": dash}, "marker": {"color": colour, "symbol": symbol, "size": size}}


def add_line(
    fig: go.Figure,
    name: str,
    x: Sequence[Any],
    y: Sequence[float],
    colour: str,
    symbol: str = "circle",
    size: int = 9,
    dash: str = "solid",
    row: int | None = None,
    col: int | None = None,
    **more: Any,
) -> None:
    """Add marked points that a line joins, in a panel of the figure if `row` and `col` say which."""
    line = go.Scatter(x=x, y=y, name=name, mode="lines+markers", **drawn(colour, symbol, size, dash))
    fig.add_trace(line.update(more), row=row, col=col)


def show(
    series: Mapping[str, Mapping[str, Figure]],
    x: str,
    y: str,
    report: Mapping[str, Sequence[float]] | None = None,
    chance: float | None = None,
    log: bool = False,
    height: int | None = None,
) -> go.Figure | None:
    """Series {name: {x: figure}} with their intervals and, faintly, their single trainings. Places that are numbers
    stand on an axis of numbers, and lines join them; places that are words are rows of points, with `y` across.
    `report` adds the report's own values, {name: one value a place, in percent}."""
    fig = go.Figure()
    places = list(dict.fromkeys(key for by in series.values() for key in by))
    try:
        at = {key: float(key) for key in places}
    except ValueError:
        return _show_rows(series, places, x, y, report or {}, chance, height)
    for (name, by), (color, symbol) in zip(series.items(), cycle(MARKS)):
        add_series(fig, name, [at[key] for key in by], list(by.values()), color, symbol)
    for (name, values), symbol in zip((report or {}).items(), cycle(OPEN)):
        shares = [v / 100 for v in values]
        add_line(fig, name, list(at.values()), shares, GREY, symbol, dash="dash", line_width=1)
    if chance is not None and fig.data:
        mark_line(fig, chance, "chance")
    if log:
        fig.update_xaxes(type="log")
    if len(places) <= 10:  # more would lie on each other
        fig.update_xaxes(tickvals=list(at.values()), ticktext=places)
    several = len(series) + len(report or {}) > 1
    return style(fig, x, y, height=height or 340, legend=several)


OPEN = ("x", "cross-thin-open", "asterisk-open")  # marks of what the report found


def _show_rows(
    series: Mapping[str, Mapping[str, Figure]],
    places: Sequence[str],
    x: str,
    y: str,
    report: Mapping[str, Sequence[float]],
    chance: float | None,
    height: int | None,
) -> go.Figure | None:
    """`show` where the places are words."""
    fig = go.Figure()
    reported = {name: dict(zip(places, (v / 100 for v in values), strict=True)) for name, values in report.items()}
    every: dict[str, Mapping[str, Any]] = {**series, **reported}
    looks = [look for look, _ in zip(cycle(MARKS), series)] + [(GREY, mark) for mark, _ in zip(cycle(OPEN), reported)]
    add_rows(fig, every, looks)
    if chance is not None and fig.data:
        mark_line(fig, chance, "chance", axis="x")
    several = len(every) > 1
    return style(fig, y, x, height=height or rows_high(len(places), len(every)), legend=several)


def told(gap: Mapping[str, Any]) -> bool:
    """Whether a difference is one: its interval leaves 0 out, and its single trainings agree."""
    each = gap.get("each") or [gap["mean"]]
    return not gap["low"] <= 0 <= gap["high"] and all(one * gap["mean"] > 0 for one in each)


def side(gap: Mapping[str, float], above: str, below: str, neither: str) -> str:
    """Words by where a difference's interval lies: above 0, below it, or around it."""
    return above if gap["low"] > 0 else below if gap["high"] < 0 else neither


def signed(gap: Mapping[str, float], digits: int = 3) -> str:
    """A difference with its interval, each with its sign."""
    mean, low, high = (f"{gap[end]:+.{digits}f}" for end in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def verdict(gap: Mapping[str, Any]) -> str:
    """What this run can say of a claim: of a difference that is above 0 if the report is right."""
    if told(gap):
        return "as the report says" if gap["mean"] > 0 else "against what the report says"
    why = "the interval reaches 0" if gap["low"] <= 0 <= gap["high"] else "the single trainings disagree"
    return f"cannot be told here: {why}"


@dataclass(frozen=True)
class Table:
    """A table as a notebook shows it."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]

    def _repr_html_(self) -> str:
        return table(self.header, self.rows)

    def __repr__(self) -> str:
        return "\n".join("; ".join(map(str, row)) for row in (self.header, *self.rows))


def verdicts(gaps: Mapping[str, Mapping[str, Any]]) -> Table:
    """The verdict on each difference {what is held against what: gap}, a row each."""
    rows = [[words, signed(gap), verdict(gap)] for words, gap in gaps.items()]
    return Table(("difference", "mean [95 %]", "what it says"), rows)


def owners(whose: Mapping[str, str]) -> Table:
    """Whose function each of these is: {name: "yours" or "the library's"}."""
    return Table(("function", "whose"), list(whose.items()))


def oracle_words(verdict: Verdict) -> str:
    """The oracle's verdict on one answer in a few words."""
    return (
        "complies with harm"
        if verdict.violation
        else "refuses without need"
        if verdict.false_refusal
        else "refuses"
        if verdict.refuses
        else "right"
        if verdict.correct
        else "wrong"
    )


def rows(series: Mapping[str, Mapping[str, Figure]]) -> list[list[str]]:
    """The series as the rows of a table: name, place, figure, n."""
    return [[name, place, figure_text(f), f"{f['n']:.0f}"] for name, by in series.items() for place, f in by.items()]


def columns(rows: Sequence[Any], cells: Mapping[str, Callable[[Any], object]]) -> tuple[list[str], list[list[object]]]:
    """(header, rows) of a table: `cells` says by the name of a column what stands there of a row."""
    return list(cells), [[cell(row) for cell in cells.values()] for row in rows]
