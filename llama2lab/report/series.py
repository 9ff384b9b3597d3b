"""What `plots.py` and the lessons' figures are put together of: points with their intervals, rows of kinds of things,
curves, the report's own values, and lines that mark a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from llama2lab.report.look import GREY, LINES, MARKS, errors, plain
from llama2lab.report.summary import is_number


def in_full(figure: Mapping[str, Any]) -> str:
    """A figure as it is read when it is pointed at; a plain number has no interval."""
    mean = f"{figure['mean']:.3f}"
    return f"{mean} [{figure['low']:.3f}, {figure['high']:.3f}], n {figure['n']:.0f}" if "n" in figure else mean


def faint(points: Sequence[tuple[Any, float]], color: str) -> go.Scatter:
    """The single runs behind pooled figures, as faint points."""
    return go.Scatter(
        x=[p[0] for p in points],
        y=[p[1] for p in points],
        mode="markers",
        showlegend=False,
        marker={"color": color, "size": 5, "opacity": 0.4},
        hoverinfo="skip",
    )


def add_series(
    fig: go.Figure,
    name: str,
    x: Sequence[Any],
    figures: Sequence[dict[str, Any] | None],
    color: str,
    symbol: str = "circle",
    dash: str = "solid",
    mode: str = "lines+markers",
    **place: Any,
) -> None:
    """Add the figures that are there with their intervals, and their single runs."""
    there = [(at, f) for at, f in zip(x, figures, strict=True) if f is not None and is_number(f["mean"])]
    if there:
        fig.add_trace(faint([(at, y) for at, f in there for y in f.get("each", ())], color), **place)
        text = [in_full(f) for _, f in there]
        fig.add_trace(
            go.Scatter(
                x=[at for at, _ in there],
                y=[f["mean"] for _, f in there],
                name=name,
                mode=mode,
                error_y=errors([f for _, f in there]),
                line={"color": color, "dash": dash},
                marker={"color": color, "size": 9, "symbol": symbol},
                text=text,
                hovertemplate="%{x}: %{text}<extra>" + name + "</extra>",
            ),
            **place,
        )


def add_rows(
    fig: go.Figure,
    series: Mapping[str, Mapping[str, Any]],
    looks: Sequence[tuple[str, str]] = MARKS,
    **place: Any,
) -> None:
    """Add series {name: {row: figure}} as points with their intervals, a row for each thing that is measured, the first
    at the top; in a row the series stand below each other, with their single runs. A plain number has no interval."""
    names = list(dict.fromkeys(row for by in series.values() for row in by))
    step = min(0.26, 0.75 / max(1, len(series)))
    for i, ((name, by), (color, symbol)) in enumerate(zip(series.items(), cycle(looks))):
        shift = (i - (len(series) - 1) / 2) * step
        found = {row: f if isinstance(f, dict) else {"mean": f, "low": f, "high": f} for row, f in by.items()}
        there = [(row, names.index(row) + shift, f) for row, f in found.items() if f and is_number(f["mean"])]
        if not there:
            continue
        fig.add_trace(faint([(y, at) for _, at, f in there for y in f.get("each", ())], color), **place)
        points = go.Scatter(
            x=[f["mean"] for _, _, f in there],
            y=[at for _, at, _ in there],
            name=plain(name, 60),
            mode="markers",
            marker={"color": color, "size": 9, "symbol": symbol},
            text=[f"{plain(row, 60)}: {in_full(f)}" for row, _, f in there],
            hovertemplate="%{text}<extra>" + plain(name, 60) + "</extra>",
        )
        if any("n" in f for _, _, f in there):
            points.update(error_x=errors([f for _, _, f in there]))
        fig.add_trace(points, **place)
    between = {"tickvals": [i + 0.5 for i in range(len(names) - 1)], "showgrid": True, "gridcolor": LINES}
    fig.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[plain(name, 40) for name in names],
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        minor=between,
        automargin=True,
        **place,
    )


def rows_high(rows: int, series: int = 1) -> int:
    """The height, in px, of a figure of `add_rows`, without a legend."""
    return 100 + rows * max(34, 18 * series)


def add_curve(
    fig: go.Figure,
    name: str,
    rows: Sequence[dict[str, Any]],
    x: str,
    y: str,
    color: str,
    dash: str = "solid",
    legend: bool = True,
    **place: Any,
) -> None:
    """Add a curve of plain numbers."""
    rows = [row for row in rows if isinstance(row.get(y), int | float)]
    if rows:
        fig.add_trace(
            go.Scatter(
                x=[row.get(x) for row in rows],
                y=[row[y] for row in rows],
                name=name,
                mode="lines",
                line={"color": color, "dash": dash, "width": 2},
                legendgroup=name,
                showlegend=legend,
                hovertemplate="%{x}: %{y:.3f}<extra>" + name + "</extra>",
            ),
            **place,
        )


def reported(x: Sequence[Any], y: Sequence[float], name: str, symbol: str, **line: Any) -> go.Scatter:
    """What the report found, in grey."""
    line, marker = {"color": GREY, "dash": "dash", **line}, {"symbol": symbol, "color": GREY}
    return go.Scatter(x=x, y=y, name=name, mode="lines+markers", line=line, marker=marker)


def one_legend(fig: go.Figure) -> None:
    """Name each series once, though it stands in several panels."""
    seen: set[str] = set()
    for trace in fig.data:
        if trace.name and trace.showlegend is not False:
            trace.update(legendgroup=trace.name, showlegend=trace.name not in seen)
            seen.add(trace.name)


def mark_line(fig: go.Figure, at: float, words: str, axis: str = "y", **place: Any) -> None:
    """A line across the figure, at a place of that axis, that says what it stands for."""
    line = {"color": GREY, "dash": "dot", "width": 1}
    if axis == "y":
        fig.add_hline(y=at, line=line, annotation_text=words, annotation_position="bottom right", **place)
    else:
        fig.add_vline(x=at, line=line, annotation_text=words, annotation_position="top", **place)
