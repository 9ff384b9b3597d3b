"""A student's own output as a picture: what `Exercise.picture` is made of.

The lessons' `own_output.py` ask the student's function for a handful of values that are chosen to be seen, and draw
them here. A value may be anything, although the check has passed: `numbers` and `texts` raise Mistake for what cannot
be drawn, and `checking.picture_of` then shows no picture.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

from llama2lab.lab.checking import Mistake
from llama2lab.lab.compare import read
from llama2lab.lab.pictures import Points, lines

Answer = Callable[..., Any]  # the student's function, asked in its own process
WIDTH, HEIGHT = 520, 220  # pixels; a notebook's column at a window of 700 holds it unscaled


def own(title: str, *pictures: str, note: str = "") -> str:
    """Pictures, as HTML, under a title that says whose they are; `note` says how they are read."""
    said = f'<p style="margin: 0.3em 0 0">{html.escape(note)}</p>' if note else ""
    return (
        '<figure style="margin: 0.8em 0 0.4em"><figcaption style="font-weight: 600; margin-bottom: 0.4em">'
        f"{html.escape(title)}</figcaption>{''.join(pictures)}{said}</figure>"
    )


def own_curves(
    title: str,
    series: Sequence[tuple[str, Points]],
    x: str,
    y: str,
    note: str = "",
    **more: Any,
) -> str:
    """Curves in one panel, each with its name; `more` as `pictures.lines` takes it. Where nothing lies below 0 and no
    range is given, the axis begins there."""
    values = [place[1] for _, one in series for place in one]
    if min(values) >= 0:
        more.setdefault("y_range", (0.0, max(values)))
    return own(title, lines(series, title, x, y, WIDTH, HEIGHT, **more), note=note)


def beside(*pictures: tuple[str, str]) -> str:
    """Pictures beside each other, as far as there is room, each under its name."""
    cells = "".join(f"<div><div>{html.escape(name)}</div>{picture}</div>" for name, picture in pictures)
    return f'<div style="display: flex; flex-wrap: wrap; gap: 0.8em 1.4em">{cells}</div>'


def numbers(value: Any, *shape: int) -> Any:
    """The value as nested lists of that shape, of one number as a float; raises Mistake for anything else."""
    tensor = read(value, shape)
    if not tensor.isfinite().all():
        raise Mistake("What is infinite cannot be drawn.")
    return tensor.double().tolist()


def texts(value: Any, most: int) -> list[str]:
    """The value as at most so many texts; raises Mistake for anything else."""
    if not isinstance(value, list | tuple) or len(value) > most or not all(isinstance(text, str) for text in value):
        raise Mistake(f"At most {most} texts are expected.")
    return list(value)


def spaced(low: float, high: float, many: int) -> list[float]:
    """So many numbers from `low` to `high`, equally far apart."""
    return [low + (high - low) * i / (many - 1) for i in range(many)]
