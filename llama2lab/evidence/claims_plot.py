"""The forest plot of claims: every claim of the report that is tested here, what the report says, and our differences
with their intervals on one axis.

claims_plot("06")    # those of one notebook; claims_plot() for all, to be filtered

The axis counts each difference in halves of its own 95 % interval, so that accuracies, losses and bytes stand on one
scale: what decides is whether the interval leaves 0 out. More data would shrink an interval with the root of its n if
mean and spread stayed as they are; a slider plays that through.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama2lab.engine.paths import DATA
from llama2lab.evidence.claims import CLAIMS, OPEN, Claim, count, needed, over_seeds, price, verdict
from llama2lab.evidence.page import figure_words, number
from llama2lab.evidence.stored import Figure, Stored, read_stored
from llama2lab.lab.picture import Picture
from llama2lab.lessons.recipe_map import notebook_files
from llama2lab.report.look import tame

NOTHING = "No evidence is stored here; a checkout of the project holds it in data/."
# Of a claim's verdict: never colour alone.
SIGNS = {
    "seen": "\u2713",
    "seen in part": "\u2713?",
    "seen and refuted in part": "\u2713\u2717",
    "refuted in part": "\u2717?",
    "refuted": "\u2717",
    "not decided": "?",
    "not measured": "\u2013",
    "reading": "\u2013",
}


def figure_row(words: str, figure: Figure, unit: str) -> dict[str, Any]:
    """One difference as the plot draws and says it. `place` is (mean, low, high) in halves of its interval; None for a
    difference that was counted and has none. `grows` is whether more data would decide it, as far as one can say."""
    half = (figure["high"] - figure["low"]) / 2
    many = number(figure["n"]) + (f" in {figure['runs']} seeds" if over_seeds(figure) else "")
    return {
        "words": words,
        "shown": figure_words(figure),
        "n": f"{many} {'' if over_seeds(figure) else unit}".strip(),
        "verdict": verdict(figure),
        "price": price(figure, unit),
        "mean": figure["mean"],
        "place": [figure[end] / half for end in ("mean", "low", "high")] if half > 0 else None,
        "grows": verdict(figure) == OPEN and (needed(figure) is not None or figure["low"] <= 0 <= figure["high"]),
    }


def claim_row(claim: Claim, s: Stored, files: dict[str, str]) -> dict[str, Any]:
    """A claim with its verdict and all its figures."""
    said = claim.verdict(s)
    return {
        "number": claim.number,
        "words": claim.words,
        "report": claim.report,
        "notebook": claim.notebook,
        "file": files.get(claim.notebook, ""),
        "verdict": said,
        "sign": SIGNS[said],
        "figures": [figure_row(words, figure, claim.unit) for words, figure in claim.figures(s)],
    }


def claims_data(s: Stored, claims: Sequence[Claim] = CLAIMS) -> dict[str, Any]:
    """What the plot shows of these claims."""
    files = notebook_files()
    return {"claims": [claim_row(c, s, files) for c in claims], "counts": count(s, claims)}


class ClaimsPlot(Picture):
    """The plot of `claims_data`."""

    def static(self) -> str:
        """All of it as a table."""

        def cell(text: object, tag: str = "td", more: str = "") -> str:
            style = 'style="text-align: left; padding: 2px 10px; vertical-align: top"'
            return f"<{tag} {style}{more}>{html.escape(tame(str(text)))}</{tag}>"

        if not self.data["claims"]:
            return f"<p>{NOTHING}</p>"
        head = ("claim", "the report", "measured here: above 0 if the report is right", "interval", "n", "verdict")
        names = "".join(cell(words, "th", ' scope="col"') for words in head)
        body = f"<thead><tr>{names}</tr></thead>"
        for claim in self.data["claims"]:
            rows = [[f["words"], f["shown"], f["n"], f"{f['verdict']} {f['price']}"] for f in claim["figures"]]
            first = cell(f"{claim['number']} {claim['words']}", "th", ' scope="row"') + cell(claim["report"])
            said = f"{claim['sign']} {claim['verdict']}"
            body += f"<tr>{first}{cell('')}{cell('')}{cell('')}{cell(said, 'th')}</tr>"
            body += "".join(f"<tr>{cell('') * 2}{''.join(map(cell, row))}</tr>" for row in rows)
        style = "border-collapse: collapse; color: var(--jp-content-font-color1, inherit)"
        return f'<table style="{style}"><caption>The report\'s claims, tested here</caption>{body}</table>'


def claims_plot(notebook: str = "", undecided: bool = False, data: Path = DATA) -> ClaimsPlot:
    """The plot of the claims that a notebook tests, such as "06"; of all where none is named; `undecided`: of those
    with a difference that its interval does not decide. `data` is the folder that holds the stored evidence; an
    installed wheel brings none, and the plot says so. LabError where it is damaged."""
    if not (data / "seeds").is_dir():
        return ClaimsPlot(data={"claims": [], "counts": {}})
    stored = read_stored(data)
    those = [c for c in CLAIMS if notebook in ("", c.notebook) and not (undecided and not open_figures(c, stored))]
    return ClaimsPlot(data=claims_data(stored, those))


def open_figures(claim: Claim, s: Stored) -> list[tuple[str, Figure]]:
    """The differences of a claim that their intervals do not decide."""
    return [(words, figure) for words, figure in claim.figures(s) if verdict(figure) == OPEN]


def undecided_table(data: Path = DATA) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Header and rows of what is not decided, and what it would take to decide it."""
    header = ("claim", "difference, above 0 if the report is right", "measured", "what would decide it")
    stored = read_stored(data) if (data / "seeds").is_dir() else None
    rows: list[tuple[str, ...]] = [
        (f"{claim.number} {claim.words}", words, figure_words(figure), price(figure, claim.unit))
        for claim in CLAIMS
        for words, figure in (open_figures(claim, stored) if stored else ())
    ]
    return header, rows
