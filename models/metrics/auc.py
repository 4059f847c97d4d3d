"""Area under the ROC curve, over all examples and within groups."""

from typing import Any

import numpy as np
import numpy.typing as npt


def auc(label_N: npt.NDArray[np.bool_], score_N: npt.NDArray[np.floating[Any]]) -> float:
    """Chance that a positive outscores a negative, ties counting half. NaN when a class is absent."""
    return gauc(label_N, score_N, np.zeros(len(label_N), np.int64))


def gauc(
    label_N: npt.NDArray[np.bool_], score_N: npt.NDArray[np.floating[Any]], group_N: npt.NDArray[np.int64]
) -> float:
    """AUC within each group (user), weighted by the group's size (Zhu et al., KDD 2017).

    Groups that lack a class say nothing and are left out; NaN when no group has both.
    """
    auc_G, size_G = group_aucs(label_N, score_N, group_N)
    told_G = ~np.isnan(auc_G)
    return float(np.average(auc_G[told_G], weights=size_G[told_G])) if told_G.any() else float("nan")


def group_aucs(
    label_N: npt.NDArray[np.bool_], score_N: npt.NDArray[np.floating[Any]], group_N: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """AUC (NaN where a class is absent) and size of each group, in ascending order of the groups."""
    label_N = label_N.astype(np.float64)
    _, group_N = np.unique(group_N, return_inverse=True)
    rank_N = _ranks_within(group_N, score_N)
    size_G = np.bincount(group_N)
    positive_G = np.bincount(group_N, weights=label_N)
    pairs_G = positive_G * (size_G - positive_G)
    rank_sum_G = np.bincount(group_N, weights=rank_N * label_N)
    # Mann-Whitney: U = (sum of the positives' ranks) - P (P + 1) / 2.
    above_G = rank_sum_G - positive_G * (positive_G + 1) / 2
    return np.where(pairs_G > 0, above_G / np.maximum(pairs_G, 1), np.nan), size_G


def _ranks_within(group_N: npt.NDArray[np.int64], score_N: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Rank from 1 within the group, ties sharing their mean."""
    order = np.lexsort((score_N, group_N))
    group_S, score_S = group_N[order], score_N[order]
    if not order.size:
        return np.empty(0)
    group_starts_S = np.concatenate([[True], group_S[1:] != group_S[:-1]])
    run_starts_S = group_starts_S | np.concatenate([[True], score_S[1:] != score_S[:-1]])
    place_S = np.arange(len(order)) - np.maximum.accumulate(np.where(group_starts_S, np.arange(len(order)), 0))
    run_S = np.cumsum(run_starts_S) - 1
    mean_place_R = np.bincount(run_S, weights=place_S) / np.bincount(run_S)
    rank_N = np.empty(len(order))
    rank_N[order] = mean_place_R[run_S] + 1
    return rank_N
