"""Item tiles as growing columns: the rows from which the item snapshot is finalised.

T tile rows, K columns of the item family, P distinct keys (item_id, category, creator_id).
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from features.algebra import Int64s, TileRows
from features.tile_rows import KeyedTiles, TileRow
from features.tiles import DAY_RETENTION_MS, DAY_TILE_MS, ITEM_TILES, STREAMED_RETENTION_MS, TileFamily

Key = tuple[str, ...]
"""(item_id, category, creator_id), the item family's key."""

_FIRST_CAPACITY = 1024


class TileTable:
    """Tile rows of the item family, each tile once: of two rows of one tile the one with the larger `n` stays.

    Writing a row is idempotent and commutative, so a replay from an older offset changes nothing.
    Not safe for use by several threads at once.
    """

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self._index_of_key: dict[Key, int] = {}
        self._rows_of_key: list[list[int]] = []
        self._row_of_tile: dict[tuple[int, int, int], int] = {}
        self._size = 0
        self._meta_4T = np.zeros((4, _FIRST_CAPACITY), dtype=np.int64)
        self._values_TK = np.zeros((_FIRST_CAPACITY, len(ITEM_TILES.columns)), dtype=np.int64)

    def __len__(self) -> int:
        return self._size

    def load(self, tiles: KeyedTiles) -> None:
        """Replaces everything by the store's rows at once."""
        rows = tiles.rows
        self.keys = list(tiles.keys)
        self._index_of_key = {key: p for p, key in enumerate(self.keys)}
        self._size = len(rows.n_T)
        self._meta_4T = np.stack([rows.key_T, rows.tile_ms_T, rows.tile_start_T, rows.n_T])
        self._values_TK = rows.values_TK.copy()
        self._reindex()

    def upsert(self, tile: TileRow) -> int | None:
        """Writes one tile row and returns its key's index, or None when the table already holds one as new."""
        p = self._key_index(tile.key)
        place = (p, tile.tile_ms, tile.tile_start_ms)
        row = self._row_of_tile.get(place)
        if row is None:
            row = self._append(place)
        elif self._meta_4T[3, row] >= tile.n:
            return None
        self._meta_4T[3, row] = tile.n
        self._values_TK[row] = tile.values
        return p

    def rows(self, keys: Iterable[int] | None = None) -> TileRows:
        """All rows, or those of some keys. `key_T` indexes `keys`."""
        if keys is None:
            chosen: slice | Int64s = slice(0, self._size)
        else:
            chosen = np.array([row for p in keys for row in self._rows_of_key[p]], dtype=np.int64)
        return TileRows(
            key_T=self._meta_4T[0, chosen],
            tile_ms_T=self._meta_4T[1, chosen],
            tile_start_T=self._meta_4T[2, chosen],
            n_T=self._meta_4T[3, chosen],
            values_TK=self._values_TK[chosen],
        )

    def drop_expired(self, instant_ms: int, min_share: float = 0.1) -> int:
        """Drops rows past their retention once they make up `min_share` of the table; returns how many."""
        meta_4T = self._meta_4T[:, : self._size]
        retention_T = np.where(meta_4T[1] == DAY_TILE_MS, DAY_RETENTION_MS, STREAMED_RETENTION_MS)
        kept_T = meta_4T[2] >= instant_ms - retention_T
        dropped = int(self._size - kept_T.sum())
        if dropped == 0 or dropped < min_share * self._size:
            return 0
        self._meta_4T = meta_4T[:, kept_T].copy()
        self._values_TK = self._values_TK[: self._size][kept_T].copy()
        self._size -= dropped
        self._reindex()
        return dropped

    def _key_index(self, key: Key) -> int:
        p = self._index_of_key.get(key)
        if p is None:
            p = self._index_of_key[key] = len(self.keys)
            self.keys.append(key)
            self._rows_of_key.append([])
        return p

    def _append(self, tile: tuple[int, int, int]) -> int:
        row = self._size
        if row >= self._meta_4T.shape[1]:
            more = max(_FIRST_CAPACITY, row)
            self._meta_4T = np.concatenate([self._meta_4T, np.zeros((4, more), dtype=np.int64)], axis=1)
            empty_TK: npt.NDArray[np.int64] = np.zeros((more, self._values_TK.shape[1]), dtype=np.int64)
            self._values_TK = np.concatenate([self._values_TK, empty_TK])
        self._meta_4T[:3, row] = tile
        self._row_of_tile[tile] = row
        self._rows_of_key[tile[0]].append(row)
        self._size += 1
        return row

    def _reindex(self) -> None:
        self._rows_of_key = [[] for _ in self.keys]
        tiles = zip(*(column.tolist() for column in self._meta_4T[:3]), strict=True)
        self._row_of_tile = {tile: row for row, tile in enumerate(tiles)}
        for (p, _, _), row in self._row_of_tile.items():
            self._rows_of_key[p].append(row)


def no_rows(family: TileFamily) -> TileRows:
    """No tiles of a family: what an entity without events is finalised from."""
    none = np.empty(0, dtype=np.int64)
    return TileRows(
        key_T=none,
        tile_ms_T=none,
        tile_start_T=none,
        n_T=none,
        values_TK=np.empty((0, len(family.columns)), dtype=np.int64),
    )
