"""Exact search of the largest inner products, by a scan of factors that are rounded to a byte each.

The rounded factors are a quarter of what is read. How far a rounded product may be off is known, so every item that
might be among the best is looked at again with its full factors: two-stage scalar quantisation, whose second stage
leaves nothing to chance.

Shapes: I items, D width, N items that are looked at again, C found.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from numba import boolean, float32, int8, int32, int64

from features.compiled import compiled, given
from models.sources.base import EMPTY, Bools, Candidates, Float32s, Int32s

_LEVELS = 127
_SAMPLED = 17
"""One of so many blocks of items is looked at first, to guess what the best reach."""
_BLOCK = 64
"""Items next to each other: memory that is read in steps is waited for each time."""
_OFF = 0.505
"""Steps by which a rounded factor is off at most: a half, and something for the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class RoundedFactors:
    """Factors of items, and the same as whole numbers of steps, of which the greatest in a row has 127."""

    factors_ID: Float32s
    steps_ID: npt.NDArray[np.int8]
    step_I: Float32s
    """The size of a row's step; NaN where the row is not finite, which is never found."""

    @classmethod
    def of(cls, factors_ID: Float32s) -> Self:
        """Rounds the factors."""
        greatest_I = np.abs(factors_ID).max(axis=1, initial=0.0)
        step_I = (np.where(np.isfinite(greatest_I), greatest_I, np.nan) / _LEVELS).astype(np.float32)
        in_steps_ID = factors_ID / np.where(step_I > 0, step_I, 1.0)[:, None]
        steps_ID = np.rint(np.where(np.isfinite(in_steps_ID), in_steps_ID, 0.0)).astype(np.int8)
        return cls(factors_ID=np.ascontiguousarray(factors_ID), steps_ID=steps_ID, step_I=step_I)

    def best(self, user_D: Float32s, allowed_I: Bools, count: int) -> Candidates:
        """The `count` allowed items of the largest inner product, best first; ties go to the lower index. None
        for a user whose factors are not finite.
        """
        if user_D.shape != self.factors_ID.shape[1:] or allowed_I.shape != self.step_I.shape:
            raise ValueError(
                f"{self.factors_ID.shape} factors: got {user_D.shape} of the user, {allowed_I.shape} allowed or not; "
                "needed: one a column, one a row."
            )
        off = float(_OFF * np.abs(user_D).sum())
        if count <= 0 or not np.isfinite(off):
            return EMPTY
        least_N, item_N = self._reaching(-np.inf, user_D, off, allowed_I, every=_SAMPLED)
        bound = _greatest(least_N, 2 * count // _SAMPLED + 8)
        least_N, item_N = self._reaching(bound, user_D, off, allowed_I)
        if _greatest(least_N, count) < bound:  # it was too high: some of the best may not reach it
            least_N, item_N = self._reaching(-np.inf, user_D, off, allowed_I)
        item_N = item_N[least_N + np.float32(2 * off) * self.step_I[item_N] >= _greatest(least_N, count)]
        score_N = np.empty(len(item_N), np.float32)
        _products(self.factors_ID, item_N, user_D, score_N)
        order_C = np.argsort(-score_N, kind="stable")[:count]
        return Candidates(item_index=item_N[order_C], score=score_N[order_C])

    def _reaching(
        self, bound: float, user_D: Float32s, off: float, allowed_I: Bools, every: int = 1
    ) -> tuple[Float32s, Int32s]:
        """What is allowed and may reach the bound, of each so many blocks one: its least product, and the item."""
        least_I, item_I = np.empty(len(self.step_I), np.float32), np.empty(len(self.step_I), np.int32)
        found = _scan(self.steps_ID, self.step_I, user_D, off, allowed_I, bound, every, least_I, item_I)
        return least_I[:found], item_I[:found]


def _greatest(value_N: Float32s, rank: int) -> float:
    """The value of this rank, from 1; -inf where there are fewer."""
    if rank > len(value_N):
        return -np.inf
    return float(np.partition(value_N, len(value_N) - rank)[len(value_N) - rank])


_FLOATS = given(float32, 1, contiguous=True)


@compiled(
    given(int8, 2, contiguous=True),
    *[_FLOATS] * 2,
    float32,
    given(boolean, 1, contiguous=True),
    float32,
    int64,
    float32[::1],
    int32[::1],
    returns=int64,
    any_order=True,
)
def _scan(
    steps_ID: npt.NDArray[np.int8],
    step_I: Float32s,
    user_D: Float32s,
    off: float,
    allowed_I: Bools,
    bound: float,
    every: int,
    least_I: Float32s,
    item_I: Int32s,
) -> int:
    """Returns how many reach it."""
    items, width = steps_ID.shape
    found = 0
    for first in range(0, items, _BLOCK * every):
        for i in range(first, min(first + _BLOCK, items)):
            product = float32(0)
            for d in range(width):
                product += float32(steps_ID[i, d]) * user_D[d]
            if (product + off) * step_I[i] >= bound and allowed_I[i]:
                least_I[found], item_I[found] = (product - off) * step_I[i], i
                found += 1
    return found


@compiled(given(float32, 2, contiguous=True), given(int32, 1), _FLOATS, float32[::1], any_order=True)
def _products(factors_ID: Float32s, item_N: Int32s, user_D: Float32s, score_N: Float32s) -> None:
    for n in range(len(item_N)):
        product = float32(0)
        for d in range(factors_ID.shape[1]):
            product += factors_ID[item_N[n], d] * user_D[d]
        score_N[n] = product
