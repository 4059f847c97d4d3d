"""Item, creator and category features of the whole catalogue as columns, finalised ahead of the requests.

The snapshot is filled once from the store's tile rows, then kept current from the item tile topic. What is
touched is finalised anew each second, everything each minute, because values also decay with time.

G ids of an entity known to the tiles, X = G + 1 rows; F features of the entity in `features.specs` order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.algebra import Finaliser, Float64s, Int64s, TileRows
from features.specs import Entity, features_of
from features.tile_rows import KeyedTiles, TileRow
from features.tiles import ITEM_TILES
from serving.tile_table import Key, TileTable, no_rows

ENTITIES = ITEM_TILES.entities
"""ITEM, CREATOR, CATEGORY: what is finalised from item tiles."""
Floats = npt.NDArray[np.floating[Any]]
_KEY_FIELD = {Entity.ITEM: 0, Entity.CATEGORY: 1, Entity.CREATOR: 2}


@dataclass(frozen=True, kw_only=True)
class EntityFeatures:
    """One entity's finalised features: a row an id, then the row of ids without tiles, which the row -1 thus means.

    `ids` and `index` are shared with later snapshots and may have grown since; the first `len(features)` ids count.
    """

    ids: list[str]
    index: Mapping[str, int]
    """Id to row."""
    values_XF: Floats

    def __len__(self) -> int:
        return len(self.values_XF) - 1

    def rows(self, ids: Sequence[str]) -> Int64s:
        """The row of each id, -1 where it has no tiles. Stays right for later snapshots with the same `ids`."""
        rows = np.fromiter((self.index.get(name, -1) for name in ids), np.int64, len(ids))
        return np.where(rows < len(self), rows, -1)


@dataclass(frozen=True, kw_only=True)
class SnapshotFeatures:
    """All entities' features at one instant. Immutable: a later instant is another object."""

    instant_ms: int
    by_entity: Mapping[Entity, EntityFeatures]


class _EntityState:
    """One entity's ids, the keys that add up to each, and its last finalised values."""

    def __init__(self, entity: Entity) -> None:
        self._finaliser = Finaliser(features_of(entity), ITEM_TILES.columns)
        self._field = _KEY_FIELD[entity]
        self._keys_of: list[list[int]] = []
        self.group_of_key: list[int] = []
        self.ids: list[str] = []
        self.index: dict[str, int] = {}
        self.touched: set[int] = set()
        nothing = no_rows(ITEM_TILES)
        self.empty_F = self._finalise(nothing, nothing.key_T, 1, 0)[0]
        self.values_GF = self.empty_F[None, :][:0]

    def add_key(self, p: int, key: Key) -> None:
        group = self.index.setdefault(key[self._field], len(self.ids))
        if group == len(self.ids):
            self.ids.append(key[self._field])
            self._keys_of.append([])
        self._keys_of[group].append(p)
        self.group_of_key.append(group)

    def finalise_all(self, table: TileTable, instant_ms: int) -> None:
        rows = table.rows()
        group_T = np.array(self.group_of_key, dtype=np.int64)[rows.key_T] if len(table) else rows.key_T
        self.values_GF = self._finalise(rows, group_T, len(self.index), instant_ms)
        self.touched.clear()

    def finalise_touched(self, table: TileTable, instant_ms: int) -> None:
        touched = sorted(self.touched)
        self.touched.clear()
        if not touched:
            return
        rows = table.rows(p for group in touched for p in self._keys_of[group])
        slot_of = np.zeros(len(self.index), dtype=np.int64)
        slot_of[touched] = np.arange(len(touched))
        group_T = slot_of[np.array(self.group_of_key, dtype=np.int64)[rows.key_T]]
        fresh_GF = self._finalise(rows, group_T, len(touched), instant_ms)
        new_GF = np.repeat(self.empty_F[None, :], len(self.index) - len(self.values_GF), axis=0)
        self.values_GF = np.concatenate([self.values_GF, new_GF])
        self.values_GF[touched] = fresh_GF

    def _finalise(self, rows: TileRows, group_T: Int64s, groups: int, instant_ms: int) -> Float64s:
        return self._finaliser.finalise(self._finaliser.merge(rows, group_T, groups, instant_ms), instant_ms)


class ItemSnapshot:
    """Tile rows in, finalised features out. Owned by one thread; what it returns may be shared.

    Categories are summed over every row, so they are finalised with the full pass only; items and creators
    also when touched.
    """

    def __init__(self) -> None:
        self._table = TileTable()
        self._states = {entity: _EntityState(entity) for entity in ENTITIES}

    def __len__(self) -> int:
        return len(self._table)

    @property
    def touched(self) -> int:
        """How many items have tiles newer than their features."""
        return len(self._states[Entity.ITEM].touched)

    def load(self, tiles: KeyedTiles) -> None:
        """Starts from the store's rows, in place of what was there."""
        self._table.load(tiles)
        self._states = {entity: _EntityState(entity) for entity in ENTITIES}
        self._add_new_keys()

    def upsert(self, tile: TileRow) -> bool:
        """Takes one tile row; says whether it was news."""
        p = self._table.upsert(tile)
        self._add_new_keys()
        if p is not None:
            for state in self._states.values():
                state.touched.add(state.group_of_key[p])
        return p is not None

    def finalise_all(self, instant_ms: int) -> SnapshotFeatures:
        """Every entity's features at the instant, after dropping rows past their retention."""
        self._table.drop_expired(instant_ms)
        for state in self._states.values():
            state.finalise_all(self._table, instant_ms)
        return self._features(instant_ms)

    def finalise_touched(self, instant_ms: int) -> SnapshotFeatures:
        """Features of the items and creators whose tiles changed, at the instant; the others as they were."""
        for entity in (Entity.ITEM, Entity.CREATOR):
            self._states[entity].finalise_touched(self._table, instant_ms)
        return self._features(instant_ms)

    def _add_new_keys(self) -> None:
        for state in self._states.values():
            for p in range(len(state.group_of_key), len(self._table.keys)):
                state.add_key(p, self._table.keys[p])

    def _features(self, instant_ms: int) -> SnapshotFeatures:
        by_entity = {
            entity: EntityFeatures(
                ids=state.ids, index=state.index, values_XF=np.vstack([state.values_GF, state.empty_F])
            )
            for entity, state in self._states.items()
        }
        return SnapshotFeatures(instant_ms=instant_ms, by_entity=by_entity)
