"""What the ranker must beat: popularity, and gradient-boosted trees on the same inputs. Shapes: N examples, T heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt

from models.ranker.calibration import fit_platt
from models.ranker.evaluation import Scores
from models.ranker_inputs import CANDIDATE_FEATURES, HEADS, RankerInputs

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

POPULARITY_FEATURE = "item_clicks_7d"
MIN_POSITIVES = 20
MAX_ROUNDS = 80
_CATEGORICAL = ("device_U", "category_C", "creator_C", "language_C")


def popularity(inputs: RankerInputs) -> npt.NDArray[np.float64]:
    """The item's clicks of the last week, as of the impression."""
    return inputs.candidate_CF[:, CANDIDATE_FEATURES.index(POPULARITY_FEATURE)].astype(np.float64)


def popularity_scores(inputs: RankerInputs, label_NT: Floats, rows: Mapping[str, Int64s], rate_T: Floats) -> Scores:
    """Of the test rows, as probabilities: Platt scaling on validation of the popularity's logarithm.

    Where that fits no rising line, the logged ones are the training rate.
    """
    spread_N = np.log1p(popularity(inputs))
    served_NT = np.tile(spread_N[rows["test"], None], (1, len(HEADS)))
    logged_NT = np.tile(np.asarray(rate_T, np.float64), (len(rows["test"]), 1))
    for t in range(len(HEADS)):
        known = rows["validation"][~np.isnan(label_NT[rows["validation"], t])]
        slope, intercept = fit_platt(spread_N[known], label_NT[known, t])
        if (slope, intercept) != (1.0, 0.0):
            logged_NT[:, t] = 1 / (1 + np.exp(-(served_NT[:, t] * slope + intercept)))
    return Scores(served_NT=served_NT, logged_NT=logged_NT)


def tree_matrix(inputs: RankerInputs) -> npt.NDArray[np.float32]:
    """The same inputs as columns for trees: windows, statics, affinities, codes, and the history's weight a match."""
    matches = [
        ((getattr(inputs, f"history_{name}_UL") == code_N[:, None]) * inputs.history_weight_UL).sum(axis=1)
        for name, code_N in (("category", inputs.category_C), ("creator", inputs.creator_C), ("item", inputs.item_C))
    ]
    codes = [getattr(inputs, name) for name in _CATEGORICAL]
    columns = [*codes, inputs.hour_U, inputs.position_C, *matches]
    windows = [inputs.user_UF, inputs.candidate_CF]
    parts = [np.stack(columns, axis=1).astype(np.float32), *windows, inputs.static_CS, inputs.affinity_CA]
    return np.concatenate(parts, axis=1)


def train_trees(
    matrix_NF: npt.NDArray[np.float32],
    label_N: Floats,
    rows: Sequence[Int64s],
    seed: int,
    threads: int,
    *,
    rounds: int = MAX_ROUNDS,
    learning_rate: float = 0.1,
) -> lgb.Booster | None:
    """One head's trees: `rows` are train and validation, the latter for early stopping. None with too few positives."""
    train, validation = (part[~np.isnan(label_N[part])] for part in rows)
    if min(label_N[train].sum(), (1 - label_N[train]).sum(), label_N[validation].sum()) < MIN_POSITIVES:
        return None
    settings = {
        "objective": "cross_entropy",
        "num_leaves": 31,
        "learning_rate": learning_rate,
        "min_data_in_leaf": 50,
        "num_threads": threads,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    sets = [lgb.Dataset(matrix_NF[part], label_N[part], free_raw_data=True) for part in (train, validation)]
    return lgb.train(
        settings,
        sets[0],
        num_boost_round=rounds,
        valid_sets=[sets[1]],
        callbacks=[lgb.early_stopping(max(10, rounds // 20), verbose=False)],
    )


def tree_probabilities(trees: lgb.Booster, matrix_NF: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The trees' predictions `[N]`."""
    return np.asarray(trees.predict(matrix_NF), np.float64)


def tree_scores(inputs: RankerInputs, label_NT: Floats, rows: Mapping[str, Int64s], seed: int, threads: int) -> Scores:
    """The test rows' scores by one model a head; NaN for a head with too few positives."""
    matrix_NF = tree_matrix(inputs)
    test = rows["test"]
    asked = (tree_matrix(inputs.take(test).as_served()), matrix_NF[test])
    out = [np.full((len(test), len(HEADS)), np.nan) for _ in asked]
    for t in range(len(HEADS)):
        trees = train_trees(matrix_NF, label_NT[:, t], (rows["train"], rows["validation"]), seed, threads)
        if trees is not None:
            for out_NT, part_NF in zip(out, asked, strict=True):
                out_NT[:, t] = tree_probabilities(trees, part_NF)
    return Scores(served_NT=out[0], logged_NT=out[1])
