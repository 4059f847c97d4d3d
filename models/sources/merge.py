"""Several sources' candidates as one list of distinct items that remembers who proposed each.

Shapes: C merged candidates, P sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.sources.base import Bools, Candidates, Int32s

DEFAULT_QUOTAS: dict[str, int] = {
    "als": 150,
    "item2item": 100,
    "content": 100,
    "popular": 60,
    "trending": 40,
    "follow": 30,
    "exploration": 20,
}
"""How many candidates each source is asked for: 500 in all."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Distinct items, best first by reciprocal rank over the sources (Cormack et al., SIGIR 2009)."""

    item_index_C: Int32s
    score_C: npt.NDArray[np.float32]
    source_names: tuple[str, ...]
    from_source_CP: Bools
    """Whether each source proposed the item."""

    def sources(self, row: int) -> list[str]:
        """Who proposed the item in this row."""
        return [name for name, from_it in zip(self.source_names, self.from_source_CP[row], strict=True) if from_it]


RANK_OFFSET = 60.0
"""The constant of reciprocal rank fusion: how little the very top of one list outweighs the rest."""


def merge(by_source: Mapping[str, Candidates], quotas: Mapping[str, int] | None = None) -> Merged:
    """Takes each source's best up to its quota (all, where none is set). Ties go to the lower item index."""
    quotas = quotas or {}
    names = tuple(by_source)
    kept = [found.item_index[: quotas.get(name)] for name, found in by_source.items()]
    flat_N = np.concatenate([*kept, np.empty(0, np.int32)]).astype(np.int32)
    source_N = np.repeat(np.arange(len(names)), [len(index) for index in kept])
    rank_N = np.concatenate([*(np.arange(len(index)) for index in kept), np.empty(0, np.int64)])
    item_C, inverse_N = np.unique(flat_N, return_inverse=True)
    score_C = np.bincount(inverse_N, weights=1 / (RANK_OFFSET + rank_N + 1), minlength=len(item_C))
    from_source_CP = np.zeros((len(item_C), len(names)), np.bool_)
    from_source_CP[inverse_N, source_N] = True
    order = np.argsort(-score_C, kind="stable")  # the items ascend
    return Merged(
        item_index_C=item_C[order],
        score_C=score_C[order].astype(np.float32),
        source_names=names,
        from_source_CP=from_source_CP[order],
    )
