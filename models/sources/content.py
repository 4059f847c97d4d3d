"""Content: items like the recent history by category, creator and language. It needs no events of the item itself.

Shapes: I items of the live table, K categories of the bundle, L history.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from numba import float32, int32

from features.compiled import compiled, given
from features.names import MS_PER_DAY
from models.sources.base import EMPTY, Arrays, Candidates, Float32s, Int32s, RetrievalRequest, top
from models.sources.kept import Kept
from models.sources.recency import recency_weight

CREATOR_SHARE = 0.5
LANGUAGE_SHARE = 0.2
"""What the same creator and the same language add, where the same category adds 1."""
FRESH_SHARE = 0.3
FRESH_HALF_LIFE_MS = 2 * MS_PER_DAY
"""What a new publication adds, falling with this half-life: cold items are this source's duty."""


@dataclass(frozen=True, kw_only=True)
class ContentSource:
    """Similarity of item content to the user's recent history."""

    name: ClassVar[str] = "content"

    affinity_KK: Float32s
    """How alike two categories' audiences are: cosine, 1 on the diagonal. Newer categories are like themselves only."""
    _fresh_I: Kept[Float32s] = field(default_factory=Kept, init=False, repr=False, compare=False)

    def candidates(self, request: RetrievalRequest, count: int) -> Candidates:
        """Items of the categories, creators and language that the history leans to; none without history."""
        if not request.history_index_L.size:
            return EMPTY
        return top(self.scores(request), request.allowed_I, count)

    def scores(self, request: RetrievalRequest) -> Float32s:
        """Content similarity `[I]` of every item to the history, times its freshness; -inf for one unlike it."""
        fresh_I = self._fresh_I.of((request.minute_ms, request.item_table), lambda: _freshness(request))
        table, seed_L = request.item_table, request.history_index_L
        weight_L = request.history_weight_L * recency_weight(request.history_age_ms_L)
        weight_L = weight_L / max(float(weight_L.sum()), 1e-9)
        category_K = _preference(table.category_code, seed_L, weight_L, len(table.categories))
        known = len(self.affinity_KK)
        category_K[:known] = self.affinity_KK @ category_K[:known]
        creator_K = _preference(table.creator_code, seed_L, weight_L, len(table.creators))
        language_K = _preference(table.language_code, seed_L, weight_L, len(table.languages))
        score_I = np.empty(len(table), np.float32)
        _score(
            table.category_code,
            table.creator_code,
            table.language_code,
            category_K,
            np.float32(CREATOR_SHARE) * creator_K,
            1 + np.float32(LANGUAGE_SHARE) * language_K,
            fresh_I,
            score_I,
        )
        return score_I

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The category affinities."""
        return {"affinity_KK": self.affinity_KK}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Reads what `to_arrays` gave."""
        return cls(affinity_KK=arrays["affinity_KK"])


def _preference(code_I: Int32s, seed_L: Int32s, weight_L: Float32s, size: int) -> Float32s:
    return np.bincount(code_I[seed_L], weights=weight_L, minlength=size).astype(np.float32)


def _freshness(request: RetrievalRequest) -> Float32s:
    age_ms_I = np.maximum(request.minute_ms - request.item_table.published_at_ms, 0)
    return (1 + FRESH_SHARE * np.exp2(-age_ms_I / FRESH_HALF_LIFE_MS)).astype(np.float32)


@compiled(*[given(int32, 1, contiguous=True)] * 3, *[given(float32, 1, contiguous=True)] * 4, float32[::1])
def _score(
    category_code_I: Int32s,
    creator_code_I: Int32s,
    language_code_I: Int32s,
    category_K: Float32s,
    creator_K: Float32s,
    language_K: Float32s,
    fresh_I: Float32s,
    score_I: Float32s,
) -> None:
    for i in range(len(score_I)):
        # Unsigned, since for a number below 0 the compiler would have to count from the end.
        category, creator = np.uint32(category_code_I[i]), np.uint32(creator_code_I[i])
        similarity = (category_K[category] + creator_K[creator]) * language_K[np.uint32(language_code_I[i])]
        score_I[i] = similarity * fresh_I[i] if similarity > 0 else -np.inf
