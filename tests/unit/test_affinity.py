"""What ALS says of an example must not know its answer; what it says of an item must not depend on its neighbours."""

from dataclasses import replace

import numpy as np
import pytest

from features.events import TYPE_CODE, EventType
from models.affinity import affinity_of, cross_fitted, without_fold
from models.als import AlsConfig
from models.examples import Examples
from models.history import UserHistory
from models.lake import EventLog
from models.metrics import auc
from models.sources.als import AlsSource
from models.splits import CALIBRATION_SHARE, FOLDS, JUDGING_SHARE, fold_of, is_calibrating, is_judging, user_draw
from models.train_sources import feedback, train_als
from tests.ranker_examples import small

USERS, ITEMS, SHOWN = 300, 40, 12
CONFIG = AlsConfig(embedding_dim=16, regularization=5.0, alpha=10.0, threads=1)


def coins(seed: int) -> tuple[EventLog, np.ndarray, np.ndarray]:
    """Users who click what they are shown by the throw of a coin; the items shown `[U, S]` and what was clicked."""
    rng = np.random.default_rng(seed)
    shown_US = np.argsort(rng.random((USERS, ITEMS)), axis=1)[:, :SHOWN]
    clicked_US = rng.random(shown_US.shape) < 0.5
    user_N, slot_N = np.nonzero(clicked_US)
    log = EventLog(
        user_ids=tuple(f"user-{user}" for user in range(USERS)),
        user_N=user_N,
        item_N=shown_US[user_N, slot_N].astype(np.int32),
        type_N=np.full(len(user_N), TYPE_CODE[EventType.CLICK], np.int8),
        time_ms_N=np.arange(len(user_N), dtype=np.int64),
    )
    return log, shown_US, clicked_US


def last_ones(shown_US: np.ndarray, clicked_US: np.ndarray) -> Examples:
    """The last two items of each user as examples, with what was clicked before as the history."""
    histories = []
    for user in range(USERS):
        liked = shown_US[user, :-2][clicked_US[user, :-2]].astype(np.int32)
        ones = np.ones(len(liked), np.float32)
        histories.append(UserHistory(item_index_L=liked, weight_L=ones, time_ms_L=np.zeros(len(liked), np.int64)))
    some = small().examples
    take = np.arange(2 * USERS)
    inputs = replace(some.inputs.take(take), item_C=(shown_US[:, -2:].ravel() + 1).astype(np.int32))
    return replace(
        some,
        inputs=inputs,
        time_ms_N=some.time_ms_N[take],
        user_draw_N=np.repeat([user_draw(f"user-{user}") for user in range(USERS)], 2),
        history_N=np.repeat(np.arange(USERS), 2),
        histories=tuple(histories),
    )


def test_factors_that_knew_the_coin_would_tell_how_it_fell_and_those_of_the_folds_do_not() -> None:
    log, shown_US, clicked_US = coins(0)
    examples, clicked_N = last_ones(shown_US, clicked_US), clicked_US[:, -2:].ravel()
    knowing = affinity_of(examples, [train_als(feedback(log, ITEMS), CONFIG, 0)])
    fitted = affinity_of(examples, cross_fitted(log, ITEMS, CONFIG, 0))
    assert auc(clicked_N, knowing[:, 0]) > 0.6
    assert abs(auc(clicked_N, fitted[:, 0]) - 0.5) < 0.06
    assert abs(auc(clicked_N, fitted[:, 1]) - 0.5) < 0.06


def test_a_folds_factors_are_the_same_whatever_its_users_do() -> None:
    log, _, _ = coins(0)
    fold_U = fold_of(np.array([user_draw(user_id) for user_id in log.user_ids]))
    other = replace(log, item_N=np.where(fold_U[log.user_N] == 2, 0, log.item_N).astype(np.int32))
    before, after = (cross_fitted(each, ITEMS, CONFIG, 0) for each in (log, other))
    same = [np.array_equal(a.item_factors_ID, b.item_factors_ID) for a, b in zip(before, after, strict=True)]
    assert same == [fold == 2 for fold in range(FOLDS)]
    assert set(np.unique(fold_U[without_fold(log, 2).user_N])) == {0, 1, 3, 4}


def test_the_first_fold_are_the_users_who_calibrate_and_judge() -> None:
    assert pytest.approx(1) == FOLDS * (CALIBRATION_SHARE + JUDGING_SHARE)
    draw_U = np.array([user_draw(f"user-{user}") for user in range(2_000)])
    np.testing.assert_array_equal(fold_of(draw_U) == 0, is_calibrating(draw_U) | is_judging(draw_U))
    assert np.bincount(fold_of(draw_U)).min() > 300


def test_given_factors_are_the_first_folds() -> None:
    log, _, _ = coins(0)
    given = AlsSource(item_factors_ID=np.ones((ITEMS, 16), np.float32), alpha=1.0, regularization=1.0)
    first, second, *_ = cross_fitted(log, ITEMS, CONFIG, 0, given)
    assert first is given
    np.testing.assert_array_equal(second.item_factors_ID, cross_fitted(log, ITEMS, CONFIG, 0)[1].item_factors_ID)


def test_what_als_says_of_an_item_is_the_same_alone_and_among_others() -> None:
    rng = np.random.default_rng(0)
    factors_ID = rng.normal(size=(200, 64)).astype(np.float32)
    als = AlsSource(item_factors_ID=factors_ID, alpha=2.0, regularization=1.0)
    user_D = als.fold_in(np.array([3, 5, 8], np.int32), np.ones(3, np.float32))
    item_index_C = rng.permutation(200).astype(np.int32)
    together = als.affinity(user_D, item_index_C)
    for row in range(0, 200, 17):
        np.testing.assert_array_equal(als.affinity(user_D, item_index_C[row : row + 1])[0], together[row])
    np.testing.assert_allclose(together[:, 0], factors_ID[item_index_C] @ user_D, rtol=1e-5, atol=1e-7)
    length_C = np.linalg.norm(factors_ID[item_index_C], axis=1) * np.linalg.norm(user_D)
    np.testing.assert_allclose(together[:, 1], together[:, 0] / length_C, rtol=1e-5, atol=1e-7)


def test_als_says_nothing_of_unknown_items_and_of_users_without_history() -> None:
    factors_ID = np.ones((4, 8), np.float32)
    als = AlsSource(item_factors_ID=factors_ID, alpha=2.0, regularization=1.0)
    user_D = als.fold_in(np.array([0], np.int32), np.ones(1, np.float32))
    said = als.affinity(user_D, np.array([-1, 4, 100, 2], np.int32))
    assert not said[:3].any() and said[3].all()
    nobody_D = als.fold_in(np.empty(0, np.int32), np.empty(0, np.float32))
    assert not als.affinity(nobody_D, np.arange(4, dtype=np.int32)).any()
    assert als.affinity(user_D, np.empty(0, np.int32)).shape == (0, 2)


def test_examples_of_one_slate_share_a_history() -> None:
    examples = small().examples
    assert len(examples.histories) < len(examples) / 2
    for n in range(0, len(examples), 97):
        history = examples.histories[examples.history_N[n]]
        kept = history.item_index_L[: examples.inputs.history_item_UL.shape[1]]
        slots = examples.inputs.history_item_UL[n]
        np.testing.assert_array_equal(slots[: len(kept)], kept + 1)
        assert not slots[len(kept) :].any()
