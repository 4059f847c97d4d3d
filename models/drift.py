"""How far a distribution has moved. N values of the reference, M of now."""

import numpy as np
import numpy.typing as npt

Float64s = npt.NDArray[np.float64]

BINS = 10
_LEAST_SHARE = 1e-4
"""An empty bin counts as this share, so that the index stays finite."""


def population_stability(reference_N: Float64s, now_M: Float64s, bins: int = BINS) -> float:
    """Population stability index: the sum over bins of (p - q) ln(p / q), a symmetrised Kullback-Leibler divergence.

    Bins are the reference's quantiles; a value that many rows share is a bin's edge once, so that counts with many
    zeros have fewer bins. 0 for equal distributions; by custom, above 0.25 the population has changed (Siddiqi, Credit
    Risk Scorecards, 2006). NaN when a side is empty.
    """
    if not len(reference_N) or not len(now_M):
        return float("nan")
    edges = np.unique(np.quantile(reference_N, np.linspace(0, 1, bins + 1)[1:-1]))
    p, q = (_shares(values, edges) for values in (now_M, reference_N))
    return float(np.sum((p - q) * np.log(p / q)))


def _shares(values: Float64s, edges: Float64s) -> Float64s:
    # (-inf, e0), [e0, e0], (e0, e1), …: an edge that many rows share is told from what lies beside it.
    place = np.searchsorted(edges, values, "left") + np.searchsorted(edges, values, "right")
    counts = np.bincount(place, minlength=2 * len(edges) + 1)
    shares: Float64s = np.maximum(counts / len(values), _LEAST_SHARE)
    return shares
