"""How good a set of predictions is, head by head and as a slate. Shapes: N examples, T heads, R requests.

Ranking metrics (AUC, GAUC, NDCG) judge what serving would do, every candidate asked for at the same position;
probability metrics (log loss, ECE) judge the logged positions, where the labels were gathered.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.metrics import auc, bootstrap, expected_calibration_error, gauc, log_loss
from models.ranker_inputs import HEADS
from models.value import value

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

POSITIVE = 0.5
"""A watch fraction from here on counts as a positive where a ranking metric needs two classes."""
BOOTSTRAP_ROUNDS = 50


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one model says of the examples, in the order of `HEADS`; a column of NaN where it has no say."""

    served_NT: Floats
    """As if every example were asked for at the serving position: what ranks."""
    logged_NT: Floats
    """Probabilities at the logged position, where the labels were gathered."""

    def has(self, t: int) -> bool:
        """Whether the model has a say on this head."""
        return not bool(np.isnan(self.logged_NT[:, t]).all())

    def value(self, rate_T: Floats, weights: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """The combined value `[N]` by which serving would order; `rate_T` stands in where the model has no say."""
        served_NT = np.where(np.isnan(self.served_NT), rate_T, self.served_NT).astype(np.float32)
        by_head = {head: served_NT[:, t] for t, head in enumerate(HEADS)}
        return value(by_head, weights).astype(np.float64)


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
    ndcg_R = slate_ndcgs(gain_N, score_N, request_N)
    told_R = ~np.isnan(ndcg_R)
    return float(np.mean(ndcg_R[told_R])) if told_R.any() else float("nan")


def slate_ndcgs(gain_N: Floats, score_N: Floats, request_N: Int64s) -> npt.NDArray[np.float64]:
    """NDCG of each request's slate, by the request's number; NaN where it brought nothing or has no examples."""
    achieved_R, ideal_R = (_discounted(gain_N, key_N, request_N) for key_N in (score_N, gain_N))
    return np.where(ideal_R > 0, achieved_R / np.where(ideal_R > 0, ideal_R, 1.0), np.nan)


def _discounted(gain_N: Floats, key_N: Floats, request_N: Int64s) -> npt.NDArray[np.float64]:
    order = np.lexsort((-key_N, request_N))
    request_S = request_N[order]
    rank_S = np.arange(len(order)) - np.searchsorted(request_S, request_S)
    return np.asarray(np.bincount(request_S, weights=gain_N[order] / np.log2(rank_S + 2)), np.float64)
