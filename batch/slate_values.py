"""The windowed features that one logged slate says were read, as arrays with a row a returned item.

S items, F features of a user, G features of an item for a user.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from features.events import EventType
from features.packed import PackedArray
from features.slates import SlateError, SlateEvidence, SlateRecord
from features.specs import Entity, features_of

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

USER_NAMES: tuple[str, ...] = tuple(feature.name for feature in features_of(Entity.USER))
ITEM_NAMES: tuple[str, ...] = tuple(
    feature.name for entity in Entity if entity is not Entity.USER for feature in features_of(entity)
)
"""Of the user and the item's category, the item, its creator and its category."""
_ITEMS_BEHIND = re.compile("no item features|item features (are|could|may)")
"""What `serving.follower` and `serving.upkeep` say of a snapshot that is not as it should be."""


@dataclass(frozen=True, kw_only=True)
class Degraded:
    """Which features the service said that it did not have."""

    user: bool
    items: bool

    @classmethod
    def of(cls, record: SlateRecord) -> "Degraded":
        """What the record's notes say."""
        return cls(
            user=any(note.startswith("hydrate:") for note in record.degraded),
            items=any(_ITEMS_BEHIND.search(note) for note in record.degraded),
        )


@dataclass(frozen=True, kw_only=True)
class ServedHistory:
    """The user's interactions as they were read, newest first."""

    item_ids: list[str]
    event_types: list[str]
    event_time_ms_H: Int64s


def user_values(record: SlateRecord) -> Float32s:
    """The user's features in the order of `USER_NAMES`. Raises `SlateError` when the slate lacks one."""
    _refuse_missing(record.user_features, USER_NAMES)
    return np.array([record.user_features[name] for name in USER_NAMES], np.float32)


def item_values(record: SlateRecord) -> tuple[Int64s, Float32s]:
    """The positions whose features were logged, ascending, and their values, columns in the order of `ITEM_NAMES`.

    None where the ranker did not score. Raises `SlateError` when the slate lacks a feature or cannot be read.
    """
    if record.evidence is not None and record.evidence.candidate_features:
        return _packed_values(record.evidence, len(record.items))
    logged = [item for item in record.items if item.features]
    for item in logged:
        _refuse_missing(item.features, ITEM_NAMES)
    values = [[item.features[name] for name in ITEM_NAMES] for item in logged]
    positions_S = np.array([item.position for item in logged], np.int64)
    return positions_S, np.array(values, np.float32).reshape(len(logged), len(ITEM_NAMES))


def served_history(evidence: SlateEvidence) -> ServedHistory:
    """The history that the ranker read. Raises `SlateError` when it was not logged."""
    try:
        item_ids = [str(item_id) for item_id in evidence.user["history_item_ids"]]
        event_types = [str(EventType(event_type)) for event_type in evidence.user["history_types"]]
    except (KeyError, TypeError, ValueError) as error:
        raise SlateError(f"slate record's user has no history: {error!r}") from error
    time_ms_H = _array(evidence, "history_time_ms_H", "<i8")
    if not len(item_ids) == len(event_types) == len(time_ms_H):
        raise SlateError(f"history of {len(item_ids)} items, {len(event_types)} types and {len(time_ms_H)} times")
    return ServedHistory(item_ids=item_ids, event_types=event_types, event_time_ms_H=time_ms_H)


def _packed_values(evidence: SlateEvidence, items: int) -> tuple[Int64s, Float32s]:
    """The rows of `candidate_CF` that `input_row_R` says are of the returned candidates, `row_S`."""
    names = evidence.candidate_features
    row_S, row_R = _array(evidence, "row_S", "<i4"), _array(evidence, "input_row_R", "<i4")
    values_RF = _array(evidence, "candidate_CF", "<f4")
    if len(row_S) != items or values_RF.shape != (len(row_R), len(names)):
        raise SlateError(
            f"got {len(row_S)} rows for {items} items, features of shape {values_RF.shape}; "
            f"allowed: a row an item, and ({len(row_R)}, {len(names)})"
        )
    if not len(row_R):
        return np.empty(0, np.int64), np.empty((0, len(ITEM_NAMES)), np.float32)
    order_R = np.argsort(row_R, kind="stable")
    at_S = order_R[np.minimum(np.searchsorted(row_R, row_S, sorter=order_R), len(row_R) - 1)]
    position_N = np.flatnonzero(row_R[at_S] == row_S)
    return position_N, values_RF[at_S[position_N]][:, _columns(names)]


@lru_cache(maxsize=64)
def _columns(names: tuple[str, ...]) -> Int64s:
    """Where each of `ITEM_NAMES` stands among the logged ones."""
    _refuse_missing(names, ITEM_NAMES)
    at = {name: column for column, name in enumerate(names)}
    return np.array([at[name] for name in ITEM_NAMES], np.int64)


def _refuse_missing(got: Collection[str], wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in got]:
        raise SlateError(f"slate lacks the features {', '.join(missing)}")


def _array(evidence: SlateEvidence, name: str, dtype: str) -> npt.NDArray[Any]:
    found: PackedArray | None = evidence.unpacked.get(name)
    if found is None or found.dtype != dtype:
        got = "none" if found is None else found.dtype
        raise SlateError(f"array {name} of the slate record: got {got}; allowed: {dtype}")
    return np.frombuffer(found.data, found.dtype).reshape(found.shape)
