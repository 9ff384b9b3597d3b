"""Figures of labels, as plain functions: labels, or the figures of `quality`, in; a plotly figure out, or None where
there is nothing to show. Names are untrusted text: `look.plain` keeps plotly from reading markup in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llama2lab.annotation.agreement.coefficients import WHATS, Label, judged
from llama2lab.annotation.agreement.quality import Alarm, Quality
from llama2lab.engine.scale import GRADES
from llama2lab.engine.stats import Figure
from llama2lab.report import look
from llama2lab.report.look import BLUE, GREEN, GREY, ORANGE, RED, errors, plain, style

COEFFICIENTS = (
    ("percent", "percent agreement", GREY, "diamond"),
    ("alpha", "Krippendorff's alpha", BLUE, "circle"),
    ("ac", "Gwet's AC1, AC2 for the grade", ORANGE, "square"),
)
GRADE_COLOURS = dict(zip(GRADES, ("#004b76", BLUE, "#56B4E9", "#c5dff0"), strict=True))


# ---- figures as text ---------------------------------------------------------------------------------------------


def figure_text(f: Figure, digits: int = 2, sign: bool = False) -> str:
    """'0.81 [0.79, 0.83]', or '-' where it is not defined."""
    if not f["n"] or not math.isfinite(f["mean"]):
        return "-"
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{f['mean']:{form}} [{f['low']:{form}}, {f['high']:{form}}]"


def percent_text(f: Figure) -> str:
    if not f["n"] or not math.isfinite(f["mean"]):
        return "-"
    return f"{f['mean']:.0%} [{f['low']:.0%}, {f['high']:.0%}]"


# ---- figures -----------------------------------------------------------------------------------------------------


def agreement_figure(table: dict[Any, dict[str, Figure]]) -> go.Figure | None:
    """Percent agreement, alpha and AC on the choice, the grade and safety, with their intervals."""
    fig = go.Figure()
    for offset, (key, name, color, symbol) in zip((-0.2, 0.0, 0.2), COEFFICIENTS, strict=True):
        there = [(i, table[what][key]) for i, what in enumerate(WHATS) if math.isfinite(table[what][key]["mean"])]
        if there:
            figures = [f for _, f in there]
            fig.add_trace(
                go.Scatter(
                    x=[i + offset for i, _ in there],
                    y=[f["mean"] for f in figures],
                    error_y=errors(figures),
                    name=name,
                    mode="markers",
                    marker={"color": color, "symbol": symbol, "size": 10},
                    text=[f"{figure_text(f)}, {f['n']} items" for f in figures],
                    hovertemplate="%{text}<extra>" + name + "</extra>",
                )
            )
    if style(fig, y="agreement", height=340, bottom=80) is None:
        return None
    fig.update_xaxes(tickvals=list(range(len(WHATS))), ticktext=list(WHATS), range=[-0.6, len(WHATS) - 0.4])
    lowest = min((f["low"] for row in table.values() for f in row.values() if math.isfinite(f["low"])), default=0.0)
    return fig.update_yaxes(range=[min(0.0, lowest) - 0.05, 1.05])


def dots(
    rows: Sequence[Quality],
    what: str,
    found: Sequence[Alarm],
    title: str,
    line: float | None = None,
    percent: bool = True,
) -> go.Figure | None:
    """One figure of each annotator or vendor with its interval, those who stand out in red with a mark of their own."""
    odd = {a.name for a in found if a.raised and a.what == what}
    there = [
        (r.name, getattr(r, what))
        for r in reversed(rows)
        if getattr(r, what)["n"] and math.isfinite(getattr(r, what)["mean"])
    ]
    fig = go.Figure()
    for raised, color, symbol, name in ((False, BLUE, "circle", "others"), (True, RED, "diamond", "stands out")):
        part = [(y, f, n) for y, (n, f) in enumerate(there) if (n in odd) == raised]
        if part:
            figures = [f for _, f, _ in part]
            words = [percent_text(f) if percent else figure_text(f, 2, True) for f in figures]
            fig.add_trace(
                go.Scatter(
                    x=[f["mean"] for f in figures],
                    y=[y for y, _, _ in part],
                    error_x=errors(figures),
                    mode="markers",
                    name=name,
                    marker={"color": color, "symbol": symbol, "size": 10},
                    text=[f"{plain(n)}: {w}, n {f['n']:.0f}" for w, (_, f, n) in zip(words, part, strict=True)],
                    hovertemplate="%{text}<extra></extra>",
                )
            )
    return _named(fig, [n for n, _ in there], title, line, percent)


def _named(
    fig: go.Figure,
    names: Sequence[str],
    title: str,
    line: float | None = None,
    percent: bool = True,
    legend: bool = False,
) -> go.Figure | None:
    """Rows with names on the left. Their places are numbers: two names that look alike stay two rows."""
    labels = [plain(n, 20) for n in names]
    left = 30 + 8 * max((len(n) for n in labels), default=0)
    if (
        style(fig, title, height=130 + 30 * len(names) + (40 if legend else 0), legend=legend, left=min(left, 200))
        is None
    ):
        return None
    fig.update_yaxes(tickvals=list(range(len(names))), ticktext=labels, range=[-0.6, len(names) - 0.4], automargin=True)
    if percent:
        fig.update_xaxes(tickformat=".0%")
    if line is not None:
        fig.add_vline(x=line, line={"color": GREY, "dash": "dot", "width": 1})
    return fig


def grades_figure(rows: Sequence[Quality]) -> go.Figure | None:
    """Share of each grade, one bar an annotator."""
    there = [r for r in reversed(rows) if r.labels]
    fig = go.Figure()
    for grade in GRADES:
        fig.add_trace(
            go.Bar(
                y=list(range(len(there))),
                x=[r.grades[grade]["mean"] for r in there],
                name=grade,
                orientation="h",
                marker={"color": GRADE_COLOURS[grade]},
                text=[f"{plain(r.name)}: {grade} {percent_text(r.grades[grade])}" for r in there],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
        )
    if not there:
        return None
    fig.update_layout(barmode="stack", legend_traceorder="normal")
    named = _named(fig, [r.name for r in there], "share of labels", legend=True)
    return None if named is None else named.update_xaxes(range=[0, 1])


def time_figure(labels: Iterable[Label]) -> go.Figure | None:
    """Seconds on an item: median, quartiles and single labels of each annotator, on a logarithmic axis."""
    seconds: dict[str, list[float]] = {}
    for label in judged(labels, gold=True):
        if label["seconds"] and label["seconds"] > 0:
            seconds.setdefault(label["annotator"], []).append(label["seconds"])
    names = sorted(seconds, reverse=True)
    fig = go.Figure()
    for y, name in enumerate(names):
        fig.add_trace(
            go.Box(
                x=seconds[name],
                y=[y] * len(seconds[name]),
                orientation="h",
                name=plain(name),
                marker={"color": BLUE, "size": 3},
                line={"width": 1.5},
                boxpoints="outliers",
                hoverinfo="x",
                width=0.6,
            )
        )
    named = _named(fig, names, "seconds on an item", percent=False)
    return None if named is None else named.update_xaxes(type="log", dtick="D2")


def progress_figure(labels: Iterable[Label]) -> go.Figure | None:
    """Labels over time, all annotators together and, up to eight of them, each alone."""
    times: dict[str, list[datetime]] = {}
    for label in labels:
        when = moment(label["created_at"])
        if when is not None:
            times.setdefault(label["annotator"], []).append(when)
    fig = go.Figure()
    everything = sorted(t for several in times.values() for t in several)
    lines: list[tuple[str, list[datetime], str, float]] = [("all", everything, GREY, 3)]
    if 1 < len(times) <= 8:
        colours = (BLUE, ORANGE, GREEN, RED, look.PINK, look.SKY, "#8a6d00", "#333399")
        lines += [(name, sorted(times[name]), colours[i], 1.5) for i, name in enumerate(sorted(times))]
    for name, moments, color, width in lines:
        if moments:
            fig.add_trace(
                go.Scatter(
                    x=moments,
                    y=list(range(1, len(moments) + 1)),
                    name=plain(name),
                    mode="lines",
                    line={"shape": "hv", "color": color, "width": width},
                    hovertemplate="%{y} labels, %{x}<extra></extra>",
                )
            )
    return style(fig, "time (UTC)", "labels", legend=len(lines) > 1)


def moment(value: Any) -> datetime | None:
    """A label's time, from a store or from text; None where it has none."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def vendors_figure(rows: Sequence[Quality], found: Sequence[Alarm]) -> go.Figure | None:
    """Vendors side by side: agreement with the others and with gold, the side, the length of answers."""
    if len(rows) < 2:
        return None
    panels: tuple[tuple[str, str, float | None], ...] = (
        ("others", "agrees with the others", None),
        ("gold", "agrees with gold", None),
        ("left", "chooses the left", 0.5),
        ("length", "ten words more, in steps", 0.0),
    )
    shown = [panel for panel in panels if any(math.isfinite(getattr(r, panel[0])["mean"]) for r in rows)]
    if not shown:
        return None
    fig = make_subplots(
        1, len(shown), shared_yaxes=True, subplot_titles=[title for _, title, _ in shown], horizontal_spacing=0.04
    )
    for column, (what, _, line) in enumerate(shown, 1):
        part = dots(rows, what, found, "", line, what != "length")
        named = [r.name for r in reversed(rows)]
        own = [r.name for r in reversed(rows) if math.isfinite(getattr(r, what)["mean"])]
        for trace in part.data if part is not None else ():
            trace.y = [named.index(own[int(y)]) for y in trace.y]
            fig.add_trace(trace, 1, column)
        if line is not None:
            fig.add_vline(x=line, line={"color": GREY, "dash": "dot", "width": 1}, row=1, col=column)
        fig.update_xaxes(tickformat=".1f" if what == "length" else ".0%", nticks=5, row=1, col=column)
    names = [r.name for r in reversed(rows)]
    styled = style(fig, height=150 + 34 * len(rows), legend=False)
    if styled is None:
        return None
    styled.update_annotations(font={"size": 12, "color": look.INK})
    styled.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[plain(n, 20) for n in names],
        range=[-0.6, len(names) - 0.4],
        automargin=True,
    )
    return styled.update_layout(margin={"t": 50})
