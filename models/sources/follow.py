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
        age_ms_I = np.maximum(request.instant_ms - table.published_at_ms, 0)
        score_I = HALF_LIFE_MS / (HALF_LIFE_MS + age_ms_I)
        return top(score_I, request.allowed_I & followed_K[table.creator_code], count)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Nothing."""
        return {}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:  # noqa: ARG003 - the interface's
        """Needs nothing."""
        return cls()
