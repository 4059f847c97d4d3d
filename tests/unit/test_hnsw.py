"""The approximate search of ALS beside the exact one."""

from dataclasses import replace

import numpy as np
import pytest

from features.items import Item
from models.item_table import train_item_table
from models.sources import RetrievalRequest, hnsw
from models.sources.als import AlsSource

ITEMS, WIDTH = 3_000, 16


@pytest.fixture(scope="module")
def source() -> AlsSource:
    rng = np.random.default_rng(0)
    factors_ID = rng.normal(0, 0.3, (ITEMS, WIDTH)).astype(np.float32)
    plain = AlsSource(item_factors_ID=factors_ID, alpha=2.0, regularization=0.1)
    return replace(plain, hnsw_N=hnsw.build(factors_ID))


def request(seed: int, excluded: float) -> RetrievalRequest:
    rng = np.random.default_rng(seed)
    table = train_item_table(
        [
            Item(item_id=f"i{i:05}", category="c", creator_id="k", language="en", duration_ms=1, published_at_ms=0)
            for i in range(ITEMS + 2)
        ]
    )
    return RetrievalRequest(
        instant_ms=1,
        item_table=table,
        history_index_L=rng.choice(ITEMS, 5, replace=False).astype(np.int32),
        history_weight_L=np.ones(5, np.float32),
        history_age_ms_L=np.zeros(5, np.int64),
        excluded_I=rng.random(ITEMS + 2) < excluded,
        rng=rng,
    )


def test_most_of_the_exact_answer_is_found_and_nothing_that_is_excluded(source: AlsSource) -> None:
    exact, recalls = replace(source, hnsw_N=None), []
    for seed in range(10):
        asked = request(seed, excluded=0.2)
        found, best = source.candidates(asked, 50), exact.candidates(asked, 50)
        assert len(found) == 50 and asked.allowed_I[found.item_index].all()
        assert (np.diff(found.score) <= 0).all()
        recalls.append(np.isin(best.item_index, found.item_index).mean())
    assert np.mean(recalls) > 0.9


def test_where_little_is_left_all_items_are_searched(source: AlsSource) -> None:
    asked = request(3, excluded=0.99)
    exact = replace(source, hnsw_N=None).candidates(asked, 20)
    np.testing.assert_array_equal(source.candidates(asked, 20).item_index, exact.item_index)


def test_the_index_survives_the_bundle_and_is_the_same_each_time(source: AlsSource) -> None:
    assert source.hnsw_N is not None
    np.testing.assert_array_equal(hnsw.build(source.item_factors_ID), source.hnsw_N)
    again, asked = AlsSource.from_arrays(source.to_arrays()), request(4, excluded=0.1)
    np.testing.assert_array_equal(again.candidates(asked, 30).item_index, source.candidates(asked, 30).item_index)
