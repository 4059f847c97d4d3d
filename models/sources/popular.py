"""Popular: what everyone liked in the training history, recent events counting more. The last resort that always is."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from models.sources.base import Arrays, Candidates, Float32s, Int32s, RetrievalRequest


@dataclass(frozen=True, kw_only=True)
class PopularSource:
    """One score an item, the same for every user."""

    name: ClassVar[str] = "popular"

    score_I: Float32s

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """The items of the highest score; items newer than the bundle have none and are left to other sources."""
        first = max(4 * count, 0)
        for order in (self._order_P[:first], self._order_P):
            allowed = order[request.allowed_I[order]][: max(count, 0)]
            if len(allowed) == count:
                break
        return Candidates(item_index=allowed, score=self.score_I[allowed])

    @cached_property
    def _order_P(self) -> Int32s:  # noqa: N802 - shape suffix
        """The items of finite score, best first; ties go to the lower index."""
        known = np.flatnonzero(np.isfinite(self.score_I))
        return known[np.argsort(-self.score_I[known], kind="stable")].astype(np.int32)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The scores."""
        return {"score_I": self.score_I}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Reads what `to_arrays` gave."""
        return cls(score_I=arrays["score_I"])
