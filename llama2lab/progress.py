"""One progress bar for terminals and notebooks, shown only when the work takes longer than two seconds."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm
from tqdm.notebook import tqdm as notebook_tqdm


def bar(total: int, what: str, unit: str = "step", initial: int = 0) -> Any:
    """A tqdm bar with the remaining time. Quiet in logs (no terminal, no notebook), where bars are noise."""
    visible = issubclass(tqdm, notebook_tqdm) or sys.stderr.isatty()
    return tqdm(total=total, desc=what, unit=unit, initial=initial, delay=2, disable=not visible,
                dynamic_ncols=True, leave=False)
