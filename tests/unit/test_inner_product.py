"""The search of rounded factors finds what a look at all full factors finds."""

import numpy as np
import pytest

from models.sources.inner_product import RoundedFactors


@pytest.mark.parametrize("seed", range(12))
def test_it_finds_the_best_of_all_in_their_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, width = int(rng.integers(1, 6_000)), int(rng.integers(1, 70))
    factors_ID = rng.normal(0, 1, (items, width)).astype(np.float32)
    factors_ID *= rng.lognormal(0, 2, (items, 1)).astype(np.float32)  # some are known far better than others
    user_D, allowed_I = rng.normal(0, 3, width).astype(np.float32), rng.random(items) < 0.8
    rounded = RoundedFactors.of(factors_ID)
    score_I = factors_ID.astype(np.float64) @ user_D
    rounding = 1e-6 * float((np.abs(factors_ID) @ np.abs(user_D)).max())
    for count in (0, 1, 20, 150, items, 2 * items):
        found = rounded.best(user_D, allowed_I, count)
        best = np.sort(score_I[allowed_I])[::-1][:count]
        assert len(set(found.item_index.tolist())) == len(best) and allowed_I[found.item_index].all()
        np.testing.assert_allclose(score_I[found.item_index], best, rtol=0, atol=rounding)
        np.testing.assert_allclose(found.score, best, rtol=0, atol=rounding)


def test_ties_go_to_the_lower_index_and_a_user_of_nothing_likes_all_the_same() -> None:
    factors_ID = np.tile(np.array([[1, 2], [3, 4], [0, 0]], np.float32), (400, 1))
    rounded, all_I = RoundedFactors.of(factors_ID), np.ones(1_200, np.bool_)
    assert rounded.best(np.array([1, 0], np.float32), all_I, 3).item_index.tolist() == [1, 4, 7]
    assert rounded.best(np.zeros(2, np.float32), all_I, 3).item_index.tolist() == [0, 1, 2]
    assert not len(rounded.best(np.array([1, 0], np.float32), ~all_I, 3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_found(bad: float) -> None:
    factors_ID = np.array([[1, 1], [bad, 1], [2, 2]], np.float32)
    rounded, all_I = RoundedFactors.of(factors_ID), np.ones(3, np.bool_)
    assert rounded.best(np.array([1, 1], np.float32), all_I, 3).item_index.tolist() == [2, 0]
    assert not len(rounded.best(np.array([bad, 1], np.float32), all_I, 3))


def test_no_items_and_no_factors() -> None:
    assert not len(
        RoundedFactors.of(np.empty((0, 4), np.float32)).best(np.ones(4, np.float32), np.ones(0, np.bool_), 5)
    )


def test_factors_and_marks_of_another_shape_are_refused() -> None:
    rounded = RoundedFactors.of(np.ones((3, 2), np.float32))
    for user_D, allowed_I in (
        (np.ones(3, np.float32), np.ones(3, np.bool_)),
        (np.ones(2, np.float32), np.ones(2, np.bool_)),
    ):
        with pytest.raises(ValueError, match="one a column, one a row"):
            rounded.best(user_D, allowed_I, 1)
