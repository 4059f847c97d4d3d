"""How much a past interaction still counts: one decay for every source that reads the history."""

import numpy as np
import numpy.typing as npt

from features.names import MS_PER_DAY, MS_PER_HOUR

FAST_HALF_LIFE_MS = MS_PER_HOUR
"""The session: what the user does now."""
SLOW_HALF_LIFE_MS = 7 * MS_PER_DAY
"""The lasting taste."""
FAST_SHARE = 0.75
"""How much of a fresh interaction's weight belongs to the session."""


def recency_weight(age_ms_L: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Weight in (0, 1] of interactions by age: a fast and a slow exponential, added. Negative ages count as 0."""
    age_ms_L = np.maximum(age_ms_L, 0)
    fast_L = np.exp2(-age_ms_L / FAST_HALF_LIFE_MS)
    slow_L = np.exp2(-age_ms_L / SLOW_HALF_LIFE_MS)
    return (FAST_SHARE * fast_L + (1 - FAST_SHARE) * slow_L).astype(np.float32)
