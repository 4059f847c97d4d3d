"""Reranking: spread, freshness, exploration slots and their propensities, judged by counting."""

from collections import Counter

import numpy as np
import pytest

from serving.rerank import RankedRows, RerankConfig, by_score, exploration_slots, rerank, spread_order

PLAIN = RerankConfig(category_penalty=0, creator_penalty=0, fresh_bonus=0, epsilon=0)


def _rerank(score: list[float], config: RerankConfig = PLAIN, **changed: object) -> RankedRows:
    count = len(score)
    arguments: dict[str, object] = {
        "score_C": np.array(score),
        "category_C": np.arange(count),
        "creator_C": np.arange(count),
        "age_ms_C": np.zeros(count, np.int64),
        "explorable_C": np.zeros(count, np.bool_),
        "count": count,
        "config": config,
        "rng": None,
    }
    return rerank(**{**arguments, **changed})  # type: ignore[arg-type]


def test_by_score_sinks_what_is_not_finite_and_keeps_ties_in_order() -> None:
    rows = by_score(np.array([1.0, np.nan, 2.0, -np.inf, 2.0]), 5)
    assert rows.row_S.tolist() == [2, 4, 0, 1, 3]
    assert rows.propensity_S.tolist() == [1.0] * 5


def test_without_penalties_the_order_is_the_scores() -> None:
    assert _rerank([0.1, 0.4, 0.3]).row_S.tolist() == [1, 2, 0]


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_non_finite_scores_come_last(bad: float) -> None:
    assert _rerank([bad, 0.4, 0.3]).row_S.tolist() == [1, 2, 0]


def test_a_slate_of_none_and_of_no_candidates() -> None:
    assert _rerank([0.1, 0.2], count=0).row_S.tolist() == []
    assert _rerank([]).row_S.tolist() == []


def test_categories_are_spread() -> None:
    # After two items of category 0 the third has lost 2 x 0.5 x 0.1 and the only item of category 1 passes it.
    score = np.array([1.0, 0.99, 0.98, 0.97, 0.9])
    category = np.array([0, 0, 0, 0, 1])
    order = spread_order(score, category, np.arange(5), 0.1, 5, RerankConfig(category_penalty=0.5, creator_penalty=0))
    assert order.tolist() == [0, 1, 4, 2, 3]


def test_spread_beyond_its_positions_follows_the_score() -> None:
    config = RerankConfig(spread_positions=2, category_penalty=100)
    order = spread_order(np.array([5.0, 4.0, 3.0, 2.0]), np.array([0, 0, 1, 1]), np.zeros(4, np.int64), 1.0, 4, config)
    assert order.tolist() == [0, 2, 1, 3]


def test_a_fresh_item_gains() -> None:
    config = RerankConfig(category_penalty=0, creator_penalty=0, fresh_bonus=3.0, epsilon=0)
    week_ms = 7 * 86_400_000
    assert _rerank([1.0, 0.9], config, age_ms_C=np.array([week_ms, 0])).row_S.tolist() == [1, 0]


def test_slots_lie_once_in_each_full_block() -> None:
    config = RerankConfig(explore_every=10, explore_offset=6)
    assert [exploration_slots(count, config) for count in (9, 10, 25)] == [[], [6], [6, 16]]


def test_propensities_are_the_frequencies_of_the_draw() -> None:
    score = [1.0 - k / 20 for k in range(20)]
    explorable = np.isin(np.arange(20), [12, 15, 18])
    config = RerankConfig(category_penalty=0, creator_penalty=0, fresh_bonus=0, epsilon=0.5)
    draws, stated = Counter[int](), {}
    runs = 4_000
    for seed in range(runs):
        rows = _rerank(score, config, explorable_C=explorable, count=10, rng=np.random.default_rng(seed))
        rest = [row for row in range(10) if row != rows.row_S[6]][:9]
        assert rows.row_S.tolist()[:6] + rows.row_S.tolist()[7:] == rest
        assert rows.propensity_S[[0, 1, 2, 3, 4, 5, 7, 8, 9]].tolist() == [1.0] * 9
        assert rows.explored_S[6] == (rows.row_S[6] in (12, 15, 18))
        draws[int(rows.row_S[6])] += 1
        stated[int(rows.row_S[6])] = float(rows.propensity_S[6])
    assert set(draws) == {6, 12, 15, 18} and sum(stated.values()) == pytest.approx(1.0)
    for row, times in draws.items():
        assert times / runs == pytest.approx(stated[row], abs=0.03)  # four standard errors


def test_without_candidates_to_explore_the_next_best_takes_the_slot() -> None:
    rows = _rerank(list(range(20, 0, -1)), RerankConfig(epsilon=1.0), count=10, rng=np.random.default_rng(0))
    assert not rows.explored_S.any() and rows.propensity_S.tolist() == [1.0] * 10


def test_a_slate_has_no_item_twice() -> None:
    rng = np.random.default_rng(1)
    for seed in range(200):
        score = rng.normal(size=60)
        score[rng.random(60) < 0.1] = np.nan
        config = RerankConfig(epsilon=0.9)
        rows = _rerank(
            score.tolist(),
            config,
            category_C=rng.integers(0, 4, 60),
            explorable_C=rng.random(60) < 0.4,
            count=30,
            rng=np.random.default_rng(seed),
        )
        assert len(set(rows.row_S.tolist())) == 30
        assert ((rows.propensity_S > 0) & (rows.propensity_S <= 1)).all()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon=1.5"):
        RerankConfig(epsilon=1.5)
