"""The best items of a score: the same as sorting all of them, whatever a sample of them suggests."""

import numpy as np
import pytest

from models.sources.base import top


def _sorted(score_I: np.ndarray, eligible_I: np.ndarray, count: int) -> list[int]:
    able = [i for i in range(len(score_I)) if eligible_I[i] and np.isfinite(score_I[i])]
    return sorted(able, key=lambda i: (-np.float32(score_I[i]), i))[: max(count, 0)]


@pytest.mark.parametrize("seed", range(40))
def test_the_best_are_those_of_a_full_sort(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, count = int(rng.integers(0, 3_000)), int(rng.integers(-1, 200))
    score_I = [
        lambda: rng.normal(size=items),
        lambda: rng.integers(0, 5, items).astype(np.float64),  # many ties
        lambda: np.where(np.arange(items) % 16 == 0, 9.0, rng.random(items)),  # the sample sees the best only
        lambda: np.where(np.arange(items) % 16 == 0, -9.0, rng.random(items)),  # the sample sees the worst only
        lambda: np.zeros(items, np.float32),
    ][seed % 5]()
    score_I[rng.random(items) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    eligible_I = rng.random(items) < rng.choice([0.01, 0.5, 1.0])
    found = top(score_I, eligible_I, count)
    expected = _sorted(score_I, eligible_I, count)
    assert found.item_index.tolist() == expected
    assert found.score.tolist() == [float(np.float32(score_I[i])) for i in expected]
