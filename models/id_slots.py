"""Which item has an id, for a thousand ids at once: a hash table with linear probing (Knuth, TAOCP 3, 6.4).

Ids are told by their hashes alone (`features.id_hashes`). A look into a dict waits for memory at each id; here many
wait at once.

I items, N ids, S slots.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from numba import boolean, int32, int64, uint64

from features.compiled import compiled, given, inlined
from features.id_hashes import Uint64s, hashes_of

Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

UNKNOWN = -1
"""The item of an id that no item has; and of a free slot."""
_SPARSE = 2
"""At least so many slots an item."""


@dataclass(frozen=True, kw_only=True)
class IdSlots:
    """The items' hashes, each in the first slot that was free from where its lowest bits say."""

    size: int
    """Items in it, numbered from 0."""
    hash_S: Uint64s
    item_S: Int32s

    @classmethod
    def of(cls, item_ids: Collection[str]) -> Self:
        """The items in their order."""
        slots = 1 << (_SPARSE * len(item_ids)).bit_length()
        hash_S, item_S = np.zeros(slots, np.uint64), np.full(slots, UNKNOWN, np.int32)
        _fill(hashes_of(item_ids), 0, hash_S, item_S)
        return cls(size=len(item_ids), hash_S=hash_S, item_S=item_S)

    def with_ids(self, item_ids: tuple[str, ...]) -> Self:
        """With the items that these have beyond its own, which they begin with."""
        if len(item_ids) == self.size:
            return self
        if len(item_ids) * _SPARSE > len(self.item_S):
            return self.of(item_ids)
        hash_S, item_S = self.hash_S.copy(), self.item_S.copy()
        _fill(hashes_of(item_ids[self.size :]), self.size, hash_S, item_S)
        return type(self)(size=len(item_ids), hash_S=hash_S, item_S=item_S)

    def items_of(self, hash_N: Uint64s) -> Int32s:
        """The item of each hash `[N]`, `UNKNOWN` where none has it."""
        item_N = np.empty(len(hash_N), np.int32)
        _find(hash_N, self.hash_S, self.item_S, item_N)
        return item_N

    def mask_of(self, hash_N: Uint64s) -> Bools:
        """Marks the items with these hashes `[I]`."""
        mask_I = np.zeros(self.size, np.bool_)
        _mark(hash_N, self.hash_S, self.item_S, mask_I)
        return mask_I


@compiled(given(uint64, 1), int64, uint64[::1], int32[::1])
def _fill(hash_N: Uint64s, first_item: int, hash_S: Uint64s, item_S: Int32s) -> None:
    for n in range(len(hash_N)):
        s = np.int64(hash_N[n]) & (len(item_S) - 1)
        while item_S[s] >= 0:
            s = (s + 1) & (len(item_S) - 1)
        hash_S[s], item_S[s] = hash_N[n], first_item + n


@inlined
def _item(hash_: np.uint64, hash_S: Uint64s, item_S: Int32s) -> int:
    """The item with the hash; `UNKNOWN` where there is none."""
    s = np.int64(hash_) & (len(item_S) - 1)
    while item_S[s] >= 0 and hash_S[s] != hash_:
        s = (s + 1) & (len(item_S) - 1)
    return int(item_S[s])


@compiled(given(uint64, 1), given(uint64, 1), given(int32, 1), int32[::1])
def _find(hash_N: Uint64s, hash_S: Uint64s, item_S: Int32s, item_N: Int32s) -> None:
    for n in range(len(hash_N)):
        item_N[n] = _item(hash_N[n], hash_S, item_S)


@compiled(given(uint64, 1), given(uint64, 1), given(int32, 1), boolean[::1])
def _mark(hash_N: Uint64s, hash_S: Uint64s, item_S: Int32s, mask_I: Bools) -> None:
    for n in range(len(hash_N)):
        item = _item(hash_N[n], hash_S, item_S)
        if item >= 0:
            mask_I[item] = True
