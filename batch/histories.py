"""A user's recent interactions as of each instant: the newest events that had arrived before it."""

from bisect import insort
from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame

from features.events import EventType

HISTORY_LENGTH = 50
"""Events kept in an example, newest first by (event_time_ms, event_id)."""

HISTORY_COLUMNS = ("history_item_ids", "history_event_types", "history_event_times_ms")

_EVENT, _QUERY = 0, 1
_COLUMNS = (
    "user_id STRING, t_ms BIGINT, history_item_ids ARRAY<STRING>, history_event_types ARRAY<STRING>, "
    "history_event_times_ms ARRAY<BIGINT>"
)
_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "t_ms": pa.int64(),
        "history_item_ids": pa.list_(pa.string()),
        "history_event_types": pa.list_(pa.string()),
        "history_event_times_ms": pa.list_(pa.int64()),
    }
)
Kept = tuple[int, str, str, str]
"""event_time_ms, event_id, item_id, event_type: sorts as the history does."""


def histories_as_of(events: DataFrame, queries: DataFrame) -> DataFrame:
    """For each distinct (user_id, t_ms): item ids, types and times of the user's last events but impressions.

    `events` are valid, distinct and not too late. An event belongs to the history if it arrived before t. Each
    user's events and queries are read once, in order of time; only the newest `HISTORY_LENGTH` events are held.
    """
    asked = queries.select("user_id", "t_ms").distinct()
    nothing = ("CAST(NULL AS BIGINT) AS event_time_ms", *(f"'' AS {name}" for name in _TEXTS))
    told = asked.selectExpr("user_id", "t_ms AS at", f"{_QUERY} AS kind", *nothing)
    interactions = events.where(f"event_type != '{EventType.IMPRESSION}'")
    seen = interactions.selectExpr("user_id", "arrival_ms + 1 AS at", f"{_EVENT} AS kind", "event_time_ms", *_TEXTS)
    ordered = seen.union(told).repartition("user_id").sortWithinPartitions("user_id", "at", "kind")
    return ordered.mapInArrow(_fold, _COLUMNS)


_TEXTS = ("event_id", "item_id", "event_type")


def _fold(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Answers the queries of one partition, whose rows are sorted by (user, time, events before queries)."""
    user: str | None = None
    kept: list[Kept] = []
    for batch in batches:
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        answers: list[tuple[str, int, list[Kept]]] = []
        for row_user, at, kind, event_time_ms, event_id, item_id, event_type in rows:
            if row_user != user:
                user, kept = row_user, []
            if kind == _QUERY:
                answers.append((row_user, at, kept[::-1]))
                continue
            insort(kept, (event_time_ms, event_id, item_id, event_type))
            del kept[:-HISTORY_LENGTH]
        yield _answered(answers)


def _answered(answers: list[tuple[str, int, list[Kept]]]) -> pa.RecordBatch:
    columns = (
        [user for user, _, _ in answers],
        [at for _, at, _ in answers],
        [[event[2] for event in kept] for _, _, kept in answers],
        [[event[3] for event in kept] for _, _, kept in answers],
        [[event[0] for event in kept] for _, _, kept in answers],
    )
    arrays = [pa.array(column, type=kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)
