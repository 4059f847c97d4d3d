"""Scores that are not finite: they come last, and answers and logs say a finite number for them."""

import numpy as np
import numpy.typing as npt

SUNK_SCORE = -1e6
"""What an answer and its record say for a score that was not finite."""


def finite(score_C: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores as they are answered and logged."""
    return np.where(np.isfinite(score_C), score_C, SUNK_SCORE)
