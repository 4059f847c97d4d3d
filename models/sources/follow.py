"""Follow: the newest items of the creators that the user follows."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from features.names import MS_PER_DAY
from models.sources.base import EMPTY, Arrays, Candidates, RetrievalRequest, top

HALF_LIFE_MS = 3 * MS_PER_DAY


@dataclass(frozen=True, kw_only=True)
class FollowSource:
    """Items of followed creators by publication. Holds nothing of its own."""

    name: ClassVar[str] = "follow"

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """Newest first; none for a user who follows nobody that the catalogue knows."""
        table = request.item_table
        codes = [
            table.creator_index[creator] for creator in request.followed_creators if creator in table.creator_index
        ]
        if not codes:
            return EMPTY
        followed_K = np.zeros(len(table.creators), np.bool_)
        followed_K[codes] = True
        eligible = np.flatnonzero(request.allowed_I & followed_K.take(table.creator_code))
        age_ms = np.maximum(request.instant_ms - table.published_at_ms[eligible], 0)
        newest = top(HALF_LIFE_MS / (HALF_LIFE_MS + age_ms), np.ones(len(eligible), np.bool_), count)
        return Candidates(item_index=eligible[newest.item_index].astype(np.int32), score=newest.score)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Nothing."""
        return {}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:  # noqa: ARG003 - the interface's
        """Needs nothing."""
        return cls()
