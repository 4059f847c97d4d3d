"""Finalising windows from tiles: what the online read, the item snapshot and the tests share.

The loops over rows and features are compiled (`features.compiled`).

Shapes: T tile rows, K columns of the family, W distinct windows, F features, G groups (entities).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import float64, int64

from features.compiled import compiled, given, inlined
from features.names import MS_PER_DAY
from features.specs import MAX_LAST_SIZE, Aggregate, WindowedFeature
from features.tiles import DAY_TILE_MS, Column, Merge, feature_columns, resolution_ms, tile_start

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
# What compiled loops know merges and aggregates by.
_ADD, _MAX, _UNION = range(3)
_MERGES = {Merge.ADD: _ADD, Merge.MAX: _MAX, Merge.UNION: _UNION}
_FIRST, _QUOTIENT, _GREATEST, _LAST, _DISTINCT, _SINCE_LAST = range(6)
_AGGREGATES = {
    Aggregate.COUNT: _FIRST,
    Aggregate.SUM: _FIRST,
    Aggregate.MEAN: _QUOTIENT,
    Aggregate.RATE: _QUOTIENT,
    Aggregate.MAX: _GREATEST,
    Aggregate.LAST: _LAST,
    Aggregate.DISTINCT: _DISTINCT,
    Aggregate.SINCE_LAST: _SINCE_LAST,
}


@dataclass(frozen=True, kw_only=True)
class TileRows:
    """Tile rows of one family as arrays. `key_T` is a dense index of the family's whole key."""

    key_T: Int64s
    tile_ms_T: Int64s
    tile_start_T: Int64s
    n_T: Int64s
    values_TK: Int64s

    def reordered(self, order_T: npt.NDArray[np.intp]) -> "TileRows":
        """The same rows in the order of these indices."""
        return TileRows(
            key_T=self.key_T[order_T],
            tile_ms_T=self.tile_ms_T[order_T],
            tile_start_T=self.tile_start_T[order_T],
            n_T=self.n_T[order_T],
            values_TK=self.values_TK[order_T],
        )


class Finaliser:
    """Turns the tile rows of one family into the values of some of its features; built once, used for every read.

    1. `merge` adds and maximises the rows of each group in each distinct window: `[W, G, K]`, exact integers.
    2. `regroup` (optional) merges all groups into one: a user's totals over the categories.
    3. `finalise` turns the merged columns into values: `[G, F]`.
    """

    def __init__(self, features: Sequence[WindowedFeature], columns: Sequence[Column]) -> None:
        """`features` must be finalised from `columns`, the family's, whose order the rows' values have."""
        place_of = {column.name: k for k, column in enumerate(columns)}
        window_F = [(feature.window_ms, resolution_ms(feature)) for feature in features]
        parts = [[place_of[column.name] for column in feature_columns(feature)] for feature in features]
        self._windows = tuple(sorted(set(window_F), key=lambda window: (window[1] == DAY_TILE_MS, window)))
        """W pairs of length and resolution: the fine windows come first, and each kind from the shortest."""
        self._fine = sum(tile_ms != DAY_TILE_MS for _, tile_ms in self._windows)
        self._merge_K = np.array([_MERGES[column.merge] for column in columns])
        self._aggregate_F = np.array([_AGGREGATES[feature.aggregate] for feature in features], dtype=np.int64)
        self._window_F = np.array([self._windows.index(window) for window in window_F], dtype=np.int64)
        self._first_F = np.array([part[0] for part in parts], dtype=np.int64)
        self._second_F = np.array([part[-1] for part in parts], dtype=np.int64)
        self._default_F = np.array([feature.default for feature in features], dtype=np.float64)

    def merge(self, rows: TileRows, group_T: Int64s, groups: int, instant_ms: int) -> Int64s:
        """Merged columns `[W, G, K]` at the instant; 0 for a group without rows in the window.

        `group_T` maps each row to its entity in `[0, groups)`, else IndexError. Fine windows read streamed tiles
        alone. Of a long window each (key, UTC day) that is over is read from the side, day tile or streamed tiles,
        that has counted more events, from the day tile at a tie; a day that is not over from streamed tiles, since its
        day tile may reach beyond the instant. Tiles that start after the instant never count.
        """
        merged_WGK = np.zeros((len(self._windows), groups, len(self._merge_K)), dtype=np.int64)
        if not self._windows:
            return merged_WGK
        start_W = np.array([tile_start(instant_ms - window_ms, tile_ms) for window_ms, tile_ms in self._windows])
        _merge_rows(
            rows.key_T,
            rows.tile_ms_T,
            rows.tile_start_T,
            rows.n_T,
            rows.values_TK,
            group_T,
            start_W,
            self._fine,
            instant_ms,
            self._merge_K,
            merged_WGK,
        )
        return merged_WGK

    def regroup(self, merged_WGK: Int64s) -> Int64s:
        """Merges all groups into one: `[W, 1, K]`."""
        windows, _, columns = merged_WGK.shape
        total_WK = np.zeros((windows, columns), dtype=np.int64)
        _merge_groups(merged_WGK, self._merge_K, total_WK)
        return total_WK[:, None, :]

    def finalise(self, merged_WGK: Int64s, instant_ms: int) -> Float64s:
        """The values `[G, F]`. Integers are exact up to 2**53."""
        out_GF = np.empty((merged_WGK.shape[1], len(self._first_F)))
        _finalise(
            merged_WGK,
            instant_ms,
            MAX_LAST_SIZE,
            self._aggregate_F,
            self._window_F,
            self._first_F,
            self._second_F,
            self._default_F,
            out_GF,
        )
        return out_GF

    def empty(self) -> Float64s:
        """The values `[F]` of windows without events, at any instant."""
        out_F: Float64s = self.finalise(np.zeros((len(self._windows), 1, len(self._merge_K)), dtype=np.int64), 0)[0]
        return out_F


def finalise_windows(
    features: Sequence[WindowedFeature],
    columns: Sequence[Column],
    rows: TileRows,
    group_T: Int64s,
    groups: int,
    instant_ms: int,
) -> Float64s:
    """Merges tile rows into `[G, F]` values at the instant: `Finaliser` for a single use.

    A group without rows gets every feature's value of an empty window.
    """
    finaliser = Finaliser(features, columns)
    return finaliser.finalise(finaliser.merge(rows, group_T, groups, instant_ms), instant_ms)


_INT64S_1, _INT64S_2, _INT64S_3 = (given(int64, n) for n in (1, 2, 3))


@inlined
def _merge_into(into_K: Int64s, values_K: Int64s, merge_K: Int64s) -> None:
    for k in range(len(merge_K)):
        if merge_K[k] == _ADD:
            into_K[k] += values_K[k]
        elif merge_K[k] == _MAX:
            into_K[k] = max(into_K[k], values_K[k])
        else:  # _UNION
            into_K[k] |= values_K[k]


@inlined
def _shortest(start_W: Int64s, first: int, last: int, start_ms: int) -> int:
    """The first window in `[first, last)` that a tile of this start lies in; `last` when there is none."""
    while first < last and start_ms < start_W[first]:
        first += 1
    return first


@inlined
def _votes(
    key_T: Int64s, tile_ms_T: Int64s, tile_start_T: Int64s, n_T: Int64s, first_day: int, instant_ms: int
) -> tuple[Int64s, Int64s]:
    """Votes for the day tiles of each (key, day from the first to the instant's), and each row's place in the first.

    A side's events count for it; a day tile of a day that is not over counts against itself. Keys are numbered as they
    come.
    """
    slot_T = np.empty(len(key_T), dtype=np.int64)
    slot_of = np.full(key_T.max() + 1 if len(key_T) else 0, -1)
    slots = 0
    for t in range(len(key_T)):
        if slot_of[key_T[t]] < 0:
            slot_of[key_T[t]] = slots
            slots += 1
        slot_T[t] = slot_of[key_T[t]]
    votes = np.zeros((slots, instant_ms // MS_PER_DAY - first_day + 1), dtype=np.int64)
    for t in range(len(key_T)):
        day = tile_start_T[t] // MS_PER_DAY - first_day
        if not 0 <= day < votes.shape[1]:
            continue
        if tile_ms_T[t] != MS_PER_DAY:
            votes[slot_T[t], day] -= n_T[t]
        elif tile_start_T[t] + MS_PER_DAY <= instant_ms:
            votes[slot_T[t], day] += n_T[t]
        else:
            votes[slot_T[t], day] -= 1
    return votes, slot_T


@compiled(*[_INT64S_1] * 4, _INT64S_2, *[_INT64S_1] * 2, *[int64] * 2, _INT64S_1, int64[:, :, ::1])
def _merge_rows(
    key_T: Int64s,
    tile_ms_T: Int64s,
    tile_start_T: Int64s,
    n_T: Int64s,
    values_TK: Int64s,
    group_T: Int64s,
    start_W: Int64s,
    fine: int,
    instant_ms: int,
    merge_K: Int64s,
    merged_WGK: Int64s,
) -> None:
    """Each row goes into the shortest window of its kind that it lies in, then each window into the next longer."""
    windows, groups, _ = merged_WGK.shape
    first_day = start_W[windows - 1] // MS_PER_DAY
    votes, slot_T = _votes(key_T, tile_ms_T, tile_start_T, n_T, first_day, instant_ms)
    for t in range(len(group_T)):
        group, start_ms, is_day = group_T[t], tile_start_T[t], tile_ms_T[t] == MS_PER_DAY
        if not 0 <= group < groups:
            raise IndexError("group_T: a group outside [0, groups).")
        if start_ms > instant_ms:
            continue
        w = _shortest(start_W, 0, fine, start_ms)
        if w < fine and not is_day:
            _merge_into(merged_WGK[w, group], values_TK[t], merge_K)
        w = _shortest(start_W, fine, windows, start_ms)
        if w < windows and (votes[slot_T[t], start_ms // MS_PER_DAY - first_day] >= 0) == is_day:
            _merge_into(merged_WGK[w, group], values_TK[t], merge_K)
    for w in range(1, windows):
        for group in range(groups if w != fine else 0):
            _merge_into(merged_WGK[w, group], merged_WGK[w - 1, group], merge_K)


@compiled(_INT64S_3, _INT64S_1, int64[:, ::1])
def _merge_groups(merged_WGK: Int64s, merge_K: Int64s, total_WK: Int64s) -> None:
    windows, groups, _ = merged_WGK.shape
    for w in range(windows):
        for group in range(groups):
            _merge_into(total_WK[w], merged_WGK[w, group], merge_K)


@compiled(_INT64S_3, *[int64] * 2, *[_INT64S_1] * 4, given(float64, 1), float64[:, ::1])
def _finalise(
    merged_WGK: Int64s,
    instant_ms: int,
    last_size: int,
    aggregate_F: Int64s,
    window_F: Int64s,
    first_F: Int64s,
    second_F: Int64s,
    default_F: Float64s,
    out_GF: Float64s,
) -> None:
    """`first_F` and `second_F` are the places of the columns that `features.tiles.feature_columns` names."""
    groups, features = out_GF.shape
    for group in range(groups):
        for f in range(features):
            aggregate = aggregate_F[f]
            first, second = merged_WGK[window_F[f], group, first_F[f]], merged_WGK[window_F[f], group, second_F[f]]
            if aggregate == _DISTINCT:
                size = 0
                while first:
                    first &= first - 1
                    size += 1
                out_GF[group, f] = size
            elif aggregate == _QUOTIENT:
                out_GF[group, f] = first / second if second else default_F[f]
            elif aggregate == _GREATEST:
                out_GF[group, f] = first if second else default_F[f]
            elif aggregate == _LAST:
                out_GF[group, f] = first % last_size if first else default_F[f]
            elif aggregate == _SINCE_LAST:
                out_GF[group, f] = max(instant_ms - first, 0) if first else default_F[f]
            else:  # _FIRST
                out_GF[group, f] = first
