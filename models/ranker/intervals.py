"""Bootstrap intervals over users for a report of many models and metrics, all on the same draws.

A drawn user counts with a weight instead of with copied rows, so that examples are sorted once and not once a round;
the statistics are those of the copied rows. Shapes: N examples, S those whose label is defined, U users, B rounds,
Q requests.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.metrics import Interval, group_aucs, log_losses
from models.ranker.evaluation import POSITIVE, slate_ndcgs

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]

ROUNDS = 200
LEVEL = 0.95


class UserDraws:
    """Users drawn with replacement, as many as there are, `rounds` times (Efron, 1979).

    Each method leaves out examples whose label is NaN, and gives NaN where nothing is left to tell by.
    """

    def __init__(self, user_N: Int64s, seed: int, rounds: int = ROUNDS) -> None:
        found_U, self.user_N = np.unique(user_N, return_inverse=True)
        rng, users = np.random.default_rng(seed), len(found_U)
        draws = [np.bincount(rng.integers(users, size=users), minlength=users) for _ in range(rounds if users else 0)]
        self.times_BU = np.array(draws, np.uint16).reshape(len(draws), users)
        """How often each round drew each user."""

    def auc(self, label_N: Floats, score_N: Floats) -> Interval:
        """Of labels from `POSITIVE` on against the others."""
        kept = np.flatnonzero(~np.isnan(label_N))
        order = kept[np.argsort(score_N[kept], kind="stable")]
        score_S, positive_S, user_S = score_N[order], label_N[order] >= POSITIVE, self.user_N[order]
        tie_S = np.cumsum(np.diff(score_S, prepend=score_S[:1]) != 0)

        def of(weight_S: npt.NDArray[Any]) -> float:
            positive_R = np.bincount(tie_S, weights=weight_S * positive_S)
            negative_R = np.bincount(tie_S, weights=weight_S * ~positive_S)
            pairs = positive_R.sum() * negative_R.sum()
            won = positive_R @ (np.cumsum(negative_R) - negative_R / 2)
            return float(won / pairs) if pairs else float("nan")

        return _interval(of(np.ones(len(order))), [of(times_U[user_S]) for times_U in self.times_BU])

    def gauc(self, label_N: Floats, score_N: Floats) -> Interval:
        """AUC within each user, weighted by the user's examples."""
        kept = np.flatnonzero(~np.isnan(label_N))
        user_S = self.user_N[kept]
        auc_G, size_G = group_aucs(label_N[kept] >= POSITIVE, score_N[kept].astype(np.float64), user_S)
        return self._mean(auc_G, size_G.astype(np.float64), np.unique(user_S))

    def log_loss(self, label_N: Floats, probability_N: Floats) -> Interval:
        """Cross-entropy in nats."""
        kept = np.flatnonzero(~np.isnan(label_N))
        loss_S = log_losses(label_N[kept].astype(np.float64), probability_N[kept])
        return self._mean(loss_S, np.ones(len(kept)), self.user_N[kept])

    def ndcg(self, gain_N: Floats, score_N: Floats, request_N: Int64s) -> Interval:
        """Of slates reordered by score, over those that brought anything. A request is one user's."""
        ndcg_Q = slate_ndcgs(gain_N, score_N, request_N)
        user_Q = np.zeros(len(ndcg_Q), np.int64)
        user_Q[request_N] = self.user_N
        return self._mean(ndcg_Q, np.ones(len(ndcg_Q)), user_Q)

    def _mean(self, value_S: Float64s, weight_S: Float64s, user_S: Int64s) -> Interval:
        """The weighted mean of what is not NaN: a ratio of sums over users, in each round."""
        told_S = ~np.isnan(value_S)
        value_S, weight_S, user_S = value_S[told_S], weight_S[told_S], user_S[told_S]
        users = self.times_BU.shape[1]
        sum_U = np.bincount(user_S, weights=weight_S * value_S, minlength=users)
        weight_U = np.bincount(user_S, weights=weight_S, minlength=users)
        if not len(value_S):
            return _interval(float("nan"), [])
        both_BX = [times_U @ np.stack([sum_U, weight_U], axis=1) for times_U in self.times_BU]
        return _interval(sum_U.sum() / weight_U.sum(), [total / weight for total, weight in both_BX if weight])


def described(name: str, interval: Interval) -> dict[str, Any]:
    """The statistic under its name, and its bounds under `NAME_interval`."""
    return {name: interval.value, f"{name}_interval": [interval.low, interval.high]}


def _interval(value: float, rounds: list[float]) -> Interval:
    finite = [each for each in rounds if np.isfinite(each)]
    if not finite:
        return Interval(value=value, low=float("nan"), high=float("nan"))
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))
