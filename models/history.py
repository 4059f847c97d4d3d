"""A user's recent interactions as weighted items: the one reading of events that sources and ranker share.

Shapes: N events of R users, L items of one user's history, newest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import float64, int8, int32, int64

from features.compiled import compiled, given
from features.events import EVENT_TYPES
from features.interest import EVENT_WEIGHTS, MAX_ITEM_WEIGHT
from features.keyed_sets import columns_of
from features.user_state import Interaction
from models.item_table import UNKNOWN, ItemTable

Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

HISTORY_EVENTS = 50
"""The newest events that are read, in a request as in training examples; older ones are in the windows."""

_WEIGHT_OF_CODE = np.array([EVENT_WEIGHTS[event_type] for event_type in EVENT_TYPES], np.float64)


@dataclass(frozen=True, kw_only=True)
class Histories:
    """The (user row, item) pairs of positive weight: rows ascending, within a row newest first."""

    row_N: Int64s
    item_index_N: Int32s
    weight_N: Float32s
    time_ms_N: Int64s
    """The pair's newest event."""


@dataclass(frozen=True, kw_only=True)
class UserHistory:
    """One user's distinct items of positive weight, newest first."""

    item_index_L: Int32s
    weight_L: Float32s
    time_ms_L: Int64s


def collapse(row_N: Int64s, item_index_N: Int32s, type_code_N: Int8s, time_ms_N: Int64s) -> Histories:
    """Sums each user row's events into one weight an item. Events of `UNKNOWN` items are left out.

    Ties in time are ordered by item index, so the result does not depend on the order of the events.
    """
    shape = len(row_N)
    row_P, item_P = np.empty(shape, np.int64), np.empty(shape, np.int32)
    weight_P, time_ms_P = np.empty(shape, np.float64), np.empty(shape, np.int64)
    found = _collapse(
        row_N, item_index_N, type_code_N, time_ms_N, UNKNOWN, _WEIGHT_OF_CODE, row_P, item_P, weight_P, time_ms_P
    )
    return Histories(
        row_N=row_P[:found],
        item_index_N=item_P[:found],
        weight_N=np.minimum(weight_P[:found], MAX_ITEM_WEIGHT).astype(np.float32),
        time_ms_N=time_ms_P[:found],
    )


def user_history(interactions: Sequence[Interaction], item_table: ItemTable) -> UserHistory:
    """The stored history of one user, newest first, as `RetrievalRequest` and the ranker read it.

    Only the newest `HISTORY_EVENTS` count. Empty history is fine.
    """
    columns, newest = columns_of(interactions), slice(0, HISTORY_EVENTS)
    item_index_N = item_table.indices_of_hashes(columns.item_hash_N[newest])
    found = collapse(
        np.zeros(len(item_index_N), np.int64), item_index_N, columns.type_code_N[newest], columns.time_ms_N[newest]
    )
    return UserHistory(item_index_L=found.item_index_N, weight_L=found.weight_N, time_ms_L=found.time_ms_N)


@compiled(
    given(int64, 1),
    given(int32, 1),
    given(int8, 1),
    *[given(int64, 1), int64, given(float64, 1)],
    *[int64[::1], int32[::1], float64[::1], int64[::1]],
    returns=int64,
)
def _collapse(
    row_N: Int64s,
    item_index_N: Int32s,
    type_code_N: Int8s,
    time_ms_N: Int64s,
    unknown: int,
    weight_of_code: npt.NDArray[np.float64],
    row_P: Int64s,
    item_P: Int32s,
    weight_P: npt.NDArray[np.float64],
    time_ms_P: Int64s,
) -> int:
    """Returns how many pairs there are."""
    events = len(row_N)
    if not len(item_index_N) == len(type_code_N) == len(time_ms_N) == events:
        raise ValueError("events: columns of different lengths.")
    stride = 1
    for n in range(events):
        if not 0 <= type_code_N[n] < len(weight_of_code):
            raise IndexError("type_code_N: a code that is no event type's.")
        stride = max(stride, item_index_N[n] + 1)
    pair_N = row_N * stride + item_index_N
    pairs, last = 0, -1
    for n in np.argsort(pair_N, kind="mergesort"):
        if item_index_N[n] == unknown:
            continue
        if last < 0 or pair_N[n] != pair_N[last]:
            if pairs and weight_P[pairs - 1] <= 0:
                pairs -= 1
            row_P[pairs], item_P[pairs], weight_P[pairs], time_ms_P[pairs] = row_N[n], item_index_N[n], 0.0, 0
            pairs += 1
        weight_P[pairs - 1] += weight_of_code[type_code_N[n]]
        time_ms_P[pairs - 1] = max(time_ms_P[pairs - 1], time_ms_N[n])
        last = n
    if pairs and weight_P[pairs - 1] <= 0:
        pairs -= 1
    # The pairs ascend by row and item, and sorting keeps that order among equals.
    order_P = np.argsort(-time_ms_P[:pairs], kind="mergesort")
    order_P = order_P[np.argsort(row_P[:pairs][order_P], kind="mergesort")]
    row_P[:pairs], item_P[:pairs] = row_P[:pairs][order_P], item_P[:pairs][order_P]
    weight_P[:pairs], time_ms_P[:pairs] = weight_P[:pairs][order_P], time_ms_P[:pairs][order_P]
    return pairs
