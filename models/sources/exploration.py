"""Exploration: a random draw among items that are new or little shown, so that they get a chance to be known."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from features.names import MS_PER_DAY
from models.sources.base import Arrays, Candidates, Int32s, RetrievalRequest, padded, top
from models.sources.kept import Kept

FRESH_HALF_LIFE_MS = 3 * MS_PER_DAY
SHOWN_HALF = 50.0
"""Impressions at which an item's chance has halved."""
FLOOR = 1e-3
"""Every allowed item keeps some chance."""
DRAWS = 4
"""Of each item that is asked for, since some come twice or are not allowed."""


@dataclass(frozen=True, kw_only=True)
class ExplorationSource:
    """A weighted draw without replacement (its race: Efraimidis and Spirakis, 2006)."""

    name: ClassVar[str] = "exploration"

    _cumulative_I: Kept[npt.NDArray[np.float64]] = field(default_factory=Kept, init=False, repr=False, compare=False)

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """Distinct random items; the chance falls with age and with impressions, where those are known.

        Items are drawn by weight, and those that came before or are not allowed are drawn again: the chances of a draw
        without replacement. Where that finds too few, the rest is the exponential race of all items that are left.
        """
        parts = (request.minute_ms, request.item_table, request.impressions_I)
        cumulative_I = self._cumulative_I.of(parts, lambda: np.cumsum(self.weights(request)))
        drawn = _drawn(request, cumulative_I, count)
        if len(drawn) < count:
            left_I = request.allowed_I.copy()
            left_I[drawn] = False
            weight_I = np.diff(cumulative_I, prepend=0.0)
            race_I = np.log(weight_I) - np.log(request.rng.exponential(size=len(weight_I)))
            drawn = np.concatenate([drawn, top(race_I, left_I, count - len(drawn)).item_index])
        return Candidates(item_index=drawn, score=-np.arange(len(drawn), dtype=np.float32))

    def weights(self, request: RetrievalRequest) -> npt.NDArray[np.float64]:
        """The draw's positive weights `[I]`."""
        age_ms_I = np.maximum(request.minute_ms - request.item_table.published_at_ms, 0)
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


def _drawn(request: RetrievalRequest, cumulative_I: npt.NDArray[np.float64], count: int) -> Int32s:
    """At most `count` distinct allowed items in the order of their first draw, from `DRAWS` draws for each."""
    if count <= 0 or not len(cumulative_I):
        return np.empty(0, np.int32)
    at = np.searchsorted(cumulative_I, request.rng.random(DRAWS * count) * cumulative_I[-1], side="right")
    at = np.minimum(at, len(cumulative_I) - 1)
    at = at[request.allowed_I[at]]
    _, first = np.unique(at, return_index=True)
    drawn: Int32s = at[np.sort(first)][:count].astype(np.int32)
    return drawn
