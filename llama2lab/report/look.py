"""The look of every figure and page. Colours are those of Okabe and Ito, which colour-blind people tell apart; every
series of a figure also has a mark of its own. Backgrounds are clear. Texts of a figure take the page's colour where it
has `plots.css`, which every page and every notebook brings; no single grey can be read on both white and near-black.
Imports nothing heavy."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import plotly.graph_objects as go

BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#888888"
MARKS = ((BLUE, "circle"), (ORANGE, "diamond"), (GREEN, "square"), (PINK, "triangle-up"), (SKY, "star"), (RED, "cross"))
INK, LINES = "#767676", "rgba(128,128,128,0.25)"  # 4.5 to 1 on white, for pages without a style sheet
TEXT = 13  # px of every text in a figure; none is under 12


NARROW = 480  # px that a legend has at least, in a notebook of 700 px


def style(
    fig: go.Figure, x: str = "", y: str = "", height: int = 330, legend: bool = True, left: int = 60, below: int = 52
) -> go.Figure | None:
    """The look of every figure, and the titles of its axes; None for a figure without data. `height` is without the
    legend, which stands at the bottom; `below` is what the horizontal axis needs, both in px."""
    if not fig.data:
        return None
    more = 20 * _legend_lines(fig) + 16 if legend else 0
    top = 50 if any("<br>" in (a.text or "") for a in fig.layout.annotations) else 30
    fig.update_layout(
        height=height + more,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=legend,
        font={"family": "system-ui, sans-serif", "size": TEXT, "color": INK},
        hovermode="closest",
        margin={
            "l": left,
            "r": 30,
            "t": top,
            "b": below + more,
        },
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
    )
    for axes, title in ((fig.update_xaxes, x), (fig.update_yaxes, y)):
        axes(gridcolor=LINES, zerolinecolor=LINES, linecolor=LINES, title_standoff=8, title_font_size=TEXT + 1)
        if title:
            axes(title_text=title)
    return fig.update_annotations(font={"size": TEXT, "color": INK})


def _legend_lines(fig: go.Figure) -> int:
    """Lines of the legend in a narrow column: where the names do not fit in one, they stand in columns."""
    names = {trace.name for trace in fig.data if trace.name and trace.showlegend is not False}
    wide = [50 + 7 * len(re.sub(r"&\w+;|<[^>]*>", "x", name)) for name in names]
    return 1 if sum(wide) <= NARROW else -(-len(wide) // max(1, NARROW // max(wide)))


def errors(figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Plotly's error bars of figures, from the mean to the ends of the interval."""
    return {
        "type": "data",
        "symmetric": False,
        "thickness": 1.5,
        "width": 4,
        "array": [f["high"] - f["mean"] for f in figures],
        "arrayminus": [f["mean"] - f["low"] for f in figures],
    }


def tame(text: str) -> str:
    """The text in one line without what cannot be seen: control characters and the marks that turn the direction of
    the text after them around become blanks."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)


def plain(text: str, longest: int = 28) -> str:
    """A name for a figure, as it is written: plotly would read <b> and <a href> in it. A long name is cut."""
    shown = tame(text)
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")


def plots_css() -> str:
    """What gives the texts of figures the colour of their page."""
    return _template("plots.css")


def css() -> str:
    """The style sheet of every page."""
    return _template("page.css") + plots_css()


def _template(name: str) -> str:
    return resources.files("llama2lab").joinpath("report/templates", name).read_text(encoding="utf-8")


@dataclass
class Section:
    """One part of the page: a sentence on what it shows, a figure, a sentence on what to look at, tables."""

    title: str
    text: str
    look: str = ""
    figure: go.Figure | None = None
    tables: list[tuple[list[str], list[list[Any]]]] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def html(self) -> str:
        if self.figure is None:
            return ""
        config = {"displayModeBar": False, "responsive": True}  # a double click undoes a zoom
        return self.figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"fig-{self.anchor}", config=config)
