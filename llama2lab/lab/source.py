"""The library's code, shown in a notebook as it is written: text and code cannot part."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from IPython.display import Code


def source(function: Callable[..., Any]) -> Code:
    """A function of the library, to be read."""
    return Code(inspect.getsource(function), language="python")
