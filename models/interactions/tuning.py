"""Choosing hyper-parameters on a validation split of the training table, by Optuna's TPE (Akiba et al., KDD 2019).

Validation is each user's last row by time, or a random one where the table has no times; the rest trains. The trial of
the best validation NDCG wins. Test rows are never seen here. Shapes: N rows, U users, I items, Q questions.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from scipy import sparse

from models.als import AlsConfig, Backend
from models.interactions.protocol import Test, build_test, measure
from models.interactions.recommenders import Config, Item2ItemConfig, PopularConfig, train
from models.interactions.table import Interactions
from models.own_table import TableError

log = logging.getLogger(__name__)

MAX_QUESTIONS = 10_000
"""Validation users drawn, which bounds the time of a trial."""
NEGATIVES = 100
"""Sampled for each validation user where the test has sampled negatives too."""
SMALLEST_DIM, LARGEST_DIM, DIM_STEP = 32, 256, 32
PAPER = {
    "embedding_dim": 192,
    "ridge": 11.6,
    "unobserved_weight": 0.3,
    "frequency_exponent": 1.0,
    "epochs": 12,
}
"""What Rendle et al. (RecSys 2022) found for MovieLens-1M, in our form of the loss: the first trial of ALS."""
SMALLEST_RIDGE, LARGEST_RIDGE = 0.3, 300.0
"""The regularisation of a row of typical frequency, which depends less on the exponent than `regularization` does."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was found, and every trial behind it."""

    config: Config
    trials: list[dict[str, Any]]


def validation_split(table: Interactions, seed: int) -> tuple[Interactions, Interactions]:
    """Training and validation rows: of each user with three rows or more the last, or else a random one.

    Raises `TableError` when no user has three rows.
    """
    rng = np.random.default_rng(seed)
    key_N = rng.random(len(table)) if table.time_ms_N is None else table.time_ms_N
    order_N = np.lexsort((rng.random(len(table)), key_N, table.user_N))
    user_S = table.user_N[order_N]
    is_last_S = np.append(user_S[1:] != user_S[:-1], True)
    rows_U = np.bincount(table.user_N, minlength=len(table.user_ids))
    held_N = np.zeros(len(table), np.bool_)
    held_N[order_N[is_last_S & (rows_U[user_S] >= 3)]] = True
    if not held_N.any():
        raise TableError("tuning: no user has three training rows, so none can be held out; evaluate without --tune.")
    return table.where(~held_N), table.where(held_N)


def tune(
    table: Interactions,
    config: Config,
    *,
    trials: int,
    sampled: bool,
    rank: int,
    limit_s: float,
    seed: int,
    now_s: Callable[[], float] = time.monotonic,
) -> Tuned:
    """The best of so many trials, or of those that fit into the limit; at least one is made.

    `config` is where settings that are not searched come from; `sampled` says whether validation ranks among sampled
    negatives. The search is seeded, and the same where the limit does not end it.
    """
    if isinstance(config, PopularConfig):
        return Tuned(config=config, trials=[])
    kept, held = validation_split(table, seed)
    test = _test(kept, held, sampled, seed)
    matrix = kept.matrix()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    if isinstance(config, AlsConfig):
        study.enqueue_trial(PAPER)
    end_s = now_s() + limit_s

    def value_of(trial: optuna.Trial) -> float:
        candidate = suggest(trial, config, matrix)
        metrics = measure(train(matrix, candidate, seed), matrix, test, [rank], seed)
        found = float(metrics[f"ndcg@{rank}"].mean())
        chosen = " ".join(f"{name}={value:.4g}" for name, value in trial.params.items())
        log.info("trial %d of %d: validation ndcg@%d %.4f, %s", trial.number + 1, trials, rank, found, chosen)
        if now_s() > end_s:
            log.warning("stopped after %d of %d trials: %.0f s have passed", trial.number + 1, trials, limit_s)
            study.stop()
        return found

    study.optimize(value_of, n_trials=trials)
    made = [{"params": trial.params, f"ndcg@{rank}": trial.value} for trial in study.trials]
    return Tuned(config=suggest(study.best_trial, config, matrix), trials=made)


def suggest(trial: optuna.trial.BaseTrial, config: Config, matrix: "sparse.csr_matrix[Any]") -> Config:
    """The configuration of a trial, with what is not searched as it is."""
    found: Mapping[str, Any]
    if isinstance(config, AlsConfig):
        unobserved_weight = trial.suggest_float("unobserved_weight", 0.02, 1.0, log=True)
        exponent = trial.suggest_float("frequency_exponent", 0.0, 1.0)
        ridge = trial.suggest_float("ridge", SMALLEST_RIDGE, LARGEST_RIDGE, log=True)
        found = {
            "backend": Backend.IALS,
            "embedding_dim": trial.suggest_int("embedding_dim", SMALLEST_DIM, LARGEST_DIM, step=DIM_STEP),
            "regularization": ridge / typical_mass(matrix, unobserved_weight) ** exponent,
            "unobserved_weight": unobserved_weight,
            "frequency_exponent": exponent,
            "epochs": trial.suggest_int("epochs", 4, 16),
            "alpha": 1.0 + unobserved_weight,
        }
    else:
        assert isinstance(config, Item2ItemConfig)
        found = {
            "neighbours": trial.suggest_int("neighbours", 20, 1_000, log=True),
            "shrinkage": trial.suggest_float("shrinkage", 0.1, 1_000.0, log=True),
        }
    return config.model_copy(update=dict(found))


def typical_mass(matrix: "sparse.csr_matrix[Any]", unobserved_weight: float) -> float:
    """What the frequency exponent is applied to (`models.als`), for a row of mean frequency on either side."""
    users, items = matrix.shape
    sides = (matrix.nnz / users + unobserved_weight * items, matrix.nnz / items + unobserved_weight * users)
    return float(np.sqrt(sides[0] * sides[1]))


def _test(kept: Interactions, held: Interactions, sampled: bool, seed: int) -> Test:
    rng = np.random.default_rng([seed, 1])
    if len(held) > MAX_QUESTIONS:
        chosen_N = np.zeros(len(held), np.bool_)
        chosen_N[rng.choice(len(held), MAX_QUESTIONS, replace=False)] = True
        held = held.where(chosen_N)
    return build_test(kept, held, _sampled_negatives(kept, held, rng) if sampled else None)


def _sampled_negatives(kept: Interactions, held: Interactions, rng: np.random.Generator) -> Interactions:
    """Up to `NEGATIVES` items a held-out user that are in none of the user's rows, drawn evenly."""
    items = len(held.item_ids)
    taken = (kept.matrix() + held.matrix()).tocsr()
    users: list[npt.NDArray[np.int32]] = []
    chosen: list[npt.NDArray[np.int32]] = []
    for user in np.unique(held.user_N).tolist():
        is_free_I = np.ones(items, np.bool_)
        is_free_I[taken.indices[taken.indptr[user] : taken.indptr[user + 1]]] = False
        free = np.flatnonzero(is_free_I)
        drawn = rng.choice(free, min(NEGATIVES, len(free)), replace=False).astype(np.int32)
        chosen.append(drawn)
        users.append(np.full(len(drawn), user, np.int32))
    user_N, item_N = np.concatenate(users), np.concatenate(chosen)
    return Interactions(
        user_ids=held.user_ids,
        item_ids=held.item_ids,
        user_N=user_N,
        item_N=item_N,
        weight_N=np.ones(len(user_N), np.float32),
        time_ms_N=None,
    )
