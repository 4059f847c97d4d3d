"""How far predicted probabilities are from what happens."""

from typing import Any

import numpy as np
import numpy.typing as npt


def expected_calibration_error(
    label_N: npt.NDArray[np.floating[Any]], probability_N: npt.NDArray[np.floating[Any]], bins: int = 15
) -> float:
    """Mean distance of predicted from observed rate over bins of equal count (Nguyen and O'Connor, 2015).

    Labels may be fractions. NaN for no examples.
    """
    if not len(label_N):
        return float("nan")
    order = np.argsort(probability_N, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [abs(float(np.mean(label_N[part]) - np.mean(probability_N[part], dtype=np.float64))) for part in parts]
    return float(np.average(gaps, weights=[len(part) for part in parts]))
