"""How far one day's distribution lies from others', between 0 (equal) and 1 (no value in common).

Unlike the population stability index, neither needs a floor under bins that one side lacks, and both have a bound.
Shapes: K classes or bins, in one order on both sides.
"""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

BIN_EDGES: Floats = np.concatenate([[-np.inf, 0.0], 2.0 ** (np.arange(-40, 241) / 4), [np.inf]])
"""Edges of the bins of a number that is seldom negative: below 0, [0, 2^-10), then four an octave up to 2^60."""


def binned(values: npt.ArrayLike) -> Counts:
    """Counts a bin of `BIN_EDGES`; values that are not finite are left out."""
    numbers = np.asarray(values, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    at = np.searchsorted(BIN_EDGES, numbers, side="right") - 1
    return np.bincount(at, minlength=len(BIN_EDGES) - 1).astype(np.int64)


def total_variation(counts_K: npt.ArrayLike, reference_K: npt.ArrayLike) -> float:
    """Half the sum of |p - q|: the greatest difference in the share of any set of classes. NaN if a side is empty."""
    return float(np.abs(_shares(counts_K) - _shares(reference_K)).sum() / 2)


def kolmogorov_smirnov(counts_K: npt.ArrayLike, reference_K: npt.ArrayLike) -> float:
    """Greatest difference of the two cumulative shares at a bin's edge. NaN if a side is empty.

    Never above the statistic of the values themselves; equal to it when no bin holds two values.
    """
    return float(np.abs(np.cumsum(_shares(counts_K) - _shares(reference_K))).max())


def _shares(counts_K: npt.ArrayLike) -> Floats:
    counts = np.asarray(counts_K, np.float64)
    total = counts.sum()
    return counts / total if total else np.full(counts.shape, np.nan)
