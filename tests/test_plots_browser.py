"""Figures and drawings as a browser draws them in a notebook of 700 px, light and dark: every text has 12 px and a
contrast of 4.5 with the page, and no title, tick or legend lies on another."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import annotation_browser as real
import pytest
from plot_rules import READABLE, SMALLEST, contrast
from plotly.offline import get_plotlyjs
from test_plots import BLACK, FIGURES, OF_RESULTS, WHITE

from llama2lab.lab import pictures
from llama2lab.lab.chips import chips, packed_picture, pieces
from llama2lab.lessons.n02_transformer.widget_attention import AttentionExplorer
from llama2lab.lessons.n02_transformer.widget_calculator import CacheCalculator
from llama2lab.lessons.n06_rewards.widget_margin import MarginExplorer
from llama2lab.lessons.n10_rounds.widget_versions import VersionsExplorer
from llama2lab.report.look import plots_css

pytestmark = pytest.mark.browser
real.skip_without_browser()

COLUMN = 560  # px: what a notebook of 700 px has for outputs
PAGES = {  # JupyterLab's colours of text and of the notebook
    "light": {"--jp-content-font-color1": "#212121", "background": WHITE},
    "dark": {"--jp-content-font-color1": "#ffffff", "background": BLACK},
}
TEXTS = """(where) => [...document.querySelectorAll(where)].filter(e => e.textContent.trim()).map(e => {
    const look = getComputedStyle(e), svg = e instanceof SVGElement, box = e.getBoundingClientRect();
    const grown = svg ? Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b) : 1;
    let seen = 1;
    for (let up = e; up; up = up.parentElement) seen *= Number(getComputedStyle(up).opacity);
    return { text: e.textContent.slice(0, 60), size: parseFloat(look.fontSize) * grown, seen,
      colour: svg ? look.fill : look.color, inside: e.classList.contains("bartext-inside"),
      figure: e.closest("[data-figure]")?.dataset.figure, box: [box.left, box.top, box.right, box.bottom],
      point: Boolean(e.closest(".textpoint, .scatterlayer, .barlayer")) };
})"""


def page_html(body: str, colours: dict[str, str], script: str = "") -> str:
    rules = "; ".join(f"{name}: {value}" for name, value in colours.items())
    look = f"body {{ margin: 8px; font: 13px sans-serif; color: var(--jp-content-font-color1); {rules} }}"
    return f'<!doctype html><meta charset="utf-8"><style>{look} {plots_css()}</style>{script}{body}'


def mixed(colour: str, seen: float, page: str) -> str:
    """The colour "rgb(...)", as faint as it is seen on the page, as "#rrggbb"."""
    parts = [float(x) for x in re.findall(r"[\d.]+", colour)]
    share = seen * (parts[3] if len(parts) > 3 else 1.0)
    under = [int(page[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(share * c + (1 - share) * u):02x}" for c, u in zip(parts, under, strict=False))


def unreadable(texts: list[dict[str, Any]], page: str) -> list[str]:
    found = []
    for one in texts:
        where = f"{one['figure'] or ''}: {one['text']!r}"
        if one["size"] < SMALLEST - 0.05:
            found.append(f"{where} has {one['size']:.1f} px")
        if not one["inside"] and contrast(mixed(one["colour"], one["seen"], page), page) < READABLE:
            found.append(f"{where} is faint: {one['colour']} on {page}")
    return found


def on_each_other(texts: list[dict[str, Any]]) -> list[str]:
    """Names of axes, ticks, legends and notes that cover a good part of another; names of points may."""
    found, fixed = [], [t for t in texts if not t["point"]]
    for i, a in enumerate(fixed):
        for b in fixed[i + 1 :]:
            if a["figure"] == b["figure"]:
                wide = min(a["box"][2], b["box"][2]) - max(a["box"][0], b["box"][0])
                high = min(a["box"][3], b["box"][3]) - max(a["box"][1], b["box"][1])
                if wide > 3 and high > 5:
                    found.append(f"{a['figure']}: {a['text']!r} on {b['text']!r}")
    return found


# Texts of drawings that do not fit into them.
CUT = """() => [...document.querySelectorAll('svg text')].filter(t => {
  const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
  return a.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 2 || a.bottom > b.bottom + 2);
}).map(t => `${t.closest('[data-figure]').dataset.figure}: ${t.textContent}`)"""


@pytest.fixture(scope="module")
def browser():
    with real.chromium() as running:
        yield running


@pytest.fixture(scope="module")
def figures(lab) -> dict[str, Any]:
    drawn = {name: draw(lab) for name, draw in FIGURES.items()}
    return drawn | {f"plots.{draw.__name__}": draw(lab.figures) for draw in OF_RESULTS}


@pytest.mark.parametrize("theme", PAGES)
def test_the_texts_of_every_figure_are_read(theme: str, figures, browser, tmp_path: Path) -> None:
    (tmp_path / "plotly.js").write_text(get_plotlyjs(), encoding="utf-8")
    body = "".join(
        f'<div data-figure="{name}" style="width: {COLUMN}px">'
        + figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
        + "</div>"
        for name, figure in figures.items()
    )
    page_file = tmp_path / "page.html"
    page_file.write_text(page_html(body, PAGES[theme], '<script src="plotly.js"></script>'), encoding="utf-8")
    with real.page_of(browser, viewport={"width": 700, "height": 900}) as page:
        page.goto(page_file.as_uri())
        page.wait_for_function("n => document.querySelectorAll('.main-svg .infolayer').length >= n", arg=len(figures))
        texts = page.evaluate(TEXTS, ".main-svg text")
        assert {one["figure"] for one in texts} == set(figures)
        assert unreadable(texts, PAGES[theme]["background"]) == [] == on_each_other(texts)
        assert page.evaluate(CUT) == []


CURVES = [(f"series {i}", [(x, x * i) for x in range(5)]) for i in range(3)]
FIGURE = {"mean": 0.5, "low": 0.4, "high": 0.6}
DRAWN: dict[str, Callable[[Any], str]] = {
    "bars": lambda lab: pictures.bars([("a long name of a row", 3.0), ("b", 12345.0)], "bars"),
    "lines": lambda lab: pictures.lines(CURVES, "lines", "tokens of the answer", "score (logit)", dots=True),
    "plane": lambda lab: pictures.plane([("SFT", FIGURE, FIGURE), ("V1", FIGURE, FIGURE)], 0, "plane", "x", "y"),
    "heatmap": lambda lab: pictures.heatmap([[1.0] * 32] * 32, "mask", ["·opposite"] * 32, ["·of"] * 32, cell=16),
    "table": lambda lab: pictures.table(("a", "b"), [[1, 2]]),
    "long words": lambda lab: pictures.table([*"abcde"], [["`subprocess.check_command()` and more of it " * 3] * 5]),
    "chips": lambda lab: chips(pieces(lab.tokenizer, "Mira lives on Forest Road.")),
    "packing": lambda lab: packed_picture(_packed()),
    "attention": lambda lab: AttentionExplorer(lab).draw(),
    "calculator": lambda lab: CacheCalculator().draw(),
    "margin": lambda lab: MarginExplorer().draw(),
    "versions": lambda lab: VersionsExplorer(lab).draw(),
}


def _packed() -> Any:
    from llama2lab.engine.packing import pack

    return pack([([5] * n, [1] * n) for n in (9, 4, 17, 6)], 24, 0, 3)


@pytest.mark.parametrize("theme", PAGES)
def test_the_texts_of_every_drawing_are_read(theme: str, browser, lab) -> None:
    body = "".join(
        f'<div data-figure="{name}" style="width: {COLUMN}px">{draw(lab)}</div>' for name, draw in DRAWN.items()
    )
    with real.page_of(browser, viewport={"width": 700, "height": 900}) as page:
        page.set_content(page_html(body, PAGES[theme]))
        texts = page.evaluate(TEXTS, "svg text, td, th, p, span, code")
        assert {one["figure"] for one in texts} == set(DRAWN)
        said = [one for one in texts if "■" not in one["text"] and "□" not in one["text"]]  # the colours of a legend
        assert unreadable(said, PAGES[theme]["background"]) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 700
        assert page.evaluate(CUT) == []


def test_what_cannot_be_read_is_found() -> None:
    text = {"figure": "f", "text": "a", "size": 11.0, "colour": "rgb(150, 150, 150)", "seen": 1.0, "inside": False,
            "point": False, "box": [0, 0, 30, 15]}  # fmt: skip
    assert len(unreadable([text], WHITE)) == 2 and unreadable([text | {"size": 13.0}], BLACK) == []
    assert unreadable([text | {"size": 13.0, "colour": "rgba(0, 0, 0, 0.87)", "seen": 0.25}], WHITE) != []
    assert on_each_other([text, text | {"text": "b"}]) == ["f: 'a' on 'b'"]
    assert on_each_other([text, text | {"box": [40, 0, 60, 15]}]) == []
