"""Figures of labels, as plain functions: labels, or the figures of `quality`, in; a plotly figure out, or None where
there is nothing to show. Names are untrusted text: `look.plain` keeps plotly from reading markup in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from llama2lab.annotation.agreement.coefficients import WHATS, Label, grouped, judged
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
DOTTED = {"color": GREY, "dash": "dot", "width": 1}
GRADE_COLOURS = dict(zip(GRADES, ("#004b76", BLUE, "#56B4E9", "#c5dff0"), strict=True))


# ---- figures as text ---------------------------------------------------------------------------------------------


def figure_text(f: Figure, digits: int = 2, sign: bool = False) -> str:
    """'0.81 [0.79, 0.83]', or '-' where it is not defined."""
    if not math.isfinite(f["mean"]):
        return "-"
    form = f"{'+' if sign else ''}.{digits}f"
    return f"{f['mean']:{form}} [{f['low']:{form}}, {f['high']:{form}}]"


def percent_text(f: Figure) -> str:
    return f"{f['mean']:.0%} [{f['low']:.0%}, {f['high']:.0%}]" if math.isfinite(f["mean"]) else "-"


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
    if style(fig, "what was judged", "agreement", height=280) is None:
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
    there = [(r.name, f) for r in reversed(rows) if math.isfinite((f := getattr(r, what))["mean"])]
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
    left = 30 + 8 * max((len(plain(n, 20)) for n in names), default=0)
    height = 110 + 30 * len(names)
    if style(fig, title, "annotator", height=height, legend=legend, left=min(left, 200)) is None:
        return None
    if percent:
        fig.update_xaxes(tickformat=".0%")
    if line is not None:
        fig.add_vline(x=line, line=DOTTED)
    return fig.update_yaxes(_ticks(names))


def _ticks(names: Sequence[str]) -> dict[str, Any]:
    """An axis with a name at each whole number."""
    texts = [plain(n, 20) for n in names]
    return {"tickvals": [*range(len(names))], "ticktext": texts, "range": [-0.6, len(names) - 0.4], "automargin": True}


def grades_figure(rows: Sequence[Quality]) -> go.Figure | None:
    """Share of each grade, one bar an annotator."""
    there = [r for r in reversed(rows) if r.labels]
    if not there:
        return None
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
    fig.update_layout(barmode="stack", legend_traceorder="normal", xaxis_range=[0, 1])
    return _named(fig, [r.name for r in there], "share of labels", legend=True)


def time_figure(labels: Iterable[Label]) -> go.Figure | None:
    """Seconds on an item: median, quartiles and single labels of each annotator, on a logarithmic axis."""
    timed = grouped((x for x in judged(labels, gold=True) if x["seconds"] and x["seconds"] > 0), "annotator")
    names = sorted(timed, reverse=True)
    fig = go.Figure()
    for y, name in enumerate(names):
        fig.add_trace(
            go.Box(
                x=[label["seconds"] for label in timed[name]],
                y=[y] * len(timed[name]),
                orientation="h",
                name=plain(name),
                marker={"color": BLUE, "size": 3},
                line={"width": 1.5},
                boxpoints="outliers",
                hoverinfo="x",
                width=0.6,
            )
        )
    fig.update_xaxes(type="log", tickvals=[n * 10**k for k in range(-1, 5) for n in (1, 2, 5)])
    return _named(fig, names, "seconds on an item", percent=False)


def progress_figure(labels: Iterable[Label]) -> go.Figure | None:
    """Labels over time, all annotators together and, up to eight of them, each alone."""
    dated = [label for label in labels if moment(label["created_at"])]
    lines = [("all", dated, GREY, 3.0)] if dated else []
    each = sorted(grouped(dated, "annotator").items())
    if 1 < len(each) <= 8:
        colours = (BLUE, ORANGE, GREEN, RED, look.PINK, look.SKY, "#8a6d00", "#333399")
        lines += [(name, mine, colour, 1.5) for (name, mine), colour in zip(each, colours, strict=False)]
    fig = go.Figure()
    for name, several, color, width in lines:
        fig.add_trace(
            go.Scatter(
                x=sorted(moment(label["created_at"]) for label in several),  # type: ignore[type-var]
                y=list(range(1, len(several) + 1)),
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
        ("others", "agrees with<br>the others", None),
        ("gold", "agrees<br>with gold", None),
        ("left", "chooses<br>the left", 0.5),
        ("length", "ten words<br>more, in steps", 0.0),
    )
    shown = [panel for panel in panels if any(math.isfinite(getattr(r, panel[0])["mean"]) for r in rows)]
    if not shown:
        return None
    fig = make_subplots(1, len(shown), shared_yaxes=True, horizontal_spacing=0.06)
    names = [r.name for r in reversed(rows)]
    for column, (what, words, line) in enumerate(shown, 1):
        part = dots(rows, what, found, "", line, what != "length")
        own = [r.name for r in reversed(rows) if math.isfinite(getattr(r, what)["mean"])]
        for trace in part.data if part is not None else ():
            trace.y = [names.index(own[int(y)]) for y in trace.y]
            fig.add_trace(trace, 1, column)
        if line is not None:
            fig.add_vline(x=line, line=DOTTED, row=1, col=column)
        form = ".1f" if what == "length" else ".0%"
        fig.update_xaxes(tickformat=form, nticks=4, title=words, row=1, col=column)
    fig.update_yaxes(_ticks(names))
    fig.update_yaxes(title="vendor", col=1)
    return style(fig, height=150 + 34 * len(rows), legend=False, below=70)
