"""The seeds there may be. No torch: the command line says the limit before anything is loaded."""

from __future__ import annotations

from llama2lab.engine.errors import LabError

# PPO draws from seed * 10,000 + iteration, and torch takes numbers below 2**63; JSON readers hold whole numbers exactly
# up to 2**53. This is far below both.
MAX_SEED = 10**12


def check_seed(seed: int) -> int:
    """The seed itself; LabError, which names the limits, for one that the stages could not draw from."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise LabError(f"the seed must be a whole number from 0 to {MAX_SEED}, not {seed!r:.40}")
    return seed
