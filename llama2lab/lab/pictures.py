"""Small live pictures as SVG text: light enough to be redrawn at every move of a slider (a plotly FigureWidget carries
4 MB each), and seen where no widget can run. Colours are those of `look`; text and lines take the page's colour, so
that they read on light and dark. Every label is escaped; every picture says in words what it shows.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence

from llama2lab.report.look import BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, tame

TEXT = 13  # units of a drawing, which a column of 520 px and more shows as px: a notebook of 700 px has one of 560
COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY)
Points = Sequence[tuple[float, float]]


def svg(body: str, width: int, height: int, words: str) -> str:
    """An SVG element that scales down with its column. `words` is what a screen reader says."""
    return (
        f'<svg role="img" aria-label="{html.escape(words)}" viewBox="0 0 {width} {height}" '
        f'style="width: 100%; max-width: {width}px; height: auto; font: {TEXT}px system-ui, sans-serif; '
        f'color: var(--jp-content-font-color1, currentColor)">{body}</svg>'
    )


def label(x: float, y: float, text: str, anchor: str = "start", opacity: float = 0.85) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{TEXT}" fill="currentColor" '
        f'opacity="{opacity}">{html.escape(tame(text))}</text>'
    )


def number(value: float) -> str:
    """A number as short as it can be said: three digits that count."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def bars(
    values: Sequence[tuple[str, float]],
    words: str,
    top: float | None = None,
    colours: Sequence[str] = (),
    width: int = 520,
) -> str:
    """Horizontal bars, one a row, each with its name and its number. Values are at least 0."""
    row, longest = 24, max((len(name) for name, _ in values), default=0)
    left = min(width // 2, max(150, 12 + round(0.6 * TEXT * longest)))  # wide enough for the names
    most = max(top if top is not None else max((v for _, v in values), default=1.0), 1e-12)
    body = ""
    for i, (name, value) in enumerate(values):
        long = max(0.0, min(1.0, value / most)) * (width - left - 70)
        colour = colours[i % len(colours)] if colours else BLUE
        body += (
            label(left - 8, i * row + 16, name, "end")
            + f'<rect x="{left}" y="{i * row + 4}" width="{long:.1f}" height="{row - 8}" rx="2" fill="{colour}"/>'
            + label(left + long + 6, i * row + 16, number(value))
        )
    return svg(body, width, max(row, row * len(values)), words)


def axes(
    across: tuple[int, int],
    down: tuple[int, int],
    x_ends: tuple[float, float],
    y_ends: tuple[float, float],
    x: str,
    y: str,
) -> str:
    """Two axes with the ends of their range and their names, y's above them; `across` and `down` are pixels."""
    (left, end), (top, floor) = across, down
    return (
        f'<path d="M{left} {top}V{floor}H{end}" fill="none" stroke="currentColor" opacity="0.4"/>'
        + label(left - 6, floor, number(y_ends[0]), "end")
        + label(left - 6, top + 10, number(y_ends[1]), "end")
        + label(left, floor + 16, number(x_ends[0]), "middle")
        + label(end, floor + 16, number(x_ends[1]), "middle")
        + label((left + end) / 2, floor + 32, x, "middle")
        + label(left, top - 11, y)
    )


def lines(
    series: Sequence[tuple[str, Points]],
    words: str,
    x: str = "",
    y: str = "",
    width: int = 540,
    height: int = 250,
    y_range: tuple[float, float] | None = None,
    marks: Points = (),
    dots: bool = False,
) -> str:
    """Curves in one panel with their names at the right, axes with the ends of their range, and marked points."""
    points = [p for _, one in series for p in one if all(map(math.isfinite, p))] + list(marks)
    left, right, top, bottom = 56, 140, 28 if y else 10, 42  # the name of the axis stands above the curves
    x_low, x_high = (min(p[0] for p in points), max(p[0] for p in points)) if points else (0.0, 1.0)
    y_low, y_high = y_range or ((min(p[1] for p in points), max(p[1] for p in points)) if points else (0.0, 1.0))
    x_high, y_high = (x_high if x_high > x_low else x_low + 1), (y_high if y_high > y_low else y_low + 1)

    def at(p: tuple[float, float]) -> tuple[float, float]:
        share = max(0.0, min(1.0, (p[1] - y_low) / (y_high - y_low)))
        return (
            left + (p[0] - x_low) / (x_high - x_low) * (width - left - right),
            top + (1 - share) * (height - top - bottom),
        )

    end = width - right
    body = axes((left, end), (top, height - bottom), (x_low, x_high), (y_low, y_high), x, y)
    names: list[float] = []
    for i, (name, one) in enumerate(series):
        kept = [at(p) for p in one if all(map(math.isfinite, p))]
        if not kept:
            continue
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in kept)
        body += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        if dots or len(kept) == 1:
            body += "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in kept)
        place = kept[-1][1] + 4
        while any(abs(place - other) < 16 for other in names):  # names do not lie on each other
            place += 16
        if place > height - bottom + 4:  # no room above the axis: upwards
            place = kept[-1][1] + 4
            while any(abs(place - other) < 16 for other in names):
                place -= 16
        names.append(place)
        body += f'<rect x="{end + 8}" y="{place - 9:.1f}" width="9" height="9" fill="{colour}"/>'
        body += label(end + 21, place, name)
    for a, b in map(at, marks):
        body += f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" fill="none" stroke="currentColor" stroke-width="2"/>'
    return svg(body, width, height, words)


def plane(
    points: Sequence[tuple[str, dict[str, float], dict[str, float]]],
    at: int,
    words: str,
    x: str = "",
    y: str = "",
    width: int = 540,
    height: int = 330,
) -> str:
    """Named points with their 95 % intervals in both directions ({mean, low, high}), joined in order up to `at`, which
    is marked; later ones are faint."""
    left, right, top, bottom = 56, 20, 28, 42
    ends = [[f(p[k]) for p in points for f in (lambda g: g["low"], lambda g: g["high"])] for k in (1, 2)]
    (x_low, x_high), (y_low, y_high) = ((min(e), max(max(e), min(e) + 1e-9)) if e else (0.0, 1.0) for e in ends)

    def across(v: float) -> float:
        return left + (v - x_low) / (x_high - x_low) * (width - left - right)

    def up(v: float) -> float:
        return top + (1 - (v - y_low) / (y_high - y_low)) * (height - top - bottom)

    body = axes((left, width - right), (top, height - bottom), (x_low, x_high), (y_low, y_high), x, y)
    path = " ".join(f"{across(p[1]['mean']):.1f},{up(p[2]['mean']):.1f}" for p in points[: at + 1])
    body += f'<polyline points="{path}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>'
    for i, (name, h, v) in enumerate(points):
        a, b, strong = across(h["mean"]), up(v["mean"]), i == at
        if strong:
            cross = f"M{across(h['low']):.1f} {b:.1f}H{across(h['high']):.1f}"
            cross += f"M{a:.1f} {up(v['low']):.1f}V{up(v['high']):.1f}"
            body += f'<path d="{cross}" stroke="{ORANGE}" stroke-width="1.5"/>'
        body += f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{7 if strong else 4}" fill="{ORANGE if strong else BLUE}" '
        body += f'opacity="{1 if i <= at else 0.3}"/>'
        body += label(a + 9, b - 8 if i % 2 else b + 16, name)
    return svg(body, width, height, words)


def heatmap(
    values: Sequence[Sequence[float | None]],
    words: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    colour: str = BLUE,
    cell: int = 22,
    most: float = 1.0,
) -> str:
    """A table of squares, the darker the larger; None is hatched out (what a mask hides). Hovering tells the number."""
    left = 12 + max((8 * len(r) for r in rows), default=0)
    top = 12 + max((8 * len(c) for c in columns), default=0)
    body = ""
    for j, name in enumerate(columns):
        x = left + j * cell + cell / 2 + 4
        body += f'<g transform="rotate(-90 {x:.1f} {top - 6})">{label(x, top - 6, name)}</g>'
    for i, line in enumerate(values):
        if i < len(rows):
            body += label(left - 6, top + i * cell + cell * 0.7, rows[i], "end")
        for j, value in enumerate(line):
            place = f'x="{left + j * cell}" y="{top + i * cell}" width="{cell - 1}" height="{cell - 1}"'
            if value is None:
                body += f'<rect {place} fill="none" stroke="currentColor" opacity="0.12"/>'
            else:
                names = f"{rows[i] if i < len(rows) else i} / {columns[j] if j < len(columns) else j}"
                body += (
                    f'<rect {place} fill="{colour}" fill-opacity="{max(0.04, min(1.0, value / most)):.3f}">'
                    f"<title>{html.escape(tame(names))}: {value:.3f}</title></rect>"
                )
    widest = max((len(line) for line in values), default=0)
    return svg(body, left + widest * cell + 4, top + len(values) * cell + 4, words)


def cell(text: str) -> str:
    """A text as a table's cell holds it, escaped; long words may be broken, so that the table fits a narrow page."""
    words = re.split(r"([^\s-]{16,})", tame(text))  # every other one is long; a hyphen is a place to break by itself
    parts = [[w] if i % 2 == 0 else re.findall(r"[^._/]{1,12}[._/]*|[._/]+", w) for i, w in enumerate(words)]
    return "".join("<wbr>".join(map(html.escape, part)) for part in parts)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain HTML table; everything in it is escaped."""

    def line(tag: str, cells: Sequence[object], more: str = "") -> str:
        style = 'style="text-align: left; padding: 2px 8px; vertical-align: top"'
        return f"<tr>{''.join(f'<{tag}{more} {style}>{cell(str(c))}</{tag}>' for c in cells)}</tr>"

    head, body = line("th", header, ' scope="col"'), "".join(line("td", row) for row in rows)
    look = "border-collapse: collapse; line-height: 1.35; color: var(--jp-content-font-color1, inherit)"
    return f'<table style="{look}"><thead>{head}</thead><tbody>{body}</tbody></table>'
