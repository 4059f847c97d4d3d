"""One row of a tile topic: read from the wire, packed for the store, unpacked into arrays.

A packed row is `PREFIX + K` little-endian 64-bit integers: tile_ms, tile_start_ms, n, max_event_time_ms, then the
family's K columns in their order. Shapes: T tile rows, K columns, N integers, P parts of packed rows.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import orjson

from features.algebra import Int64s, TileRows
from features.events import ID_PATTERN
from features.tiles import DAY_RETENTION_MS, DAY_TILE_MS, FAMILIES, STREAMED_RETENTION_MS, TileFamily

PREFIX = 4
N_BYTE_OFFSET = 16
"""Where `n` begins in a packed row."""
INT64_MAX = 2**63 - 1


class TileRow(NamedTuple):
    """One tile of one key. `key` holds the family's key fields and `values` its columns, each in its order."""

    key: tuple[str, ...]
    tile_ms: int
    tile_start_ms: int
    n: int
    max_event_time_ms: int
    values: tuple[int, ...]


class PackedTiles(NamedTuple):
    """Rows of one key as they are stored, packed one after the other."""

    key: tuple[str, ...]
    packed: bytes


@dataclass(frozen=True, kw_only=True)
class KeyedTiles:
    """Tile rows with the keys that `rows.key_T` indexes, sorted; every key has a row."""

    keys: tuple[tuple[str, ...], ...]
    rows: TileRows
    max_event_time_T: Int64s


class TileError(ValueError):
    """A record of a tile topic that is not a row of its family."""


def family_named(name: str) -> TileFamily:
    """The family of that name. Raises `TileError` with the known names."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise TileError(f"tile family: got {name!r}; allowed: {', '.join(family.name for family in FAMILIES)}.")


def parse_tile(family: TileFamily, value: bytes) -> TileRow:
    """Reads one record's value. Raises `TileError` when a field is absent, of another type or out of range."""
    try:
        record = orjson.loads(value)
    except ValueError as error:
        raise TileError(f"tile of {family.name}: got {value[:80]!r}; allowed: a JSON object.") from error
    key_fields, integer_fields = _wire_fields(family.name)
    try:
        key = tuple([record[name] for name in key_fields])
        numbers = [record[name] for name in integer_fields]
    except (KeyError, TypeError) as error:
        needed = ", ".join((*key_fields, *integer_fields))
        raise TileError(f"tile of {family.name}: {error!r} in {value[:200]!r}; allowed: {needed}.") from error
    if not all(type(text) is str for text in key):
        raise TileError(f"tile of {family.name}: got the key {key!r}; allowed: strings.")
    if not all(type(number) is int and 0 <= number <= INT64_MAX for number in numbers):
        raise TileError(f"tile of {family.name}: got {numbers!r} for {integer_fields}; allowed: integers from 0.")
    tile_ms, tile_start_ms, n, max_event_time_ms, *values = numbers
    if tile_ms not in (family.tile_ms, DAY_TILE_MS) or tile_start_ms % tile_ms:
        raise TileError(
            f"tile of {family.name}: got tile_ms={tile_ms}, tile_start_ms={tile_start_ms}; "
            f"allowed: {family.tile_ms} or {DAY_TILE_MS}, and a start that is a multiple of it."
        )
    return TileRow(key, tile_ms, tile_start_ms, n, max_event_time_ms, tuple(values))


@cache
def _wire_fields(family_name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    family = family_named(family_name)
    columns = tuple(column.name for column in family.columns)
    return family.key_fields, ("tile_ms", "tile_start_ms", "n", "max_event_time_ms", *columns)


@cache
def packer(family_name: str) -> struct.Struct:
    """The layout of the family's packed rows."""
    return struct.Struct(f"<{PREFIX + len(family_named(family_name).columns)}q")


def pack(family: TileFamily, row: TileRow) -> bytes:
    """The row without its key. Raises `TileError` when the number of values is not the family's."""
    try:
        return packer(family.name).pack(row.tile_ms, row.tile_start_ms, row.n, row.max_event_time_ms, *row.values)
    except struct.error as error:
        columns = ", ".join(column.name for column in family.columns)
        raise TileError(f"tile of {family.name}: got the values {row.values}; allowed: {columns} ({error}).") from error


def unpacked(
    family: TileFamily, keys: Sequence[tuple[str, ...]], packed: Sequence[bytes]
) -> tuple[TileRows, Int64s, Int64s]:
    """Rows of P parts as arrays, in their order, with each row's newest event time `[T]` and each part's rows `[P]`.

    `packed[p]` holds rows of the key `keys[p]`, one after the other. Keys are numbered as they come.
    """
    index = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    return _arrays(family, [index[key] for key in keys], packed)


def _arrays(family: TileFamily, index_P: Sequence[int], packed: Sequence[bytes]) -> tuple[TileRows, Int64s, Int64s]:
    width = packer(family.name).size // 8
    row_P = np.array([len(part) for part in packed], dtype=np.int64) // (width * 8)
    key_T = np.repeat(np.array(index_P, dtype=np.int64), row_P)
    raw_TK = np.frombuffer(b"".join(packed), dtype="<i8").reshape(-1, width)
    rows = TileRows(
        key_T=key_T, tile_ms_T=raw_TK[:, 0], tile_start_T=raw_TK[:, 1], n_T=raw_TK[:, 2], values_TK=raw_TK[:, PREFIX:]
    )
    return rows, raw_TK[:, 3], row_P


def keyed_tiles(family: TileFamily, keys: Sequence[tuple[str, ...]], packed: Sequence[bytes]) -> KeyedTiles:
    """The same sorted by key."""
    distinct = sorted(set(keys))
    index = {key: k for k, key in enumerate(distinct)}
    index_P = [index[key] for key in keys]
    rows, newest_T, _ = _arrays(family, index_P, packed)
    if index_P == sorted(index_P):
        return KeyedTiles(keys=tuple(distinct), rows=rows, max_event_time_T=newest_T)
    order_T = np.argsort(rows.key_T, kind="stable")
    return KeyedTiles(keys=tuple(distinct), rows=rows.reordered(order_T), max_event_time_T=newest_T[order_T])


def retention_start_ms(tile_ms: int, now_ms: int) -> int:
    """Tiles of this size that start before it have expired: four days for streamed tiles, 31 for day tiles."""
    return now_ms - (DAY_RETENTION_MS if tile_ms == DAY_TILE_MS else STREAMED_RETENTION_MS)


@dataclass(frozen=True, kw_only=True)
class TileBatch:
    """T rows of one family in the order in which they came: what a store is told at once."""

    family: TileFamily
    keys: Sequence[tuple[str, ...]]
    """Each row's key."""
    numbers_TN: Int64s
    """Each row packed: its `PREFIX + K` integers."""

    @classmethod
    def of(cls, family: TileFamily, rows: Sequence[TileRow]) -> "TileBatch":
        """Raises `TileError` when the number of a row's values is not the family's."""
        packed = b"".join([pack(family, row) for row in rows])
        numbers_TN = np.frombuffer(packed, dtype="<i8").reshape(-1, packer(family.name).size // 8)
        return cls(family=family, keys=[row.key for row in rows], numbers_TN=numbers_TN)

    @property
    def packed(self) -> list[bytes]:
        """Each row as it is stored."""
        whole_row = np.dtype((np.void, packer(self.family.name).size))
        raw_T: list[bytes] = np.ascontiguousarray(self.numbers_TN, dtype="<i8").view(whole_row)[:, 0].tolist()
        return raw_T

    @property
    def newest_event_ms(self) -> int | None:
        """The newest event in any of the rows; None without rows."""
        return int(self.numbers_TN[:, 3].max()) if len(self.keys) else None

    def latest(self) -> "TileBatch":
        """The row with the largest n of each tile, so that a store writes each once."""
        tile_ms_T, start_T, n_T = self.numbers_TN[:, :3].T.tolist()
        latest: dict[tuple[tuple[str, ...], int, int], int] = {}
        for t, tile in enumerate(zip(self.keys, tile_ms_T, start_T, strict=True)):
            held = latest.setdefault(tile, t)
            if n_T[t] > n_T[held]:
                latest[tile] = t
        return self if len(latest) == len(n_T) else self._chosen(list(latest.values()))

    def unexpired(self, now_ms: int) -> "TileBatch":
        """The rows that have not outlived their retention."""
        tile_ms_T, start_T = self.numbers_TN[:, 0], self.numbers_TN[:, 1]
        day_from, streamed_from = (retention_start_ms(size, now_ms) for size in (DAY_TILE_MS, self.family.tile_ms))
        kept_T = start_T >= np.where(tile_ms_T == DAY_TILE_MS, day_from, streamed_from)
        return self if kept_T.all() else self._chosen(np.flatnonzero(kept_T).tolist())

    def where(self, kept: Sequence[bool]) -> "TileBatch":
        """The rows for which `kept` is true."""
        return self if all(kept) else self._chosen([t for t, keep in enumerate(kept) if keep])

    def _chosen(self, places: Sequence[int]) -> "TileBatch":
        keys = [self.keys[t] for t in places]
        return TileBatch(family=self.family, keys=keys, numbers_TN=self.numbers_TN[list(places)])


def parse_tiles(family: TileFamily, values: Sequence[bytes]) -> TileBatch:
    """Reads the records' values as `parse_tile` does each, several times faster. Raises `TileError` likewise.

    A record in the stream job's own spelling is matched whole, which checks it too; any other goes to `parse_tile`.
    """
    fullmatch, key_parts = _wire_pattern(family.name).fullmatch, len(family.key_fields)
    keys: list[tuple[str, ...]] = []
    texts: list[str] = []
    for value in values:
        match = fullmatch(value.decode("latin-1"))  # cannot fail; what matches is ASCII
        if match is None:
            row = parse_tile(family, value)
            keys.append(row.key)
            texts.append(",".join(map(str, (*row[1:5], *row.values))))
        else:
            parts = match.groups()
            keys.append(parts[:key_parts])
            texts.append(",".join(parts[key_parts:]))
    width = packer(family.name).size // 8
    numbers_TN = np.fromstring(",".join(texts), dtype=np.int64, sep=",") if texts else np.zeros(0, dtype=np.int64)
    numbers_TN = numbers_TN.reshape(-1, width)
    for t in np.flatnonzero(numbers_TN[:, 1] % numbers_TN[:, 0]).tolist():
        parse_tile(family, values[t])  # says what is wrong with the start
    return TileBatch(family=family, keys=keys, numbers_TN=numbers_TN)


@cache
def _wire_pattern(family_name: str) -> re.Pattern[str]:
    """A record as the stream job writes it: key fields, then integers below 9 * 10**18, in order, without spaces."""
    family = family_named(family_name)
    key_fields, integer_fields = _wire_fields(family_name)
    integer = r"(0|[1-9][0-9]{0,17}|[1-8][0-9]{18})"
    fields = [f'"{name}":"({ID_PATTERN})"' for name in key_fields]
    fields += [f'"tile_ms":({family.tile_ms}|{DAY_TILE_MS})', *(f'"{name}":{integer}' for name in integer_fields[1:])]
    return re.compile(r"\{" + ",".join(fields) + r"\}")
