"""Served slates with what users did next, from the lake, as columns: what the monitor judges.

S slates, N shown items, E events.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from features.events import EventType
from features.names import LakeTables

Bools = npt.NDArray[np.bool_]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Objects = npt.NDArray[np.object_]

MAIN_ARM = "millrace"
"""The arm that serves outside of experiments: only its slates speak for a bundle."""
_OUTCOMES = (EventType.IMPRESSION, EventType.CLICK, EventType.HIDE)
_SLATES = ("request_id", "user_id", "served_at_ms", "bundle_id", "arm", "newest_event_ms", "items")


@dataclass(frozen=True, kw_only=True)
class ServedLog:
    """Slates of the main arm and each of their items."""

    slate_user_S: Objects
    slate_served_ms_S: Int64s
    slate_newest_ms_S: Float64s
    """Event time of the newest event behind the answer; NaN where there is none."""
    slate_N: Int64s
    """The item's slate, an index."""
    user_N: Objects
    item_N: Objects
    bundle_N: Objects
    source_N: Objects
    """The source that ranked the item best; empty where none is named."""
    served_ms_N: Int64s
    position_N: Int64s
    score_N: Float64s
    click_probability_N: Float64s
    """NaN where the ranker did not score."""
    shown_N: Bools
    """Whether an impression of the item in this slate came back; clicks and hides are of those."""
    clicked_N: Bools
    hidden_N: Bools

    def __len__(self) -> int:
        return len(self.item_N)

    def take(self, chosen_N: Bools) -> "ServedLog":
        """The chosen items, with all slates."""
        of_items = {name: column[chosen_N] for name, column in vars(self).items() if name.endswith("_N")}
        return ServedLog(**{**vars(self), **of_items})


def read_served(lake: Path, from_ms: int, until_ms: int, max_slates: int) -> ServedLog:
    """The newest `max_slates` slates of the main arm served in `[from_ms, until_ms)`; none without the tables."""
    slates = _newest(_slates(lake, from_ms, until_ms), max_slates)
    items = slates.column("items").combine_chunks()
    slate_N = pc.list_parent_indices(items).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = items.flatten()
    request_N = _objects(slates.column("request_id"))[slate_N]
    item_N = _objects(flat.field("item_id"))
    outcomes = _outcomes(lake, from_ms, request_N)
    keys = list(zip(request_N.tolist(), item_N.tolist(), strict=True))
    came_3N = {kind: np.array([key in outcomes[kind] for key in keys], np.bool_) for kind in _OUTCOMES}
    user_S, served_S = _objects(slates.column("user_id")), _int64s(slates.column("served_at_ms"))
    return ServedLog(
        slate_user_S=user_S,
        slate_served_ms_S=served_S,
        slate_newest_ms_S=_float64s(slates.column("newest_event_ms")),
        slate_N=slate_N,
        user_N=user_S[slate_N],
        item_N=item_N,
        bundle_N=_objects(slates.column("bundle_id"))[slate_N],
        source_N=np.array([found[0] if found else "" for found in flat.field("sources").to_pylist()], object),
        served_ms_N=served_S[slate_N],
        position_N=_int64s(flat.field("position")),
        score_N=_float64s(flat.field("score")),
        click_probability_N=np.array(
            [dict(found or ()).get("click", np.nan) for found in flat.field("probabilities").to_pylist()], np.float64
        ),
        shown_N=came_3N[EventType.IMPRESSION],
        clicked_N=came_3N[EventType.IMPRESSION] & came_3N[EventType.CLICK],
        hidden_N=came_3N[EventType.IMPRESSION] & came_3N[EventType.HIDE],
    )


def stale_answers(lake: Path, log: ServedLog, grace_ms: int) -> tuple[int, int]:
    """How many answers did not reflect an event of their user that had arrived `grace_ms` before, and of how many.

    Counted are the answers to users of whom the lake knows such an event.
    """
    arrival_ms, newest_ms = _arrivals(lake, log)
    stale = judged = 0
    for user, served_ms, behind_ms in zip(
        log.slate_user_S.tolist(), log.slate_served_ms_S.tolist(), log.slate_newest_ms_S.tolist(), strict=True
    ):
        arrived = arrival_ms.get(user)
        known = 0 if arrived is None else int(np.searchsorted(arrived, served_ms - grace_ms))
        if known:
            judged += 1
            stale += not behind_ms >= newest_ms[user][known - 1]  # NaN: no event stood behind it
    return stale, judged


def _arrivals(lake: Path, log: ServedLog) -> tuple[Mapping[str, Int64s], Mapping[str, Int64s]]:
    """Each user's arrivals in order, and the newest event time up to each; in the week before the slates."""
    path = str(lake / LakeTables().silver_events)
    if not len(log.slate_served_ms_S) or not DeltaTable.is_deltatable(path):
        return {}, {}
    users = pa.array(sorted(set(log.slate_user_S.tolist())), pa.string())
    first_ms = int(log.slate_served_ms_S.min()) - 7 * 24 * 3_600_000
    near = (pc.field("event_time_ms") >= first_ms) & pc.field("user_id").isin(users)
    columns = ["user_id", "arrival_ms", "event_time_ms"]
    events = (
        DeltaTable(path)
        .to_pyarrow_dataset()
        .to_table(columns=columns, filter=near)
        .sort_by([("user_id", "ascending"), ("arrival_ms", "ascending")])
    )
    user_E, arrival_E = _objects(events.column("user_id")), _int64s(events.column("arrival_ms"))
    time_E = _int64s(events.column("event_time_ms"))
    users_U, start_U = np.unique(user_E.astype(str), return_index=True)
    arrivals, times = np.split(arrival_E, start_U[1:]), np.split(time_E, start_U[1:])
    newest = [np.maximum.accumulate(own) for own in times]
    names = users_U.tolist()
    return dict(zip(names, arrivals, strict=False)), dict(zip(names, newest, strict=False))


def _slates(lake: Path, from_ms: int, until_ms: int) -> pa.Table:
    path = str(lake / LakeTables().slates)
    served = (pc.field("served_at_ms") >= from_ms) & (pc.field("served_at_ms") < until_ms)
    if not DeltaTable.is_deltatable(path):
        return _NO_SLATES
    chosen = served & (pc.field("arm") == MAIN_ARM)
    return DeltaTable(path).to_pyarrow_dataset().to_table(columns=list(_SLATES), filter=chosen)


def _newest(slates: pa.Table, limit: int) -> pa.Table:
    return slates.sort_by([("served_at_ms", "descending"), ("request_id", "ascending")]).slice(0, limit)


def _outcomes(lake: Path, from_ms: int, request_N: Objects) -> Mapping[EventType, set[tuple[str, str]]]:
    """Which (request_id, item_id) had an event of each kind."""
    found: dict[EventType, set[tuple[str, str]]] = {kind: set() for kind in _OUTCOMES}
    path = str(lake / LakeTables().silver_events)
    if not len(request_N) or not DeltaTable.is_deltatable(path):
        return found
    requests = pa.array(sorted(set(request_N.tolist())), pa.string())
    later = (pc.field("event_time_ms") >= from_ms) & pc.field("request_id").isin(requests)
    columns = ["request_id", "item_id", "event_type"]
    for row in DeltaTable(path).to_pyarrow_dataset().to_table(columns=columns, filter=later).to_pylist():
        if row["event_type"] in found:
            found[EventType(row["event_type"])].add((row["request_id"], row["item_id"]))
    return found


_NO_SLATES = pa.table(
    {
        "request_id": pa.array([], pa.string()),
        "user_id": pa.array([], pa.string()),
        "served_at_ms": pa.array([], pa.int64()),
        "bundle_id": pa.array([], pa.string()),
        "arm": pa.array([], pa.string()),
        "newest_event_ms": pa.array([], pa.int64()),
        "items": pa.array(
            [],
            pa.list_(
                pa.struct(
                    [
                        ("item_id", pa.string()),
                        ("position", pa.int32()),
                        ("score", pa.float64()),
                        ("sources", pa.list_(pa.string())),
                        ("probabilities", pa.map_(pa.string(), pa.float64())),
                    ]
                )
            ),
        ),
    }
)


def _objects(column: pa.ChunkedArray | pa.Array) -> Objects:
    return np.array(column.to_pylist(), object)


def _int64s(column: pa.ChunkedArray | pa.Array) -> Int64s:
    return np.array(column.to_pylist(), np.int64)


def _float64s(column: pa.ChunkedArray | pa.Array) -> Float64s:
    return np.array([np.nan if each is None else each for each in column.to_pylist()], np.float64)
