"""One progress bar for terminals and notebooks, shown only when the work takes longer than two seconds."""

from __future__ import annotations

import sys
import threading
from typing import Any

from tqdm.auto import tqdm
from tqdm.notebook import tqdm as notebook_tqdm

_outer: Any = None  # the bar on show


def bar(total: int, what: str, unit: str = "step", initial: int = 0) -> Any:
    """A tqdm bar with the remaining time. Quiet in logs (no terminal, no notebook), where bars are noise, in threads
    beside the main one, whose work a panel shows, and within another bar: PPO samples and scores in every iteration."""
    global _outer
    visible = (issubclass(tqdm, notebook_tqdm) or sys.stderr.isatty()) and (
        threading.current_thread() is threading.main_thread()
    )
    within = _outer is not None and not _outer.disable  # a closed bar is a disabled one
    hidden = not visible or within
    made = tqdm(
        total=total, desc=what, unit=unit, initial=initial, delay=2, disable=hidden, dynamic_ncols=True, leave=False
    )
    _outer = _outer if within else made
    return made
