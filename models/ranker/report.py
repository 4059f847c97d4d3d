"""A training run's report: the ranker beside what it must beat, on the same test examples and the same draws of users.

Shapes: N test examples, T heads.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from models.examples import Examples
from models.ranker import baselines
from models.ranker.calibration import identity
from models.ranker.evaluation import Scores, probability_metrics, realised_value
from models.ranker.intervals import UserDraws, described
from models.ranker.scorer import Ranker
from models.ranker_inputs import HEADS
from models.value import DEFAULT_WEIGHTS

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]
Report = dict[str, Any]


def report_on(
    examples: Examples, ranker: Ranker, others: Mapping[str, Scores], rows: Mapping[str, Int64s], seed: int
) -> Report:
    """`heads`: of each the ranker's metrics, and under its name those of every other model that has a say.

    `slate_ndcg` and `slate_ndcg_interval` by model: of the test slates reordered by the combined value, by the same
    weights for all, by popularity, and as they were shown. AUC, GAUC, log loss and NDCG have 95% bootstrap intervals
    over users. Probability metrics judge the logged positions, the others what serving would do.
    """
    test, rate_T = rows["test"], training_rates(examples.label_NT[rows["train"]])
    inputs, label_NT = examples.inputs.take(test), examples.label_NT[test]
    draws = UserDraws(examples.user_N[test], seed)
    logged_NT, served_NT = ranker.logits(inputs), ranker.logits(inputs.as_served())
    ours = Scores(served_NT=ranker.calibration(served_NT), logged_NT=ranker.calibration(logged_NT))
    before_NT = identity(len(HEADS))(logged_NT)
    heads = {}
    for t, head in enumerate(HEADS):
        label_N = label_NT[:, t]
        heads[head] = {
            **_measured(draws, label_N, ours, t),
            "ece_before": probability_metrics(label_N, before_NT[:, t])["ece"],
            "examples": int((~np.isnan(label_N)).sum()),
            "rate": float(np.nanmean(label_N)) if (~np.isnan(label_N)).any() else None,
            "training_rate": probability_metrics(label_N, np.full(len(label_N), rate_T[t])),
            **{name: _measured(draws, label_N, scores, t) for name, scores in others.items() if scores.has(t)},
        }
    orders = {
        "millrace": ours.value(rate_T, DEFAULT_WEIGHTS),
        **{name: scores.value(rate_T, DEFAULT_WEIGHTS) for name, scores in others.items()},
        "popularity": baselines.popularity(inputs),
        "as_shown": -inputs.position_C.astype(np.float64),
    }
    gain_N = realised_value(label_NT, DEFAULT_WEIGHTS)
    found = {name: draws.ndcg(gain_N, order_N, examples.request_N[test]) for name, order_N in orders.items()}
    return {
        "heads": heads,
        "slate_ndcg": {name: interval.value for name, interval in found.items()},
        "slate_ndcg_interval": {name: [interval.low, interval.high] for name, interval in found.items()},
    }


def training_rates(label_NT: Floats) -> npt.NDArray[np.float64]:
    """Mean label `[T]` of the heads; 0 where none is defined."""
    defined_NT = ~np.isnan(label_NT)
    return np.asarray(np.nansum(label_NT, axis=0, dtype=np.float64) / np.maximum(defined_NT.sum(axis=0), 1), np.float64)


def _measured(draws: UserDraws, label_N: Floats, scores: Scores, t: int) -> Report:
    served_N, logged_N = scores.served_NT[:, t].astype(np.float64), scores.logged_NT[:, t]
    return {
        **described("auc", draws.auc(label_N, served_N)),
        **described("gauc", draws.gauc(label_N, served_N)),
        **described("log_loss", draws.log_loss(label_N, logged_N)),
        "ece": probability_metrics(label_N, logged_N)["ece"],
    }
