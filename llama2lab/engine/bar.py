"""One progress bar for terminals and notebooks, for work of more than two seconds; in a log, a line now and then."""

from __future__ import annotations

import sys
import threading
from typing import Any

from tqdm.auto import tqdm
from tqdm.notebook import tqdm as notebook_tqdm
from tqdm.std import tqdm as text_tqdm

from llama2lab.engine.distributed import is_first

SECONDS = 30.0  # between two lines in a log
_outer: Any = None  # the bar on show


class Lines(text_tqdm):
    """A bar for where there is no terminal: a plain line now and then, with the remaining time."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None and self.n < self.total:  # tqdm clears a bar with ""
            self.fp.write(f"{self}\n")
            self.fp.flush()


def bar(total: int, what: str, unit: str = "step", initial: int = 0) -> Any:
    """A tqdm bar with the remaining time; in a log (no terminal, no notebook) a line every SECONDS. Quiet in threads
    beside the main one, whose work a panel shows, and within another bar: PPO samples and scores in every iteration. Of
    several processes the first shows its share."""
    global _outer
    within = _outer is not None and not _outer.disable  # a closed bar is a disabled one
    settings: dict[str, Any] = {
        "total": total,
        "desc": what,
        "unit": unit,
        "initial": initial,
        "leave": False,
        "disable": within or threading.current_thread() is not threading.main_thread() or not is_first(),
    }
    if issubclass(tqdm, notebook_tqdm) or sys.stderr.isatty():
        made = tqdm(delay=2, dynamic_ncols=True, **settings)
    else:
        words = "{desc}: {n_fmt} of {total_fmt} {unit}s, {remaining} left"
        made = Lines(delay=SECONDS, mininterval=SECONDS, bar_format=words, file=sys.stderr, **settings)
    _outer = _outer if within else made
    return made
