"""Popular: what everyone liked in the training history, recent events counting more. The last resort that always is."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy.typing as npt

from models.sources.base import Arrays, Candidates, Float32s, Int32s, RetrievalRequest, best_first, first_allowed


@dataclass(frozen=True, kw_only=True)
class PopularSource:
    """One score an item, the same for every user."""

    name: ClassVar[str] = "popular"

    score_I: Float32s

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """The items of the highest score; items newer than the bundle have none and are left to other sources."""
        return first_allowed(self._order_P, self.score_I, request.allowed_I, count)

    @cached_property
    def _order_P(self) -> Int32s:  # noqa: N802 - shape suffix
        return best_first(self.score_I)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The scores."""
        return {"score_I": self.score_I}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Reads what `to_arrays` gave."""
        return cls(score_I=arrays["score_I"])
