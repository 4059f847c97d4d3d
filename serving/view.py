"""Everything that requests read of the catalogue and its features, as one immutable object.

I items of the live table, R its creators, A its categories; F features of an entity.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from features.algebra import Float64s, Int64s
from features.specs import Entity, features_of
from models.bundle import Bundle
from models.item_table import ItemTable
from models.sources.trending import trending_scores
from serving.experiments import NO_EXPERIMENTS, Experiments
from serving.item_snapshot import EntityFeatures, SnapshotFeatures

Float32s = npt.NDArray[np.float32]
_ITEM_COLUMN = {feature.name: f for f, feature in enumerate(features_of(Entity.ITEM))}


@dataclass(frozen=True, kw_only=True)
class LiveView:
    """A request takes the view once and keeps it, so a promotion or a new item never mixes into it."""

    bundle: Bundle
    item_table: ItemTable
    snapshot_instant_ms: int
    item_IF: Float64s
    creator_RF: Float64s
    category_AF: Float64s
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
    """Aligns the snapshot's rows to the item table's indices. Remembers the alignment while neither grows."""

    def __init__(self) -> None:
        self._aligned: dict[Entity, tuple[tuple[str, ...], int, Int64s]] = {}

    def build(
        self, bundle: Bundle, item_table: ItemTable, snapshot: SnapshotFeatures, notes: tuple[str, ...]
    ) -> LiveView:
        """The view of one bundle, one catalogue and one snapshot."""
        ids = {Entity.ITEM: item_table.item_ids, Entity.CREATOR: item_table.creators}
        ids[Entity.CATEGORY] = item_table.categories
        values = {entity: self._take(entity, names, snapshot.by_entity) for entity, names in ids.items()}
        item_IF = values[Entity.ITEM]
        return LiveView(
            bundle=bundle,
            item_table=item_table,
            snapshot_instant_ms=snapshot.instant_ms,
            item_IF=item_IF,
            creator_RF=values[Entity.CREATOR],
            category_AF=values[Entity.CATEGORY],
            trending_score_I=trending_scores(
                _column(item_IF, "item_clicks_1h"),
                _column(item_IF, "item_impressions_1h"),
                _column(item_IF, "item_clicks_24h"),
            ),
            impressions_I=_column(item_IF, "item_impressions_7d").astype(np.float32),
            notes=notes,
        )

    def _take(self, entity: Entity, names: tuple[str, ...], by_entity: Mapping[Entity, EntityFeatures]) -> Float64s:
        features = by_entity[entity]
        known = self._aligned.get(entity)
        if known is None or known[0] is not names or known[1] != len(features.index):
            known = self._aligned[entity] = (names, len(features.index), features.rows(names))
        return features.take(known[2])


def _column(item_IF: Float64s, name: str) -> Float64s:
    column_I: Float64s = item_IF[:, _ITEM_COLUMN[name]]
    return column_I
