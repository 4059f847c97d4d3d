"""What ALS says of a user and a candidate, as an input of the ranker that does not know the answer.

Factors that were trained on a click know it, and a ranker that read them in training would trust them more than they
deserve when it serves. So each example reads factors that were trained without its user, who is folded in from the
history of the moment: the users are dealt into folds (`models.splits`), and each fold has factors of all the others'
interactions (cross-fitting: Chernozhukov et al., The Econometrics Journal 2018). Factors of two trainings cannot be
compared, but their products can.

The bundle's factors are those of the first fold: what it serves is what the users who calibrate and judge it have read.

Shapes: U users, N examples, I items, D width, A affinities.
"""

from collections.abc import Sequence

import numpy as np

from models.als import AlsConfig
from models.examples import Examples
from models.lake import EventLog
from models.ranker_inputs import Float32s, Int64s, no_affinity
from models.sources.als import AlsSource
from models.splits import FOLDS, fold_of, user_draw
from models.train_sources import feedback, train_als


def without_fold(log: EventLog, fold: int) -> EventLog:
    """The events of the other folds' users."""
    return log.where(_fold_N(log) != fold)


def cross_fitted(
    log: EventLog, items: int, config: AlsConfig, seed: int, first: AlsSource | None = None
) -> list[AlsSource]:
    """The factors of each fold, the first fold's where they are not given already.

    Raises `models.als.AlsError` where the others have no interactions.
    """
    folds = range(FOLDS) if first is None else range(1, FOLDS)
    fold_N = _fold_N(log)
    trained = [train_als(feedback(log.where(fold_N != fold), items), config, seed) for fold in folds]
    return trained if first is None else [first, *trained]


def _fold_N(log: EventLog) -> Int64s:  # noqa: N802 - shape suffix
    """The fold of each event's user."""
    draw_U = np.array([user_draw(user_id) for user_id in log.user_ids])
    return fold_of(draw_U)[log.user_N]


def affinity_of(examples: Examples, sources: Sequence[AlsSource]) -> Float32s:
    """`[N, A]` of the examples, of each by its fold's factors; with one source by that, whatever the user."""
    fold_N = fold_of(examples.user_draw_N) if len(sources) > 1 else np.zeros(len(examples), np.int64)
    item_index_N = examples.inputs.item_C - 1  # of the embedding's row
    affinity_NA = no_affinity(len(examples))
    for fold, source in enumerate(sources):
        rows = np.flatnonzero(fold_N == fold)
        rows = rows[np.argsort(examples.history_N[rows], kind="stable")]
        for part in np.split(rows, np.flatnonzero(np.diff(examples.history_N[rows])) + 1):
            if len(part):
                history = examples.histories[examples.history_N[part[0]]]
                user_D = source.fold_in(history.item_index_L, history.weight_L)
                affinity_NA[part] = source.affinity(user_D, item_index_N[part])
    return affinity_NA
