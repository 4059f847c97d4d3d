"""Metrics of ranked lists, one value a list, each in [0, 1]. Averages are the caller's.

`relevant_BK` says whether each rank holds a relevant item; `relevant_B` counts the relevant items that there are,
returned or not. A list without relevant items scores 0.
"""

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]


def hit_rate(relevant_BK: Bools) -> Float64s:
    """Whether any rank is relevant."""
    return np.asarray(relevant_BK.any(axis=1), np.float64)


def recall(relevant_BK: Bools, relevant_B: Int64s) -> Float64s:
    """Share of the relevant items that were returned."""
    return np.asarray(relevant_BK.sum(axis=1) / np.maximum(relevant_B, 1), np.float64)


def ndcg(relevant_BK: Bools, relevant_B: Int64s) -> Float64s:
    """Discounted gain with binary relevance over that of the ideal list of K (Järvelin and Kekäläinen, 2002)."""
    ranks = relevant_BK.shape[1]
    discount_K = 1 / np.log2(np.arange(ranks) + 2)
    ideal_K = np.concatenate([[0.0], np.cumsum(discount_K)])
    ideal_B = ideal_K[np.minimum(relevant_B, ranks)]
    return np.asarray(relevant_BK @ discount_K / np.where(ideal_B > 0, ideal_B, 1.0), np.float64)


def reciprocal_rank(relevant_BK: Bools) -> Float64s:
    """One over the rank of the first relevant item."""
    if not relevant_BK.shape[1]:
        return np.zeros(len(relevant_BK))
    return np.where(relevant_BK.any(axis=1), 1 / (relevant_BK.argmax(axis=1) + 1), 0.0)
