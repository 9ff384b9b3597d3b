"""The report's scale: a forced choice and one of four grades, which are eight positions from left to right."""

from __future__ import annotations

from typing import Literal

Side = Literal["left", "right"]
Kind = Literal["helpfulness", "safety"]

GRADES = ("significantly", "better", "slightly", "negligibly")
MAX_OVERLAP = 1000  # annotators of one pair: a store keeps a place for each
KINDS: tuple[Kind, ...] = ("helpfulness", "safety")

# The eight positions in the order shown, keys 1 to 8.
POSITIONS: tuple[tuple[Side, str], ...] = (
    *(("left", grade) for grade in GRADES),
    *(("right", grade) for grade in reversed(GRADES)),
)

# The report's Table 27: the margin m(r) by grade.
MARGINS: dict[str, dict[str, float]] = {
    "none": dict.fromkeys(GRADES, 0.0),
    "small": dict(zip(GRADES, (1.0, 2 / 3, 1 / 3, 0.0), strict=True)),
    "large": dict(zip(GRADES, (3.0, 2.0, 1.0, 0.0), strict=True)),
}
