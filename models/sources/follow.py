"""Follow: the newest items of the creators that the user follows."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from features.names import MS_PER_DAY
from models.item_table import ItemTable
from models.sources.base import EMPTY, Arrays, Candidates, Int32s, Int64s, RetrievalRequest, top
from models.sources.kept import Kept

HALF_LIFE_MS = 3 * MS_PER_DAY


@dataclass(frozen=True, kw_only=True)
class FollowSource:
    """Items of followed creators by publication. Holds only the catalogue's order, which is every user's."""

    name: ClassVar[str] = "follow"

    _by_creator: Kept[tuple[Int32s, Int64s]] = field(default_factory=Kept, init=False, repr=False, compare=False)

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """Newest first; none for a user who follows nobody that the catalogue knows."""
        table = request.item_table
        codes = [
            table.creator_index[creator] for creator in request.followed_creators if creator in table.creator_index
        ]
        if not codes:
            return EMPTY
        order_I, start_K = self._by_creator.of((table,), lambda: _by_creator(table))
        theirs = np.sort(np.concatenate([order_I[start_K[code] : start_K[code + 1]] for code in codes]))
        eligible = theirs[request.allowed_I[theirs]]
        age_ms = np.maximum(request.instant_ms - table.published_at_ms[eligible], 0)
        newest = top(HALF_LIFE_MS / (HALF_LIFE_MS + age_ms), np.ones(len(eligible), np.bool_), count)
        return Candidates(item_index=eligible[newest.item_index], score=newest.score)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Nothing."""
        return {}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:  # noqa: ARG003 - the interface's
        """Needs nothing."""
        return cls()


def _by_creator(table: ItemTable) -> tuple[Int32s, Int64s]:
    """The items by creator, and where each creator's begin."""
    order_I = np.argsort(table.creator_code, kind="stable").astype(np.int32)
    size_K = np.bincount(table.creator_code, minlength=len(table.creators))
    return order_I, np.concatenate([[0], np.cumsum(size_K)])
