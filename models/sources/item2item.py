"""Item-to-item: items that the same users liked, corrected for popularity.

Shapes: I items of the bundle, N neighbours kept, L history.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from models.sources.base import EMPTY, Arrays, Candidates, Float32s, Int32s, RetrievalRequest, top
from models.sources.recency import recency_weight


@dataclass(frozen=True, kw_only=True)
class Item2ItemSource:
    """Each item's most similar items; scores add up over the history, recent items counting more."""

    name: ClassVar[str] = "item2item"

    neighbour_IN: Int32s
    similarity_IN: Float32s
    """0 marks an empty slot."""

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """Neighbours of the history's items; none where no history item has neighbours."""
        known_L = request.history_index_L < len(self.neighbour_IN)
        seed_L = request.history_index_L[known_L]
        if not seed_L.size:
            return EMPTY
        weight_L = (request.history_weight_L * recency_weight(request.history_age_ms_L))[known_L]
        share_LN = self.similarity_IN[seed_L] * weight_L[:, None]
        size = len(request.item_table)
        score_I = np.zeros(size, np.float32)
        np.add.at(score_I, self.neighbour_IN[seed_L].ravel(), share_LN.ravel())
        return top(score_I, request.allowed_I & (score_I > 0), count)

    def similar(self, item_index: int) -> Candidates:
        """The stored neighbours of one item, best first; none for an item unknown to training."""
        if not 0 <= item_index < len(self.neighbour_IN):
            return EMPTY
        kept = self.similarity_IN[item_index] > 0
        return Candidates(item_index=self.neighbour_IN[item_index][kept], score=self.similarity_IN[item_index][kept])

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Neighbours and similarities."""
        return {"neighbour_IN": self.neighbour_IN, "similarity_IN": self.similarity_IN}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Reads what `to_arrays` gave."""
        return cls(neighbour_IN=arrays["neighbour_IN"], similarity_IN=arrays["similarity_IN"])
