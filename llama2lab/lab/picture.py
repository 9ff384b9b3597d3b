"""Pictures that move, in one visual language: what all of them share.

A picture is a class, its drawing a JavaScript file of the same name beside the module (``gae_by_hand.py`` and
``gae_by_hand.js``), which defines ``function picture(stage, model)``; a style sheet of that name is added where there
is one. `picture.js` holds what they are built of (elements, a player with keys, numbers as text) and `picture.css` the
colours and sizes, for light pages and dark ones. Where no widget can run (a viewer on the web, an exported page) the
picture stands as the HTML of `static`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from llama2lab.lab.explorer import with_html
from llama2lab.report.look import plots_css

HERE = Path(__file__).parent
SHARED = (HERE / "picture.js").read_text(encoding="utf-8")


class Picture(anywidget.AnyWidget):
    """A picture of `data`, which is plain JSON: numbers, texts, lists and dictionaries. Texts reach the page as text
    nodes only (`node` in picture.js), so that they may come from models and people."""

    _css = (HERE / "picture.css").read_text(encoding="utf-8") + plots_css()  # a page keeps it for all its figures
    data = traitlets.Dict().tag(sync=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if not isinstance(getattr(cls, "_esm", None), traitlets.TraitType):  # traitlets derives a class for each widget
            module = Path(sys.modules[cls.__module__].__file__ or "")
            drawing = module.with_suffix(".js")
            if drawing.is_file() or Picture in cls.__bases__:  # else it is drawn as the picture that it derives from
                cls._esm = SHARED + drawing.read_text(encoding="utf-8")  # type: ignore[attr-defined]
            if (own := module.with_suffix(".css")).is_file():
                cls._css = Picture._css + own.read_text(encoding="utf-8")
        super().__init_subclass__(**kwargs)

    def static(self) -> str:
        """The picture at rest, as HTML in which every text is escaped."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return with_html(super()._repr_mimebundle_(**kwargs), self.static())
