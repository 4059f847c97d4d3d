"""Trending: what gathers clicks now, from the live item windows in the request."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from models.sources.base import (
    EMPTY,
    Arrays,
    Candidates,
    Float32s,
    Int32s,
    RetrievalRequest,
    best_first,
    first_allowed,
)
from models.sources.kept import Kept

PRIOR_CLICKS = 1.0
PRIOR_IMPRESSIONS = 20.0
"""Strength and mean (5%) of the prior that keeps one lucky click from leading."""


def trending_scores(
    clicks_1h_I: npt.NDArray[np.floating[Any]],
    impressions_1h_I: npt.NDArray[np.floating[Any]],
    clicks_24h_I: npt.NDArray[np.floating[Any]],
) -> Float32s:
    """Scores of the live windows: the hour's smoothed click rate times how far the hour's clicks exceed the day's pace.

    An item without clicks in the last hour scores 0. Non-finite windows count as 0.
    """
    clicks_I, shown_I, day_I = (
        np.nan_to_num(window_I, nan=0.0, posinf=0.0, neginf=0.0)
        for window_I in (clicks_1h_I, impressions_1h_I, clicks_24h_I)
    )
    rate_I = (clicks_I + PRIOR_CLICKS) / (np.maximum(shown_I, clicks_I) + PRIOR_IMPRESSIONS)
    surge_I = np.log1p(clicks_I) * (clicks_I + 1) / (day_I / 24 + 1)
    return np.where(clicks_I > 0, rate_I * surge_I, 0.0).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class TrendingSource:
    """Items by the request's live scores. Holds nothing of its own but their order, which is every user's."""

    name: ClassVar[str] = "trending"

    _order_P: Kept[Int32s] = field(default_factory=Kept, init=False, repr=False, compare=False)

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """The items of the highest positive live score; none while live scores are absent."""
        score_I = request.trending_score_I
        if score_I is None:
            return EMPTY
        order_P = self._order_P.of((score_I,), lambda: best_first(np.where(score_I > 0, score_I, np.nan)))
        return first_allowed(order_P, score_I, request.allowed_I, count)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Nothing."""
        return {}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:  # noqa: ARG003 - the interface's
        """Needs nothing."""
        return cls()
