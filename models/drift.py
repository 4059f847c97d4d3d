"""How far a distribution has moved. N values of the reference, M of now."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

Float64s = npt.NDArray[np.float64]

BINS = 10
_LEAST_SHARE = 1e-4
"""An empty bin counts as this share, so that the index stays finite."""


CHANCE = 0.01
"""How often an unchanged population may seem to have changed."""


@dataclass(frozen=True, kw_only=True)
class Stability:
    """A population stability index."""

    index: float
    """NaN when a side is empty."""
    cells: int
    """Bins that hold a value of either side."""

    def by_chance(self, reference: int, now: int) -> float:
        """What the index of an unchanged population of so many independent values a side exceeds one time in a hundred.

        It is then distributed as (1/reference + 1/now) chi-squared with `cells` - 1 degrees of freedom (Yurdakul and
        Naranjo, Journal of Risk Model Validation, 2020). Values that share a key are no independent ones.
        """
        if self.cells < 2 or not reference or not now:
            return 0.0
        return float((1 / reference + 1 / now) * chi2.ppf(1 - CHANCE, self.cells - 1))


def population_stability(reference_N: Float64s, now_M: Float64s, bins: int = BINS) -> Stability:
    """Population stability index: the sum over bins of (p - q) ln(p / q), a symmetrised Kullback-Leibler divergence.

    Bins are the reference's quantiles; a value that many rows share is a bin's edge once, so that counts with many
    zeros have fewer bins. 0 for equal distributions; by custom, above 0.25 the population has changed (Siddiqi, Credit
    Risk Scorecards, 2006).
    """
    if not len(reference_N) or not len(now_M):
        return Stability(index=float("nan"), cells=0)
    edges = np.unique(np.quantile(reference_N, np.linspace(0, 1, bins + 1)[1:-1]))
    p, q = (_shares(values, edges) for values in (now_M, reference_N))
    cells = int(np.count_nonzero(np.maximum(p, q) > _LEAST_SHARE))
    return Stability(index=float(np.sum((p - q) * np.log(p / q))), cells=cells)


def _shares(values: Float64s, edges: Float64s) -> Float64s:
    # (-inf, e0), [e0, e0], (e0, e1), …: an edge that many rows share is told from what lies beside it.
    place = np.searchsorted(edges, values, "left") + np.searchsorted(edges, values, "right")
    counts = np.bincount(place, minlength=2 * len(edges) + 1)
    shares: Float64s = np.maximum(counts / len(values), _LEAST_SHARE)
    return shares
