"""Exploration: a random draw among items that are new or little shown, so that they get a chance to be known."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from features.names import MS_PER_DAY
from models.sources.base import Arrays, Candidates, RetrievalRequest, padded, top

FRESH_HALF_LIFE_MS = 3 * MS_PER_DAY
SHOWN_HALF = 50.0
"""Impressions at which an item's chance has halved."""
FLOOR = 1e-3
"""Every allowed item keeps some chance."""


@dataclass(frozen=True, kw_only=True)
class ExplorationSource:
    """A weighted draw without replacement (exponential races: Efraimidis and Spirakis, 2006)."""

    name: ClassVar[str] = "exploration"

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """Distinct random items; the chance falls with age and with impressions, where those are known."""
        weight_I = self.weights(request)
        race_I = np.log(weight_I) - np.log(request.rng.exponential(size=len(weight_I)))
        return top(race_I, request.allowed_I, count)

    def weights(self, request: RetrievalRequest) -> npt.NDArray[np.float64]:
        """The draw's positive weights `[I]`."""
        age_ms_I = np.maximum(request.instant_ms - request.item_table.published_at_ms, 0)
        weight_I = FLOOR + np.exp2(-age_ms_I / FRESH_HALF_LIFE_MS)
        if request.impressions_I is None:
            return np.asarray(weight_I)
        shown_I = np.nan_to_num(padded(request.impressions_I, len(request.item_table)), nan=0.0, posinf=0.0)
        return np.asarray(weight_I / (1 + np.maximum(shown_I, 0.0) / SHOWN_HALF))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Nothing."""
        return {}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:  # noqa: ARG003 - the interface's
        """Needs nothing."""
        return cls()
