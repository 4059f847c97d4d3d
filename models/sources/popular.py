"""Popular: what everyone liked in the training history, recent events counting more. The last resort that always is."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from models.sources.base import Arrays, Candidates, Float32s, RetrievalRequest, padded, top


@dataclass(frozen=True, kw_only=True)
class PopularSource:
    """One score an item, the same for every user."""

    name: ClassVar[str] = "popular"

    score_I: Float32s

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """The items of the highest score; items newer than the bundle have none and are left to other sources."""
        return top(padded(self.score_I, len(request.item_table), -np.inf), request.allowed_I, count)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The scores."""
        return {"score_I": self.score_I}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Reads what `to_arrays` gave."""
        return cls(score_I=arrays["score_I"])
