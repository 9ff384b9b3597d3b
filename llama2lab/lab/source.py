"""The library's code, shown in a notebook as it is written: text and code cannot part."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from IPython.display import Code


class Source(Code):
    """Code whose lines stay whole and scroll, as in a cell: JupyterLab would break them inside words."""

    def _repr_html_(self) -> str:
        return super()._repr_html_().replace("<pre>", '<pre style="white-space: pre; overflow-x: auto">', 1)


def source(function: Callable[..., Any]) -> Source:
    """A function of the library, to be read."""
    return Source(inspect.getsource(function), language="python")
