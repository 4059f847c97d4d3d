"""What an impression is worth: the weighted sum of the heads' calibrated probabilities.

The weights are data in the bundle (`weights.json`); changing them makes a new bundle without retraining.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from models.ranker_inputs import HEADS

DEFAULT_WEIGHTS: dict[str, float] = {
    "click": 1.0,
    "completion": 0.05,
    "like": 0.5,
    "share": 0.5,
    "hide": -1.0,
    "watch_fraction": 0.05,
}
"""In clicks: a like or a share is worth half a click more, a hide takes one away.

Completion and watch fraction are predicted of those who watch, so they only tell between like click chances.
"""


def value(
    probabilities: Mapping[str, npt.NDArray[np.float32]], weights: Mapping[str, float]
) -> npt.NDArray[np.float32]:
    """The value `[C]` of each candidate; a non-finite probability gives -inf, so it sinks."""
    total_C = sum(weights.get(head, 0.0) * probabilities[head].astype(np.float64) for head in probabilities)
    value_C = np.asarray(total_C, np.float64)
    return np.where(np.isfinite(value_C), value_C, -np.inf).astype(np.float32)


def checked_weights(weights: Mapping[str, object]) -> dict[str, float]:
    """Weights as read from JSON. Raises `ValueError` for an unknown head or a weight that is no finite number."""
    out: dict[str, float] = {}
    for head, weight in weights.items():
        if head not in HEADS:
            raise ValueError(f"value weight for {head!r}; allowed heads: {', '.join(HEADS)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not np.isfinite(weight):
            raise ValueError(f"value weight of {head}: got {weight!r}; allowed: a finite number")
        out[head] = float(weight)
    return out
