"""What all widgets of the notebooks have in common: controls above, a picture below, and the same picture as plain HTML
where no widget can run (a viewer on the web, an exported page)."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as w

HERE = Path(__file__).parent
LABEL = {"description_width": "initial"}  # a control's description is shown whole
TRACK, LETTER, READOUT = 130, 7.2, 90  # px: what a slider's handle has to move in, a letter of its name, and its value


def wide(width: str | None = "320px") -> dict[str, Any]:
    """Style and layout of a control of that width."""
    return {"style": LABEL, "layout": w.Layout(width=width)}


def roomy(description: str, width: str | None = "320px", readout: int = 0) -> dict[str, Any]:
    """Style and layout of a slider: of that width, or of more where its name and its value, of `readout` letters, would
    leave its track less than TRACK."""
    needed = TRACK + round(LETTER * len(description)) + max(READOUT, round(LETTER * readout) + 20)
    given = int(width.removesuffix("px")) if width and width.endswith("px") else 300
    return {"style": LABEL, "layout": w.Layout(width=f"{max(given, needed)}px", max_width="100%")}


def slider(
    description: str, value: float, low: float, high: float, step: float = 1, width: str | None = "320px", **more: Any
) -> Any:
    """A slider over whole numbers, or over real ones where `value` is one."""
    kind = w.FloatSlider if isinstance(value, float) else w.IntSlider
    return kind(value, min=low, max=high, step=step, description=description, **roomy(description, width), **more)


def dropdown(description: str, options: Sequence[Any], value: Any = None, width: str | None = "320px") -> w.Dropdown:
    """Values, or (words, value), to choose from; the first one is chosen, or `value`."""
    made = w.Dropdown(options=options, description=description, **wide(width))
    if value is not None:
        made.value = value
    return made


def steps(
    description: str, options: Sequence[Any], value: Any, width: str | None = "320px", **more: Any
) -> w.SelectionSlider:
    """A slider over a few values, or (words, value)."""
    words = [str(option[0] if isinstance(option, tuple) else option) for option in options]
    return w.SelectionSlider(
        options=options, value=value, description=description, **roomy(description, width, max(map(len, words))), **more
    )


def button(description: str, tooltip: str, press: Callable[[], Any], **more: Any) -> w.Button:
    made = w.Button(description=description, tooltip=tooltip, **more)
    made.on_click(lambda _: press())
    return made


def with_html(bundle: Any, page: str) -> Any:
    """What a widget gives Jupyter to show, and the HTML that stands where no widget can run."""
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    if data:
        data["text/html"] = page
    return bundle


class Names(anywidget.AnyWidget):
    """Seen by nobody: gives the sliders beside it the names and the values that stand around them, for screen readers
    (ipywidgets leaves a handle without), and lists that open an arrow that is seen on dark pages."""

    _esm, _css = HERE / "explorer.js", HERE / "explorer.css"


class Explorer(w.VBox):
    """Controls above, a picture below. `draw` is called at the start and at each change of a control. What it raises is
    shown in words, and nothing is lost. Threads may call `redraw`: pictures are drawn one after the other, so the last
    one is that of the controls as they are."""

    def __init__(self, title: str, controls: Sequence[w.Widget], watch: bool = True, below: Sequence[w.Widget] = ()):
        self._drawing = threading.RLock()
        self.picture = w.HTML(layout=w.Layout(width="100%"))
        head = w.HTML(f"<strong>{html.escape(title)}</strong>")
        box = w.Box(
            list(controls),
            layout=w.Layout(flex_flow="row wrap", align_items="center", width="100%", overflow="visible"),
        )
        whole = [head, box, self.picture, *below, Names()]
        super().__init__(whole, layout=w.Layout(width="100%", overflow="visible"))
        self.add_class("l2-explorer")
        self.redraw()
        for control in controls if watch else ():
            if control.has_trait("value"):
                control.observe(self.redraw, "value")

    def draw(self) -> str:
        """The picture as HTML, for the controls as they are now."""
        raise NotImplementedError

    def redraw(self, _: Any = None) -> None:
        with self._drawing:
            try:
                self.picture.value = self.draw()
            except Exception as e:  # a widget never dies of its input: the reason stands where the picture was
                self.picture.value = f"<p>{html.escape(type(e).__name__)}: {html.escape(str(e)[:500])}</p>"

    def static(self) -> str:
        """The picture as it is now, as HTML."""
        return self.picture.value

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return with_html(super()._repr_mimebundle_(**kwargs), self.static())
