"""Splits by time, for what is reported, and by user, for what is shipped. Nothing is ever tuned on what is reported.

By time: train, then validation, then test. A model that ends there has never seen the newest fifth, which is what the
model before it brought about; what is shipped is trained again on all times, without some users who judge it.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.refusal import RefusalError

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class SplitError(RefusalError):
    """Times that cannot be split."""


@dataclass(frozen=True, kw_only=True)
class TimeSplit:
    """Two instants. Train is before the first, validation from it to before the second, test from the second on."""

    validation_start_ms: int
    test_start_ms: int

    def train(self, time_ms_N: Int64s) -> Bools:
        """Marks the training examples."""
        return time_ms_N < self.validation_start_ms

    def validation(self, time_ms_N: Int64s) -> Bools:
        """Marks the examples for early stopping, calibration and tuning."""
        return (time_ms_N >= self.validation_start_ms) & (time_ms_N < self.test_start_ms)

    def test(self, time_ms_N: Int64s) -> Bools:
        """Marks the examples that are reported."""
        return time_ms_N >= self.test_start_ms


CALIBRATION_SHARE, JUDGING_SHARE = 0.05, 0.15
"""Of the users, how many choose the epoch and calibrate, and how many judge. They are the same in every run, so that
the champion has not been trained on the users by whom a later bundle is compared with it."""


def user_draw(user_id: str) -> float:
    """A number from 0 to below 1 that is the user's in every run."""
    digest = hashlib.blake2b(user_id.encode(), digest_size=8, person=b"held-out").digest()
    return (int.from_bytes(digest) >> 11) / 2**53


FOLDS = round(1 / (CALIBRATION_SHARE + JUDGING_SHARE))
"""Parts of the users, of equal size: the first are the users above, who are held out."""


def fold_of(draw_N: Float64s) -> Int64s:
    """The fold of those users, from 0."""
    return (draw_N * FOLDS).astype(np.int64)


def is_judging(draw_N: Float64s) -> Bools:
    """Marks those of users who judge what is shipped."""
    return draw_N < JUDGING_SHARE


def is_calibrating(draw_N: Float64s) -> Bools:
    """Marks those of users by whom what is shipped is calibrated."""
    return (draw_N >= JUDGING_SHARE) & (draw_N < JUDGING_SHARE + CALIBRATION_SHARE)


def time_split(time_ms_N: Int64s, validation_share: float = 0.1, test_share: float = 0.1) -> TimeSplit:
    """Instants at which about these shares of the examples, the newest, are validation and test.

    Examples of one instant stay together. Raises `SplitError` when a part would be empty.
    """
    if len(time_ms_N) < 3:
        raise SplitError(f"got {len(time_ms_N)} examples; a split by time needs 3 or more: let more history gather.")
    sorted_N = np.sort(time_ms_N)
    last = len(sorted_N) - 1
    starts = [round(len(sorted_N) * share) for share in (1 - validation_share - test_share, 1 - test_share)]
    split = TimeSplit(
        validation_start_ms=int(sorted_N[min(max(starts[0], 1), last)]),
        test_start_ms=int(sorted_N[min(max(starts[1], 2), last)]),
    )
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    for name, part in parts.items():
        if not part(time_ms_N).any():
            raise SplitError(
                f"the {name} part of {len(time_ms_N)} examples is empty: too many share one instant; "
                "let more history gather."
            )
    return split
