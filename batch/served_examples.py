"""Which impressions have the feature values that their slate logged, and these values, as Spark reads them.

An impression has them when its slate is in the lake, is of the same user, was served at most `MAX_OPEN_MS` before, was
logged under this version of the features, and holds the item with features that the service did have. All others say
why not, and at which instant theirs are to be recomputed: when the slate was served, where the lake has it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable as DeltaLog
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

from batch.histories import HISTORY_COLUMNS, HISTORY_LENGTH
from batch.lake import TABLES, read_table
from batch.slate_values import (
    ITEM_NAMES,
    USER_NAMES,
    Degraded,
    Float32s,
    Int64s,
    ServedHistory,
    item_values,
    served_history,
    user_values,
)
from features import specs
from features.events import FUTURE_SKEW_MS
from features.names import MS_PER_DAY
from features.slates import SlateError, SlateRecord, parse_slate

MAX_OPEN_MS = MS_PER_DAY
"""An impression that comes later after its slate has values of its own instant: the slate's are of another day."""
SLATES_AT_ONCE = 200
"""Slates whose arrays are held together, about 30 kB each."""
SERVED = "served_"
"""Prefix of the columns of served values."""


class Source(StrEnum):
    """Where an example's features come from."""

    SERVED = "served"
    """The ranker read them; logged with the slate."""
    RECOMPUTED = "recomputed"
    """Computed from the lake's events."""


class Because(StrEnum):
    """Why an example's features are recomputed."""

    NO_SLATE = "no_slate"
    """The lake has no slate of that request and user, or one of another day."""
    OTHER_FEATURES = "other_features"
    """The slate was logged under another version of the features, or before the version was logged."""
    FORCED = "forced"
    """The run was told to."""
    NOT_SCORED = "not_scored"
    """The ranker did not score that slate."""
    DEGRADED = "degraded"
    """The service said that it did not have the user's or the items' features."""
    NOT_LOGGED = "not_logged"
    """The slate does not hold the item, or not its features."""
    UNREADABLE = "unreadable"
    """The slate's record cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Impressions with their source. Both frames are persisted: `release` them."""

    impressions: DataFrame
    """With `feature_ms`, `feature_source` and `recomputed_because` (null where served)."""
    items: DataFrame
    """Items of the slates that may serve: `request_id`, `item_id`, `state` and, with the prefix `SERVED`, histories and
    features.
    """

    def release(self) -> None:
        """Gives the memory back."""
        self.impressions.unpersist()
        self.items.unpersist()


def place(spark: SparkSession, lake: Path, impressions: DataFrame, *, take_served: bool) -> Placed:
    """Finds each impression's slate, and reads what the slates say unless none is to be taken."""
    slates = _slates(spark, lake, impressions)
    told = slates.selectExpr("request_id", "user_id", "served_at_ms AS slate_ms", "spec_version AS slate_version")
    near = f"slate_ms BETWEEN t_ms - {MAX_OPEN_MS} AND t_ms + {FUTURE_SKEW_MS}"
    beside = impressions.join(told, ["request_id", "user_id"], "left").selectExpr(
        *impressions.columns, f"CASE WHEN {near} THEN slate_ms END AS slate_ms", "slate_version"
    )
    same = f"coalesce(slate_version, '') = '{specs.version()}'"
    wanted = beside.where(f"slate_ms IS NOT NULL AND {same} AND {str(take_served).lower()}")
    chosen = slates.join(wanted.select("request_id").distinct(), "request_id", "left_semi")
    items = chosen.select("request_id", "value").mapInArrow(_decode, _COLUMNS).persist(StorageLevel.MEMORY_AND_DISK)
    states = items.select("request_id", "item_id", "state", "read_ms")
    # A record that cannot be read says so once, for no item.
    found = beside.join(states.where("item_id IS NOT NULL"), ["request_id", "item_id"], "left")
    broken = states.where("item_id IS NULL").selectExpr("request_id", "state AS broken")
    because = f"""CASE
        WHEN slate_ms IS NULL THEN '{Because.NO_SLATE}'
        WHEN NOT {same} THEN '{Because.OTHER_FEATURES}'
        WHEN NOT {str(take_served).lower()} THEN '{Because.FORCED}'
        WHEN state = '{Source.SERVED}' THEN NULL
        ELSE coalesce(state, broken, '{Because.NOT_LOGGED}') END AS recomputed_because"""
    judged = found.join(broken, "request_id", "left").selectExpr("*", because)
    placed = judged.selectExpr(
        *impressions.columns,
        "CASE WHEN recomputed_because IS NULL THEN read_ms ELSE coalesce(slate_ms, t_ms) END AS feature_ms",
        f"CASE WHEN recomputed_because IS NULL THEN '{Source.SERVED}' ELSE '{Source.RECOMPUTED}' END AS feature_source",
        "recomputed_because",
    ).persist(StorageLevel.MEMORY_AND_DISK)
    return Placed(impressions=placed, items=items)


def take_served(examples: DataFrame, items: DataFrame) -> DataFrame:
    """The served values in the place of recomputed ones, where `feature_source` says so."""
    names = [*HISTORY_COLUMNS, *USER_NAMES, *ITEM_NAMES]
    chosen = (
        f"CASE feature_source WHEN '{Source.SERVED}' THEN {SERVED}{name} ELSE {name} END AS {name}" for name in names
    )
    others = [name for name in examples.columns if name not in names]
    values = items.where(f"state = '{Source.SERVED}'").drop("state", "read_ms")
    return examples.join(values, ["request_id", "item_id"], "left").selectExpr(*others, *chosen)


def _slates(spark: SparkSession, lake: Path, impressions: DataFrame) -> DataFrame:
    """The slates that the impressions may be of; Delta skips the files of other times."""
    columns = "request_id STRING, user_id STRING, served_at_ms BIGINT, spec_version STRING, value BINARY"
    if not DeltaLog.is_deltatable(str(lake / TABLES.slates)):
        return spark.createDataFrame([], columns)
    slates = read_table(spark, lake, TABLES.slates)
    bounds = impressions.selectExpr("min(t_ms) AS first", "max(t_ms) AS last").first()
    if bounds is None or bounds["first"] is None:
        return spark.createDataFrame([], columns)
    version = "spec_version" if "spec_version" in slates.columns else "CAST(NULL AS STRING) AS spec_version"
    between = f"BETWEEN {bounds['first'] - MAX_OPEN_MS} AND {bounds['last'] + FUTURE_SKEW_MS}"
    chosen = slates.where(f"served_at_ms {between}")
    return chosen.selectExpr("request_id", "user_id", "served_at_ms", version, "value")


_FEATURES = (*USER_NAMES, *ITEM_NAMES)
_FIELDS: dict[str, tuple[str, pa.DataType]] = {
    "request_id": ("STRING", pa.string()),
    "item_id": ("STRING", pa.string()),
    "state": ("STRING", pa.string()),
    "read_ms": ("BIGINT", pa.int64()),
    f"{SERVED}{HISTORY_COLUMNS[0]}": ("ARRAY<STRING>", pa.list_(pa.string())),
    f"{SERVED}{HISTORY_COLUMNS[1]}": ("ARRAY<STRING>", pa.list_(pa.string())),
    f"{SERVED}{HISTORY_COLUMNS[2]}": ("ARRAY<BIGINT>", pa.list_(pa.int64())),
    **{f"{SERVED}{name}": ("DOUBLE", pa.float64()) for name in _FEATURES},
}
_COLUMNS = ", ".join(f"{name} {sql}" for name, (sql, _) in _FIELDS.items())
_SCHEMA = pa.schema([(name, kind) for name, (_, kind) in _FIELDS.items()])


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What the ranker read for each item of a slate."""

    values_SF: Float32s
    read_ms: int
    history: ServedHistory


_NOTHING = _Read(
    values_SF=np.empty((0, len(_FEATURES)), np.float32),
    read_ms=0,
    history=ServedHistory(item_ids=[], event_types=[], event_time_ms_H=np.empty(0, np.int64)),
)


@dataclass(frozen=True, kw_only=True)
class _Slate:
    """One slate; values only where it is `Source.SERVED`."""

    request_id: str
    state: str
    item_ids: list[str | None]
    read: _Read = _NOTHING


def _decode(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, SLATES_AT_ONCE):
            part = batch.slice(start, SLATES_AT_ONCE)
            pairs = zip(part.column(0).to_pylist(), part.column(1).to_pylist(), strict=True)
            yield _rows([_slate(request_id, value) for request_id, value in pairs])


def _slate(request_id: str, value: bytes) -> _Slate:
    try:
        record = parse_slate(value)
        return _read(request_id, record)
    except SlateError:
        return _Slate(request_id=request_id, state=Because.UNREADABLE, item_ids=[None])


def _read(request_id: str, record: SlateRecord) -> _Slate:
    """What a slate says of each of its items. Raises `SlateError`."""
    ids = [item.item_id for item in record.items]
    evidence, degraded = record.evidence, Degraded.of(record)
    if degraded.user or degraded.items:
        return _Slate(request_id=request_id, state=Because.DEGRADED, item_ids=[*dict.fromkeys(ids)])
    if evidence is None or not evidence.candidate_features:
        return _Slate(request_id=request_id, state=Because.NOT_SCORED, item_ids=[*dict.fromkeys(ids)])
    position_N, values_NF = item_values(record)
    _, first_N = np.unique(np.array(ids, dtype=object)[position_N].astype(str), return_index=True)
    kept = position_N[first_N]
    user_F = user_values(record)
    return _Slate(
        request_id=request_id,
        state=Source.SERVED,
        item_ids=[ids[position] for position in kept.tolist()],
        read=_Read(
            values_SF=np.hstack([np.broadcast_to(user_F, (len(kept), len(user_F))), values_NF[first_N]]),
            read_ms=int(evidence.user["instant_ms"]),
            history=served_history(evidence),
        ),
    )


def _rows(slates: list[_Slate]) -> pa.RecordBatch:
    """One row an item of each slate. Values of items that were not served are null."""
    counts = np.array([len(slate.item_ids) for slate in slates], np.int64)
    slate_N = np.repeat(np.arange(len(slates)), counts)
    served_N = np.array([slate.state == Source.SERVED for slate in slates], np.bool_)[slate_N]
    values_NF = np.zeros((len(slate_N), len(_FEATURES)), np.float64)
    values_NF[served_N] = np.concatenate([slate.read.values_SF for slate in slates])
    read_ms_N = np.array([slate.read.read_ms for slate in slates], np.int64)[slate_N]
    histories = [slate.read.history for slate in slates]
    arrays = [
        pa.array([slate.request_id for slate in slates], pa.string()).take(pa.array(slate_N)),
        pa.array([item_id for slate in slates for item_id in slate.item_ids], pa.string()),
        pa.array([str(slate.state) for slate in slates], pa.string()).take(pa.array(slate_N)),
        pa.array(read_ms_N, mask=~served_N),
        _lists([pa.array(each.item_ids[:HISTORY_LENGTH], pa.string()) for each in histories], slate_N),
        _lists([pa.array(each.event_types[:HISTORY_LENGTH], pa.string()) for each in histories], slate_N),
        _lists([pa.array(each.event_time_ms_H[:HISTORY_LENGTH]) for each in histories], slate_N),
        *(pa.array(values_NF[:, f], mask=~served_N) for f in range(len(_FEATURES))),
    ]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _lists(of_slates: list[pa.Array], slate_N: Int64s) -> pa.Array:
    """Each slate's list for each of its rows."""
    starts = np.concatenate([[0], np.cumsum([len(each) for each in of_slates])]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(starts), pa.concat_arrays(of_slates))
    return lists.take(pa.array(slate_N))
