"""Finalising windows from tiles, in plain numpy: what the online read, the item snapshot and the tests share.

Shapes: T tile rows, K columns of the family, W distinct windows, F features, G groups (entities), D (key, day)
pairs, R the (window, row) pairs that count, P = W × G places.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.names import MS_PER_DAY
from features.specs import MAX_LAST_SIZE, Aggregate, WindowedFeature
from features.tiles import DAY_TILE_MS, Column, Merge, feature_columns, resolution_ms, tile_start

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_MERGES: dict[Merge, np.ufunc] = {Merge.ADD: np.add, Merge.MAX: np.maximum, Merge.UNION: np.bitwise_or}
MAX_ROWS_AT_ONCE = 4_096
"""Up to so many rows all windows are merged in one pass, which is faster; above it one at a time, for memory."""
GAPS_MAX = 8
"""Up to so many (key, day) pairs a row are counted in place, which costs less than to number those that occur."""


@dataclass(frozen=True, kw_only=True)
class TileRows:
    """Tile rows of one family as arrays. `key_T` is a dense index of the family's whole key."""

    key_T: Int64s
    tile_ms_T: Int64s
    tile_start_T: Int64s
    n_T: Int64s
    values_TK: Int64s

    def counted_once(self, instant_ms: int) -> Bools:
        """Marks the rows that a long window reads, where a day stands both as a day tile and as streamed tiles.

        For each (key, UTC day) that is over, the side that has counted more events is kept, the day tile at a tie.
        Of a day that is not over only streamed tiles are, since a day tile may reach beyond the instant.
        """
        is_day_T = self.tile_ms_T == DAY_TILE_MS
        if not is_day_T.any():
            return np.ones(len(self.n_T), dtype=np.bool_)
        is_over_T = self.tile_start_T <= instant_ms - DAY_TILE_MS
        # A side's events count for it; a day tile of a day that is not over counts against itself.
        votes_T = np.where(is_day_T, np.where(is_over_T, self.n_T, -1), -self.n_T)
        day_T = self.tile_start_T // MS_PER_DAY
        day_T -= day_T.min()
        group_T = self.key_T * (day_T.max() + 1) + day_T
        if group_T.max() > GAPS_MAX * len(group_T):
            _, group_T = np.unique(group_T, return_inverse=True)
        takes_day_D = np.bincount(group_T, weights=votes_T) >= 0
        kept_T: Bools = takes_day_D[group_T] == is_day_T
        return kept_T

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
        self.features = tuple(features)
        self._index = {column.name: k for k, column in enumerate(columns)}
        self._merges = tuple(
            (_MERGES[merge], np.flatnonzero([column.merge is merge for column in columns])) for merge in Merge
        )
        """How columns are merged, and the places in K of those that are merged so."""
        window_F = [(feature.window_ms, resolution_ms(feature)) for feature in self.features]
        self._windows = tuple(sorted(set(window_F), key=lambda window: (window[1] == DAY_TILE_MS, window)))
        """W pairs of length and resolution; the fine ones come first."""
        self._fine = sum(tile_ms != DAY_TILE_MS for _, tile_ms in self._windows)
        parts = [[self._index[column.name] for column in feature_columns(feature)] for feature in self.features]
        self._window_F = np.array([self._windows.index(window) for window in window_F], dtype=np.intp)
        self._first_F = np.array([part[0] for part in parts], dtype=np.intp)
        self._default_F = np.array([feature.default for feature in self.features])
        aggregate_F = [feature.aggregate for feature in self.features]
        self._quotient_Q = np.flatnonzero([kind in (Aggregate.MEAN, Aggregate.RATE) for kind in aggregate_F])
        self._divisor_Q = np.array([parts[f][1] for f in self._quotient_Q], dtype=np.intp)
        self._max_M = np.flatnonzero([kind is Aggregate.MAX for kind in aggregate_F])
        self._counted_M = np.array([parts[f][1] for f in self._max_M], dtype=np.intp)
        self._last_L = np.flatnonzero([kind is Aggregate.LAST for kind in aggregate_F])
        self._distinct_N = np.flatnonzero([kind is Aggregate.DISTINCT for kind in aggregate_F])
        self._since_S = np.flatnonzero([kind is Aggregate.SINCE_LAST for kind in aggregate_F])

    def merge(self, rows: TileRows, group_T: Int64s, groups: int, instant_ms: int) -> Int64s:
        """Merged columns `[W, G, K]` at the instant; 0 for a group without rows in the window.

        `group_T` maps each row to its entity in `[0, groups)`. Fine windows read streamed tiles alone, long ones
        whichever side of each day counted more; tiles that start after the instant never count.
        """
        merged_WGK = np.zeros((len(self._windows), groups, len(self._index)), dtype=np.int64)
        if not len(group_T):
            return merged_WGK
        if (group_T[1:] < group_T[:-1]).any():
            order_T = np.argsort(group_T, kind="stable")
            rows, group_T = rows.reordered(order_T), group_T[order_T]
        start_W = np.array([tile_start(instant_ms - window_ms, tile_ms) for window_ms, tile_ms in self._windows])
        started_T = rows.tile_start_T <= instant_ms
        counted_WT = rows.tile_start_T >= start_W[:, None]
        counted_WT[: self._fine] &= started_T & (rows.tile_ms_T != DAY_TILE_MS)
        counted_WT[self._fine :] &= started_T & rows.counted_once(instant_ms)
        at_once = len(self._windows) if len(group_T) <= MAX_ROWS_AT_ONCE else 1
        for w in range(0, len(self._windows), at_once):
            _merge_windows(merged_WGK[w : w + at_once], counted_WT[w : w + at_once], rows, group_T, self._merges)
        return merged_WGK

    def regroup(self, merged_WGK: Int64s) -> Int64s:
        """Merges all groups into one: `[W, 1, K]`."""
        total_WK = np.zeros((merged_WGK.shape[0], merged_WGK.shape[2]), dtype=np.int64)
        for merge, place_K in self._merges:
            total_WK[:, place_K] = merge.reduce(merged_WGK[:, :, place_K], axis=1, initial=0)
        return total_WK[:, None, :]

    def finalise(self, merged_WGK: Int64s, instant_ms: int) -> Float64s:
        """The values `[G, F]`. Integers are exact up to 2**53."""
        first_FG = merged_WGK[self._window_F, :, self._first_F]
        out_FG = first_FG.astype(np.float64)
        if len(self._quotient_Q):
            divisor_QG = merged_WGK[self._window_F[self._quotient_Q], :, self._divisor_Q]
            quotient_QG = out_FG[self._quotient_Q] / np.maximum(divisor_QG, 1)
            out_FG[self._quotient_Q] = np.where(divisor_QG == 0, self._default(self._quotient_Q), quotient_QG)
        if len(self._max_M):
            counted_MG = merged_WGK[self._window_F[self._max_M], :, self._counted_M]
            out_FG[self._max_M] = np.where(counted_MG == 0, self._default(self._max_M), out_FG[self._max_M])
        if len(self._last_L):
            last_LG = first_FG[self._last_L]
            out_FG[self._last_L] = np.where(last_LG == 0, self._default(self._last_L), last_LG % MAX_LAST_SIZE)
        if len(self._distinct_N):
            out_FG[self._distinct_N] = np.bitwise_count(first_FG[self._distinct_N])
        if len(self._since_S):
            last_SG = out_FG[self._since_S]
            since_SG = np.maximum(instant_ms - last_SG, 0.0)
            out_FG[self._since_S] = np.where(last_SG == 0, self._default(self._since_S), since_SG)
        out_GF: Float64s = np.ascontiguousarray(out_FG.T)
        return out_GF

    def _default(self, place_F: npt.NDArray[np.intp]) -> Float64s:
        """The defaults of these features, as a column."""
        default: Float64s = self._default_F[place_F][:, None]
        return default

    def empty(self) -> Float64s:
        """The values `[F]` of windows without events, at any instant."""
        out_F: Float64s = self.finalise(np.zeros((len(self._windows), 1, len(self._index)), dtype=np.int64), 0)[0]
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


def _merge_windows(
    merged_WGK: Int64s,
    counted_WT: Bools,
    rows: TileRows,
    group_T: Int64s,
    merges: Sequence[tuple[np.ufunc, npt.NDArray[np.intp]]],
) -> None:
    """Merges the counted rows of each window into zeros; `group_T` ascends, so equal groups stand together."""
    windows, groups, columns = merged_WGK.shape
    window_R, row_R = np.nonzero(counted_WT)
    if not len(row_R):
        return
    place_R = window_R * groups + group_T[row_R]
    first = np.concatenate(([0], np.flatnonzero(place_R[1:] != place_R[:-1]) + 1))
    merged_PK = merged_WGK.reshape(windows * groups, columns)
    values_RK = rows.values_TK.take(row_R, axis=0)
    for merge, place_K in merges:
        if len(place_K):
            merged_PK[place_R[first][:, None], place_K] = merge.reduceat(values_RK[:, place_K], first, axis=0)
