"""Everything that requests read of the catalogue and its features, as one immutable object.

I items of the live table; N names of an entity, X rows of its snapshot, F its features; C candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from features.algebra import Int64s
from features.specs import Entity, features_of
from models.bundle import Bundle
from models.item_table import Int32s, ItemTable
from models.ranker_inputs import Rows
from models.sources.trending import trending_scores
from serving.experiments import NO_EXPERIMENTS, Experiments
from serving.item_snapshot import EntityFeatures, Floats, SnapshotFeatures

Float32s = npt.NDArray[np.float32]
_ITEM_COLUMN = {feature.name: f for f, feature in enumerate(features_of(Entity.ITEM))}


@dataclass(frozen=True, kw_only=True)
class AlignedFeatures:
    """The features of an entity's names by their codes: the snapshot's own rows, not a copy of them."""

    values_XF: Floats
    row_N: Int64s

    def rows(self, code_C: Int32s) -> Rows:
        """Of the names with these codes."""
        return Rows(self.values_XF, self.row_N[code_C])

    def column(self, f: int, code_C: Int32s | None = None) -> Floats:
        """One feature `[C]` of the names with these codes, or `[N]` of every name."""
        column_C: Floats = self.values_XF[self.row_N if code_C is None else self.row_N[code_C], f]
        return column_C


@dataclass(frozen=True, kw_only=True)
class LiveView:
    """A request takes the view once and keeps it, so a promotion or a new item never mixes into it."""

    bundle: Bundle
    item_table: ItemTable
    snapshot_instant_ms: int
    items: AlignedFeatures
    creators: AlignedFeatures
    categories: AlignedFeatures
    trending_score_I: Float32s | None
    impressions_I: Float32s | None
    notes: tuple[str, ...] = ()
    """What is not as it should be, such as item features that may be behind; empty when all is well."""
    experiments: Experiments = NO_EXPERIMENTS
    beside: Mapping[str, "LiveView"] = field(default_factory=dict)
    """The views of the arms' bundles and the challenger's at the same moment, by bundle id."""

    def of(self, bundle_id: str) -> "LiveView | None":
        """The view of a bundle; None for one that is not loaded."""
        return self if bundle_id == self.bundle.bundle_id else self.beside.get(bundle_id)


class ViewBuilder:
    """Aligns the snapshot's rows to the item table's indices. Remembers the alignment and goes on from it, since
    names and ids are only ever added.
    """

    def __init__(self) -> None:
        self._aligned: dict[Entity, _Alignment] = {}

    def build(
        self, bundle: Bundle, item_table: ItemTable, snapshot: SnapshotFeatures, notes: tuple[str, ...]
    ) -> LiveView:
        """The view of one bundle, one catalogue and one snapshot."""
        items = self._align(Entity.ITEM, item_table.item_ids, item_table.index, snapshot)
        return LiveView(
            bundle=bundle,
            item_table=item_table,
            snapshot_instant_ms=snapshot.instant_ms,
            items=items,
            creators=self._align(Entity.CREATOR, item_table.creators, item_table.creator_index, snapshot),
            categories=self._align(Entity.CATEGORY, item_table.categories, item_table.category_index, snapshot),
            trending_score_I=trending_scores(
                items.column(_ITEM_COLUMN["item_clicks_1h"]),
                items.column(_ITEM_COLUMN["item_impressions_1h"]),
                items.column(_ITEM_COLUMN["item_clicks_24h"]),
            ),
            impressions_I=items.column(_ITEM_COLUMN["item_impressions_7d"]).astype(np.float32),
            notes=notes,
        )

    def _align(
        self, entity: Entity, names: tuple[str, ...], code_of: Mapping[str, int], snapshot: SnapshotFeatures
    ) -> AlignedFeatures:
        features = snapshot.by_entity[entity]
        known = self._aligned.get(entity)
        if known is None or known.ids is not features.ids or known.size > len(features):
            known = _Alignment(names=(), ids=features.ids, size=len(features), row_N=np.empty(0, np.int64))
        known = self._aligned[entity] = _with_ids(_with_names(known, names, features), code_of, features)
        return AlignedFeatures(values_XF=features.values_XF, row_N=known.row_N)


@dataclass(frozen=True, kw_only=True)
class _Alignment:
    names: tuple[str, ...]
    ids: list[str]
    size: int
    """How many of the ids are looked up."""
    row_N: Int64s


def _with_names(known: _Alignment, names: tuple[str, ...], features: EntityFeatures) -> _Alignment:
    """With rows for what was added to the names; from scratch where they begin otherwise."""
    if known.names is names:
        return known
    kept = len(known.names) if names[: len(known.names)] == known.names else 0
    row_N = np.concatenate([known.row_N[:kept], features.rows(names[kept:])])
    return _Alignment(names=names, ids=known.ids, size=known.size, row_N=row_N)


def _with_ids(known: _Alignment, code_of: Mapping[str, int], features: EntityFeatures) -> _Alignment:
    """With the rows of ids that were added to the snapshot."""
    size = len(features)
    if known.size == size:
        return known
    row_N = known.row_N.copy()
    for row in range(known.size, size):
        code = code_of.get(features.ids[row])
        if code is not None:
            row_N[code] = row
    return _Alignment(names=known.names, ids=known.ids, size=size, row_N=row_N)
