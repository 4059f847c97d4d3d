"""Item, creator and category features of the whole catalogue as columns, finalised ahead of the requests.

The snapshot is filled once from the store's tile rows, then kept current from the item tile topic. What is
touched is finalised anew each second, everything each minute, because values also decay with time.

I items, R creators, A categories known to the tiles; F features of the entity in `features.specs` order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from features.algebra import Float64s, Int64s, finalise_windows
from features.specs import Entity, features_of
from features.tiles import ITEM_TILES
from serving.tile_table import Key, TileTable

ENTITIES = ITEM_TILES.entities
"""ITEM, CREATOR, CATEGORY: what is finalised from item tiles."""
_KEY_FIELD = {Entity.ITEM: 0, Entity.CATEGORY: 1, Entity.CREATOR: 2}
COLUMN_NAMES = tuple(column.name for column in ITEM_TILES.columns)


@dataclass(frozen=True, kw_only=True)
class EntityFeatures:
    """One entity's finalised features: row `index[id]` of `values_GF`; an id without tiles has `empty_F`."""

    index: Mapping[str, int]
    values_GF: Float64s
    empty_F: Float64s

    def rows(self, ids: Sequence[str]) -> Int64s:
        """The row of each id, -1 where it has no tiles. Stays right for later snapshots of the same `size`."""
        return np.fromiter((self.index.get(name, -1) for name in ids), np.int64, len(ids))

    def take(self, rows: Int64s) -> Float64s:
        """`[len(rows), F]`, `empty_F` where a row is -1."""
        out = np.repeat(self.empty_F[None, :], len(rows), axis=0)
        known = (rows >= 0) & (rows < len(self.values_GF))
        out[known] = self.values_GF[rows[known]]
        return out


@dataclass(frozen=True, kw_only=True)
class SnapshotFeatures:
    """All entities' features at one instant. Immutable: a later instant is another object."""

    instant_ms: int
    by_entity: Mapping[Entity, EntityFeatures]


class _EntityState:
    """One entity's ids, the keys that add up to each, and its last finalised values."""

    def __init__(self, entity: Entity) -> None:
        self.features = features_of(entity)
        self.field = _KEY_FIELD[entity]
        self.index: dict[str, int] = {}
        self.keys_of: list[list[int]] = []
        self.group_of_key: list[int] = []
        self.touched: set[int] = set()
        self.empty_F = finalise_windows(
            self.features, ITEM_TILES.columns, TileTable().rows(), np.empty(0, np.int64), 1, 0
        )[0]
        self.values_GF = np.empty((0, len(self.features)))

    def add_key(self, p: int, key: Key) -> None:
        name = key[self.field]
        group = self.index.setdefault(name, len(self.index))
        if group == len(self.keys_of):
            self.keys_of.append([])
        self.keys_of[group].append(p)
        self.group_of_key.append(group)

    def finalise_all(self, table: TileTable, instant_ms: int) -> None:
        rows = table.rows()
        group_T = np.array(self.group_of_key, dtype=np.int64)[rows.key_T] if len(table) else rows.key_T
        groups = len(self.index)
        self.values_GF = finalise_windows(self.features, ITEM_TILES.columns, rows, group_T, groups, instant_ms)
        self.touched.clear()

    def finalise_touched(self, table: TileTable, instant_ms: int) -> None:
        touched = sorted(self.touched)
        self.touched.clear()
        if not touched:
            return
        rows = table.rows(p for group in touched for p in self.keys_of[group])
        slot = {group: i for i, group in enumerate(touched)}
        slots: Int64s = np.array([slot.get(group, 0) for group in self.group_of_key], dtype=np.int64)
        fresh_GF = finalise_windows(
            self.features, ITEM_TILES.columns, rows, slots[rows.key_T], len(touched), instant_ms
        )
        grown = np.repeat(self.empty_F[None, :], len(self.index) - len(self.values_GF), axis=0)
        self.values_GF = np.concatenate([self.values_GF, grown])
        self.values_GF[touched] = fresh_GF


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

    def upsert(self, key: Key, tile_ms: int, tile_start_ms: int, n: int, columns: Mapping[str, int]) -> bool:
        """Takes one tile row; says whether it was news. A column that the row lacks is 0."""
        values_K = [columns.get(name, 0) for name in COLUMN_NAMES]
        p = self._table.upsert(key, tile_ms, tile_start_ms, n, values_K)
        for state in self._states.values():
            while len(state.group_of_key) < len(self._table.keys):
                new = len(state.group_of_key)
                state.add_key(new, self._table.keys[new])
            if p is not None:
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

    def _features(self, instant_ms: int) -> SnapshotFeatures:
        frozen = {
            entity: EntityFeatures(index=state.index, values_GF=state.values_GF.copy(), empty_F=state.empty_F)
            for entity, state in self._states.items()
        }
        return SnapshotFeatures(instant_ms=instant_ms, by_entity=frozen)
