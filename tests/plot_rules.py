"""What a figure must be that one can read, held of the figure itself; the colours of its texts on a page are held in a
browser (`test_plots_browser.py`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go

SMALLEST = 12  # px
READABLE = 4.5  # contrast of text, to 1 (WCAG 2, AA)


def faults(figure: go.Figure | dict[str, Any]) -> list[str]:
    """What one cannot read in it, a line each."""
    drawn = go.Figure(figure)
    return [*_small(drawn), *_nameless_axes(drawn), *_lines_between_kinds(drawn), *_nameless_series(drawn),
            *_second_scales(drawn), *_faint(drawn)]  # fmt: skip


def contrast(one: str, other: str) -> float:
    """The contrast of two colours "#rrggbb" (WCAG 2.2, relative luminance)."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour.lstrip("#")[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _fonts(part: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key.endswith("font") and isinstance(value, dict):
                yield f"{path}.{key}", value
            yield from _fonts(value, f"{path}.{key}")
    elif isinstance(part, list | tuple):
        for i, value in enumerate(part):
            yield from _fonts(value, f"{path}[{i}]")


def _own(fig: go.Figure) -> dict[str, Any]:
    """The figure without its template."""
    whole = fig.to_plotly_json()
    return {**whole, "layout": {k: v for k, v in whole["layout"].items() if k != "template"}}


def _small(fig: go.Figure) -> Iterator[str]:
    if not fig.layout.font.size:
        yield "the font of the figure has no size"
    for path, font in _fonts(_own(fig)):
        if font.get("size", SMALLEST) < SMALLEST:
            yield f"{path} has {font['size']} px"


def _axes(fig: go.Figure, letter: str) -> Iterator[tuple[str, Any, list[Any]]]:
    """(name, axis, traces on it)"""
    for name in fig.layout.to_plotly_json():
        if re.fullmatch(f"{letter}axis\\d*", name):
            short = name.replace("axis", "")
            traces = [t for t in fig.data if (getattr(t, f"{letter}axis", None) or letter) == short]
            yield name, fig.layout[name], traces


def _nameless_axes(fig: go.Figure) -> Iterator[str]:
    for letter in "xy":
        for name, axis, traces in _axes(fig, letter):
            if traces and axis.visible is not False and axis.showticklabels is not False and not axis.title.text:
                yield f"{name} has no title"


def _is_kind(value: Any) -> bool:
    """Whether a place is a kind of thing, not a place on a scale or a numbered one."""
    return isinstance(value, str) and not re.match(r"\s*[-−+]?[\d.]", re.sub(r"<[^>]*>", "", value))


def _lines_between_kinds(fig: go.Figure) -> Iterator[str]:
    for letter in "xy":
        for name, axis, traces in _axes(fig, letter):
            kinds = any(map(_is_kind, axis.ticktext or ()))
            for trace in traces:
                if trace.type == "scatter" and "lines" in (trace.mode or "lines"):
                    places = list(getattr(trace, letter) if getattr(trace, letter) is not None else ())
                    if kinds or (any(map(_is_kind, places)) and len(set(places)) > 1):
                        yield f"{trace.name} joins kinds on {name}"


def _nameless_series(fig: go.Figure) -> Iterator[str]:
    shown = [t for t in fig.data if t.visible is not False and t.showlegend is not False and t.type != "box"]
    names = {t.name for t in shown}  # a box is named by its row
    one_a_panel = len({(t.xaxis, t.yaxis) for t in shown}) >= len(names)  # then the panel says what it shows
    if len(names) > 1 and not fig.layout.showlegend and not one_a_panel:
        yield f"{len(names)} series and no legend"
    if fig.layout.showlegend and None in names:
        yield "a series of the legend has no name"


def _second_scales(fig: go.Figure) -> Iterator[str]:
    for letter in "xy":
        for name, axis, _ in _axes(fig, letter):
            if axis.overlaying:
                yield f"{name} lies over {axis.overlaying}: two scales in one panel"


def _faint(fig: go.Figure) -> Iterator[str]:
    """Texts take the colour of the figure, which pages replace by their own; what stands in a bar contrasts with it."""
    ink = fig.layout.font.color
    if contrast(ink, "#ffffff") < READABLE:
        yield f"text in {ink} on white"
    for path, font in _fonts(_own(fig)):
        if not path.endswith("insidetextfont") and font.get("color", ink) != ink:
            yield f"{path} has a colour of its own: {font['color']}"
    for trace in fig.data:
        if trace.type == "bar" and trace.textposition == "inside":
            own = trace.insidetextfont.color
            if not own or contrast(own, trace.marker.color) < READABLE:
                yield f"{trace.name}: text in {own} on {trace.marker.color}"
