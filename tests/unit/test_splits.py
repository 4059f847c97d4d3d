"""Splits by time."""

import numpy as np
import pytest

from models.splits import SplitError, time_split


def test_parts_are_disjoint_complete_and_in_order() -> None:
    time_ms_N = np.random.default_rng(0).integers(0, 10_000, 1_000)
    split = time_split(time_ms_N, validation_share=0.2, test_share=0.1)
    parts = [split.train(time_ms_N), split.validation(time_ms_N), split.test(time_ms_N)]
    assert (np.sum(parts, axis=0) == 1).all()
    train, validation, test = (time_ms_N[part] for part in parts)
    assert train.max() < validation.min() <= validation.max() < test.min()
    assert [len(train), len(validation), len(test)] == pytest.approx([700, 200, 100], abs=5)


@pytest.mark.parametrize("time_ms_N", [np.empty(0, np.int64), np.array([1, 2]), np.full(100, 7)])
def test_what_cannot_be_split_is_refused_in_a_sentence(time_ms_N: np.ndarray) -> None:
    with pytest.raises(SplitError, match="let more history gather"):
        time_split(time_ms_N)
