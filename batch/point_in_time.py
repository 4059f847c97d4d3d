"""Windowed features as of any instant, compiled from `features.specs` to Spark SQL: one sweep over time a key.

At instant t an event counts if it arrived before t, its tile has begun and its window still holds it. In t these
are three bounds on one line, so each event counts in one half-open interval:

    opens at   max(arrival_ms + 1, start of its tile)          tile: the family's size
    closes at  end of its tile + window_ms                     tile: the window's resolution

1. Each event becomes one opening and, for each distinct window, one closing (never before the opening).
2. Openings and closings of one key at one time are added up.
3. Openings (+), closings (-) and queries are sorted by time together; running sums are the values. A maximum
   needs no closing: if the newest event's window has closed, every other's has.

So the cost is that of sorting events and queries, whatever their number per key, and no pair of an event and a
query is ever built. The caller takes care that events are valid, counted once and not too late.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pyspark.sql import DataFrame
from pyspark.sql.functions import expr

from features.names import MS_PER_DAY
from features.specs import KEY_FIELDS, MAX_WINDOW_MS, Aggregate, Entity, WindowedFeature, features_of
from features.tiles import Column, Merge, columns_of, family_of, feature_columns, resolution_ms, selection_sql

_QUERY, _OPEN = -1, 0
"""Kinds of rows in the sweep; a closing's kind is its window's number, from 1."""
REACH_MS = MAX_WINDOW_MS + MS_PER_DAY
"""No event that happened longer ago than this counts in any window."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the features of one entity need of the sweep."""

    entity: Entity
    features: tuple[WindowedFeature, ...]
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    windows: tuple[tuple[int, int], ...]
    """Distinct (window_ms, resolution_ms); a closing's kind is its place here, counted from 1."""

    @classmethod
    def of(cls, entity: Entity, features: Sequence[WindowedFeature] | None = None) -> Self:
        """The sweep of the entity's features, or of those given."""
        chosen = tuple(features_of(entity) if features is None else features)
        windows = sorted({(feature.window_ms, resolution_ms(feature)) for feature in chosen})
        return cls(
            entity=entity,
            features=chosen,
            keys=KEY_FIELDS[entity],
            columns=columns_of(chosen),
            windows=tuple(windows),
        )

    def kind_of(self, feature: WindowedFeature) -> int:
        """The kind of the closings of the feature's window."""
        return self.windows.index((feature.window_ms, resolution_ms(feature))) + 1


def values_as_of(
    events: DataFrame, queries: DataFrame, entity: Entity, features: Sequence[WindowedFeature] | None = None
) -> DataFrame:
    """The entity's features for each distinct query.

    `events` are valid, distinct events that are not too late, with `arrival_ms`; `queries` have the entity's key
    fields and `t_ms`. Returns the key fields, `t_ms` and one double a feature; a key without events gets every
    feature's value of an empty window.
    """
    sweep = Sweep.of(entity, features)
    bounds = queries.selectExpr("min(t_ms) AS first", "max(t_ms) AS last").first()
    if bounds is None or bounds["first"] is None:
        return _finalised(sweep, _running(sweep, _queries(sweep, queries)))
    deltas = _deltas(sweep, events.where(f"event_time_ms >= {bounds['first'] - REACH_MS}"), bounds["last"])
    return _finalised(sweep, _running(sweep, deltas.unionByName(_queries(sweep, queries))))


def _deltas(sweep: Sweep, events: DataFrame, last_ms: int) -> DataFrame:
    tile_ms = family_of(sweep.entity).tile_ms
    selected = " OR ".join(sorted({selection_sql(column.events) for column in sweep.columns}))
    opening = f"greatest(arrival_ms + 1, {_floor('event_time_ms', tile_ms)})"
    counted = events.where(selected).selectExpr(
        *sweep.keys, "event_time_ms", f"{opening} AS _open", *(added_sql(column) for column in sweep.columns)
    )
    steps = [f"struct(_open AS at, {_OPEN} AS kind)"]
    for kind, (window_ms, tile) in enumerate(sweep.windows, start=1):
        closing = f"{_floor('event_time_ms', tile)} + {tile + window_ms}"
        steps.append(f"struct(greatest(_open, {closing}) AS at, {kind} AS kind)")
    stepped = counted.selectExpr("*", f"explode(array({', '.join(steps)})) AS _step")
    placed = stepped.selectExpr(*sweep.keys, "_step.*", *(column.name for column in sweep.columns))
    totals = (
        expr(f"{'sum' if column.merge is Merge.ADD else 'max'}({column.name})").alias(column.name)
        for column in sweep.columns
    )
    return placed.where(f"at <= {last_ms}").groupBy(*sweep.keys, "at", "kind").agg(*totals)


def _queries(sweep: Sweep, queries: DataFrame) -> DataFrame:
    nothing = (f"CAST(0 AS BIGINT) AS {column.name}" for column in sweep.columns)
    return queries.selectExpr(*sweep.keys, "t_ms AS at").distinct().selectExpr("*", f"{_QUERY} AS kind", *nothing)


def _running(sweep: Sweep, steps: DataFrame) -> DataFrame:
    """Adds, at each query, the merged value of each column in each window that some feature needs."""
    # At one instant openings and closings come before queries: intervals are half-open.
    order = f"PARTITION BY {', '.join(sweep.keys)} ORDER BY at, kind DESC ROWS UNBOUNDED PRECEDING"
    parts = {}
    for feature in sweep.features:
        kind = sweep.kind_of(feature)
        for column in feature_columns(feature):
            name = column.name
            if column.merge is Merge.MAX:
                merged = f"max(CASE WHEN kind = {_OPEN} THEN {name} ELSE 0 END)"
            else:
                merged = f"sum(CASE kind WHEN {_OPEN} THEN {name} WHEN {kind} THEN -{name} ELSE 0 END)"
            parts[part_name(column, kind)] = f"{merged} OVER ({order}) AS {part_name(column, kind)}"
    swept = steps.selectExpr(*sweep.keys, "at AS t_ms", "kind", *parts.values())
    return swept.where(f"kind = {_QUERY}")


def _finalised(sweep: Sweep, merged: DataFrame) -> DataFrame:
    values = []
    for feature in sweep.features:
        parts = [part_name(column, sweep.kind_of(feature)) for column in feature_columns(feature)]
        values.append(f"{finalise_sql(feature, parts)} AS {feature.name}")
    return merged.selectExpr(*sweep.keys, "t_ms", *values)


def finalise_sql(feature: WindowedFeature, parts: Sequence[str]) -> str:
    """What `features.algebra` makes of the merged columns, as SQL over `t_ms` and the names of the parts."""
    default = f"CAST({feature.default!r} AS DOUBLE)"
    match feature.aggregate:
        case Aggregate.COUNT | Aggregate.SUM:
            return f"CAST({parts[0]} AS DOUBLE)"
        case Aggregate.MEAN | Aggregate.RATE:
            quotient = f"CAST({parts[0]} AS DOUBLE) / CAST({parts[1]} AS DOUBLE)"
            return f"CASE WHEN {parts[1]} = 0 THEN {default} ELSE {quotient} END"
        case Aggregate.SINCE_LAST:
            start = _floor(f"(t_ms - {feature.window_ms})", resolution_ms(feature))
            since = f"CAST(greatest(t_ms - {parts[0]}, 0) AS DOUBLE)"
            return f"CASE WHEN {parts[0]} = 0 OR {parts[0]} < {start} THEN {default} ELSE {since} END"


def added_sql(column: Column) -> str:
    """What one event adds to the column, under the column's name; 0 where the event is not selected."""
    added = "1" if column.field is None else column.field
    return f"CAST(CASE WHEN {selection_sql(column.events)} THEN {added} ELSE 0 END AS BIGINT) AS {column.name}"


def part_name(column: Column, kind: int) -> str:
    """The name of the column merged over the window of that kind."""
    return f"{column.name}__{kind}"


def _floor(time: str, tile_ms: int) -> str:
    return f"({time} - {time} % {tile_ms})"
