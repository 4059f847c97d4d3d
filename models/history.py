"""A user's recent interactions as weighted items: the one reading of events that sources and ranker share.

Shapes: N events of R users, L items of one user's history, newest first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.events import EventType
from features.interest import EVENT_WEIGHTS, MAX_ITEM_WEIGHT
from features.user_state import Interaction
from models.item_table import UNKNOWN, ItemTable

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

HISTORY_EVENTS = 50
"""The newest events that are read, in a request as in training examples; older ones are in the windows."""

EVENT_TYPES: tuple[EventType, ...] = tuple(EventType)
"""The order of event type codes."""
_WEIGHT_OF_CODE = np.array([EVENT_WEIGHTS[event_type] for event_type in EVENT_TYPES], np.float64)
TYPE_CODE: dict[EventType, int] = {event_type: code for code, event_type in enumerate(EVENT_TYPES)}


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


def collapse(row_N: Int64s, item_index_N: Int32s, type_code_N: npt.NDArray[np.int8], time_ms_N: Int64s) -> Histories:
    """Sums each user row's events into one weight an item. Events of `UNKNOWN` items are left out.

    Ties in time are ordered by item index, so the result does not depend on the order of the events.
    """
    known_N = item_index_N != UNKNOWN
    row_N, item_N, time_N = row_N[known_N], item_index_N[known_N].astype(np.int64), time_ms_N[known_N]
    if not row_N.size:
        empty = np.empty(0, np.int64)
        return Histories(
            row_N=empty, item_index_N=empty.astype(np.int32), weight_N=empty.astype(np.float32), time_ms_N=empty
        )
    stride = int(item_N.max()) + 1
    pair_P, inverse_N = np.unique(row_N * stride + item_N, return_inverse=True)
    weight_P = np.bincount(inverse_N, weights=_WEIGHT_OF_CODE[type_code_N[known_N]], minlength=len(pair_P))
    newest_P = np.zeros(len(pair_P), np.int64)
    np.maximum.at(newest_P, inverse_N, time_N)
    kept_P = weight_P > 0
    pair_P, weight_P, newest_P = pair_P[kept_P], weight_P[kept_P], newest_P[kept_P]
    row_P, item_P = pair_P // stride, pair_P % stride
    order = np.lexsort((item_P, -newest_P, row_P))
    return Histories(
        row_N=row_P[order],
        item_index_N=item_P[order].astype(np.int32),
        weight_N=np.minimum(weight_P[order], MAX_ITEM_WEIGHT).astype(np.float32),
        time_ms_N=newest_P[order],
    )


def user_history(interactions: Sequence[Interaction], item_table: ItemTable) -> UserHistory:
    """The stored history of one user, newest first, as `RetrievalRequest` and the ranker read it.

    Only the newest `HISTORY_EVENTS` count. Empty history is fine.
    """
    interactions = interactions[:HISTORY_EVENTS]
    found = collapse(
        np.zeros(len(interactions), np.int64),
        item_table.indices([interaction.item_id for interaction in interactions]),
        np.array([TYPE_CODE[interaction.event_type] for interaction in interactions], np.int8),
        np.array([interaction.event_time_ms for interaction in interactions], np.int64),
    )
    return UserHistory(item_index_L=found.item_index_N, weight_L=found.weight_N, time_ms_L=found.time_ms_N)
