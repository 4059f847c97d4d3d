"""Cross-entropy of predicted probabilities."""

from typing import Any

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]

EPSILON = 1e-7


def log_loss(label_N: npt.NDArray[np.floating[Any]], probability_N: npt.NDArray[np.floating[Any]]) -> float:
    """Mean cross-entropy in nats; labels may be fractions. Probabilities are clipped by 1e-7. NaN for no examples."""
    if not len(label_N):
        return float("nan")
    return float(np.mean(log_losses(label_N, probability_N)))


def log_losses(label_N: npt.NDArray[np.floating[Any]], probability_N: npt.NDArray[np.floating[Any]]) -> Float64s:
    """Cross-entropy of each example, in nats; probabilities are clipped by 1e-7. NaN where the label is."""
    p_N = np.clip(probability_N.astype(np.float64), EPSILON, 1 - EPSILON)
    return np.asarray(-(label_N * np.log(p_N) + (1 - label_N) * np.log1p(-p_N)), np.float64)
