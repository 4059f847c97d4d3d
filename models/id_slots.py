"""Which item has an id, for a thousand ids at once: a hash table with linear probing (Knuth, TAOCP 3, 6.4).

No string is looked at but for its 64-bit hash: with a chance of 1 in 10^11 for a thousand ids among 50,000 items, an id
that is none of them is taken for one. It is a tenth of what a look into a dict takes, which waits for memory at
each id.

I items, N ids, S slots.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from numba import boolean, int32, int64

from features.compiled import compiled, given

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_FREE = -1
_SPARSE = 2
"""At least so many slots an item."""


@dataclass(frozen=True, kw_only=True)
class IdSlots:
    """The items' hashes, each in the first slot that was free from where its lowest bits say."""

    size: int
    """Items in it, numbered from 0."""
    hash_S: Int64s
    item_S: Int32s

    @classmethod
    def of(cls, item_ids: Collection[str]) -> Self:
        """The items in their order."""
        slots = 1 << (_SPARSE * len(item_ids)).bit_length()
        hash_S, item_S = np.zeros(slots, np.int64), np.full(slots, _FREE, np.int32)
        _fill(_hashes(item_ids), 0, hash_S, item_S)
        return cls(size=len(item_ids), hash_S=hash_S, item_S=item_S)

    def with_ids(self, item_ids: tuple[str, ...]) -> Self:
        """With the items that these have beyond its own, which they begin with."""
        if len(item_ids) == self.size:
            return self
        if len(item_ids) * _SPARSE > len(self.item_S):
            return self.of(item_ids)
        hash_S, item_S = self.hash_S.copy(), self.item_S.copy()
        _fill(_hashes(item_ids[self.size :]), self.size, hash_S, item_S)
        return type(self)(size=len(item_ids), hash_S=hash_S, item_S=item_S)

    def mask_of(self, item_ids: Collection[str]) -> Bools:
        """Marks these items `[I]`; ids of none mark nothing."""
        mask_I = np.zeros(self.size, np.bool_)
        _mark(_hashes(item_ids), self.hash_S, self.item_S, mask_I)
        return mask_I


def _hashes(item_ids: Collection[str]) -> Int64s:
    return np.fromiter(map(hash, item_ids), np.int64, len(item_ids))


@compiled(given(int64, 1), int64, int64[::1], int32[::1])
def _fill(hash_N: Int64s, first_item: int, hash_S: Int64s, item_S: Int32s) -> None:
    for n in range(len(hash_N)):
        s = hash_N[n] & (len(item_S) - 1)
        while item_S[s] >= 0:
            s = (s + 1) & (len(item_S) - 1)
        hash_S[s], item_S[s] = hash_N[n], first_item + n


@compiled(given(int64, 1), given(int64, 1), given(int32, 1), boolean[::1])
def _mark(hash_N: Int64s, hash_S: Int64s, item_S: Int32s, mask_I: Bools) -> None:
    for n in range(len(hash_N)):
        s = hash_N[n] & (len(item_S) - 1)
        while item_S[s] >= 0 and hash_S[s] != hash_N[n]:
            s = (s + 1) & (len(item_S) - 1)
        if item_S[s] >= 0:
            mask_I[item_S[s]] = True
