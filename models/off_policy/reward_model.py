"""The doubly robust estimate's reward model, fitted so that no row is judged by a model that has seen it.

Shapes: N rows, F features, M pairs of a row and an action.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.off_policy.log import Choices, Float64s, Int64s, PolicyLog
from models.refusal import RefusalError

Predict = Callable[[Float64s], Float64s]
Fit = Callable[[Float64s, Float64s, tuple[int, ...]], Predict]
"""From features, rewards and the indices of categorical features to a prediction. Feature 0 is the action's index."""

FOLDS = 5
PAIRS_AT_ONCE = 500_000
"""How many pairs are predicted in one call, which bounds its memory at about 100 MB for 20 features."""


@dataclass(frozen=True, kw_only=True)
class TreeConfig:
    """Small, slow trees: rewards are rare and noisy, and a model that is worse than a constant adds variance."""

    rounds: int = 60
    learning_rate: float = 0.05
    leaves: int = 7
    min_rows_in_leaf: int = 100
    threads: int = 1
    seed: int = 0


def tree_model(config: TreeConfig) -> Fit:
    """LightGBM: cross-entropy for rewards within [0, 1], squares for others, the constant where all are equal."""
    import lightgbm as lgb  # takes seconds to import, and only the doubly robust estimate needs it

    def fit(features_NF: Float64s, reward_N: Float64s, categorical: tuple[int, ...]) -> Predict:
        low, high = float(reward_N.min()), float(reward_N.max())
        if low == high:
            return lambda features_MF: np.full(len(features_MF), low)
        settings = {
            "objective": "cross_entropy" if low >= 0 and high <= 1 else "regression",
            "learning_rate": config.learning_rate,
            "num_leaves": config.leaves,
            "min_data_in_leaf": config.min_rows_in_leaf,
            "min_data_per_group": config.min_rows_in_leaf,
            "num_threads": config.threads,
            "seed": config.seed,
            "deterministic": True,
            "verbose": -1,
        }
        data = lgb.Dataset(features_NF, label=reward_N, categorical_feature=list(categorical))
        booster = lgb.train(settings, data, num_boost_round=config.rounds)
        return lambda features_MF: np.asarray(booster.predict(features_MF, num_threads=config.threads), np.float64)

    return fit


def cross_fit(
    log: PolicyLog, choices: Choices, fit: Fit, rng: np.random.Generator, folds: int = FOLDS
) -> tuple[Float64s, Float64s]:
    """The model's reward of each logged action, and its mean over the target policy's actions in that row.

    1. Groups, not rows, are dealt to folds, so that a user's rows are on one side.
    2. Each fold is predicted by a model of the other folds (Chernozhukov et al., 2018).

    Raises `RefusalError` for fewer groups than folds.
    """
    _, group_N = np.unique(log.group_N, return_inverse=True)
    groups = int(group_N.max()) + 1
    if groups < folds:
        raise RefusalError(f"got {groups} groups for {folds} folds; allowed: at least one a fold; log more users.")
    fold_N = (rng.permutation(groups) % folds)[group_N]
    categorical = (0, *(int(column) + 1 for column in np.flatnonzero(choices.categorical_F)))
    features_NF = choices.features(choices.action_N, np.arange(len(log)))
    logged_N, target_N = np.empty(len(log)), np.zeros(len(log))
    for fold in range(folds):
        held_N = fold_N == fold
        predict = fit(features_NF[~held_N], log.reward_N[~held_N], categorical)
        logged_N[held_N] = predict(features_NF[held_N])
        pairs = np.flatnonzero(held_N[choices.row_M] & (choices.probability_M > 0))
        target_N += _target_mean(choices, predict, pairs, len(log))
    return logged_N, target_N


def _target_mean(choices: Choices, predict: Predict, pairs: Int64s, rows: int) -> Float64s:
    mean_N = np.zeros(rows)
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[start : start + PAIRS_AT_ONCE]
        row_M, action_M = choices.row_M[part], choices.action_M[part]
        reward_M = predict(choices.features(action_M, row_M))
        mean_N += np.bincount(row_M, weights=choices.probability_M[part] * reward_M, minlength=rows)
    return mean_N
