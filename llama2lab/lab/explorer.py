"""What all widgets of the notebooks have in common: controls above, a picture below, and the same picture as plain HTML
where no widget can run (a viewer on the web, an exported page)."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as w

LABEL = {"description_width": "initial"}  # a control's description is shown whole


def wide(width: str = "320px") -> dict[str, Any]:
    """Style and layout of a control of that width."""
    return {"style": LABEL, "layout": w.Layout(width=width)}


class Explorer(w.VBox):
    """Controls above, a picture below. `draw()` gives the picture as HTML text and reads the controls itself; it is
    called at the start and at each change of a control. What it raises is shown in words, and nothing is lost. Threads
    may call `redraw`: pictures are drawn one after the other, so the last one is that of the controls as they are."""

    def __init__(
        self,
        title: str,
        controls: Sequence[w.Widget],
        draw: Callable[[], str],
        watch: bool = True,
        below: Sequence[w.Widget] = (),
    ):
        self.draw, self._drawing = draw, threading.RLock()
        self.picture = w.HTML(layout=w.Layout(width="100%"))
        head = w.HTML(f"<strong>{html.escape(title)}</strong>")
        box = w.Box(
            list(controls),
            layout=w.Layout(flex_flow="row wrap", align_items="center", width="100%", overflow="visible"),
        )
        super().__init__([head, box, self.picture, *below], layout=w.Layout(width="100%", overflow="visible"))
        self.redraw()
        for control in controls if watch else ():
            if control.has_trait("value"):
                control.observe(self.redraw, "value")

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
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data:
            data["text/html"] = self.static()
        return bundle
