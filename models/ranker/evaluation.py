"""How good a set of predictions is, head by head and as a slate. Shapes: N examples, T heads.

Ranking metrics (AUC, GAUC, NDCG) judge what serving would do, every candidate asked for at the same position;
probability metrics (log loss, ECE) judge the logged positions, where the labels were gathered.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from models.metrics import auc, bootstrap, expected_calibration_error, gauc, log_loss
from models.ranker_inputs import HEADS

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

POSITIVE = 0.5
"""A watch fraction from here on counts as a positive where a ranking metric needs two classes."""
BOOTSTRAP_ROUNDS = 50


def ranking_metrics(label_N: Floats, score_N: Floats, user_N: Int64s) -> dict[str, float]:
    """`auc` and `gauc` over the examples whose label is defined; NaN where a class is absent."""
    defined_N = ~np.isnan(label_N)
    positive_N, score_N = label_N[defined_N] >= POSITIVE, score_N[defined_N].astype(np.float64)
    return {"auc": auc(positive_N, score_N), "gauc": gauc(positive_N, score_N, user_N[defined_N])}


def probability_metrics(label_N: Floats, probability_N: Floats) -> dict[str, float]:
    """`log_loss` and `ece` over the examples whose label is defined."""
    defined_N = ~np.isnan(label_N)
    label_N, probability_N = label_N[defined_N].astype(np.float64), probability_N[defined_N].astype(np.float64)
    return {"log_loss": log_loss(label_N, probability_N), "ece": expected_calibration_error(label_N, probability_N)}


def auc_interval(label_N: Floats, score_N: Floats, user_N: Int64s, seed: int) -> tuple[float, float]:
    """The 95% bootstrap interval of the AUC over users."""
    defined_N = ~np.isnan(label_N)
    positive_N, score_N = label_N[defined_N] >= POSITIVE, score_N[defined_N].astype(np.float64)
    found = bootstrap(
        lambda rows: auc(positive_N[rows], score_N[rows]),
        user_N[defined_N],
        np.random.default_rng(seed),
        rounds=BOOTSTRAP_ROUNDS,
    )
    return found.low, found.high


def realised_value(label_NT: Floats, weights: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """What each impression brought, by the value weights; undefined labels bring nothing, and none less than 0."""
    weight_T = np.array([weights.get(head, 0.0) for head in HEADS])
    return np.asarray(np.maximum(np.nan_to_num(label_NT.astype(np.float64)) @ weight_T, 0.0), np.float64)


def slate_ndcg(gain_N: Floats, score_N: Floats, request_N: Int64s) -> float:
    """NDCG of whole slates reordered by score, averaged over slates that brought anything; NaN when none did."""
    achieved, ideal = (_discounted(gain_N, key_N, request_N) for key_N in (score_N, gain_N))
    told = ideal > 0
    return float(np.mean(achieved[told] / ideal[told])) if told.any() else float("nan")


def _discounted(gain_N: Floats, key_N: Floats, request_N: Int64s) -> npt.NDArray[np.float64]:
    order = np.lexsort((-key_N, request_N))
    request_S = request_N[order]
    rank_S = np.arange(len(order)) - np.searchsorted(request_S, request_S)
    return np.asarray(np.bincount(request_S, weights=gain_N[order] / np.log2(rank_S + 2)), np.float64)
