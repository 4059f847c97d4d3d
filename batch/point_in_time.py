"""Windowed features as of any instant, compiled from `features.specs` to Spark SQL: one sweep over time a key.

At instant t an event counts if it arrived before t, its tile has begun and its window still holds it. In t these
are three bounds on one line, so each event counts in one half-open interval:

    opens at   max(arrival_ms + 1, start of its tile)          tile: the family's size
    closes at  end of its tile + window_ms                     tile: the window's resolution

1. Each event becomes one opening and, for each distinct window, one closing (never before the opening).
2. Openings and closings of one key at one time are added up.
3. Openings (+), closings (-) and queries are sorted by time together; running sums are the values: counts, sums, and
   for a union one count a member. A maximum of event times needs no closing: if the newest event's window has closed,
   every other's has. A maximum of values does, and has a sweep of its own (`batch.sliding_max`).

So the cost is that of sorting events and queries, whatever their number per key, and no pair of an event and a
query is ever built. The caller takes care that events are valid, counted once and not too late.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pyspark.sql import DataFrame
from pyspark.sql.functions import expr

from batch.sliding_max import sliding_max
from features.names import MS_PER_DAY
from features.specs import KEY_FIELDS, MAX_LAST_SIZE, MAX_WINDOW_MS, Aggregate, Entity, WindowedFeature, features_of
from features.tiles import (
    Column,
    Merge,
    columns_of,
    contribution_sql,
    family_of,
    feature_columns,
    resolution_ms,
    selection_sql,
)

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

    @property
    def maxima(self) -> tuple[Column, ...]:
        """The columns that are maxima of values."""
        of_values = [feature_columns(feature)[0] for feature in self.features if feature.aggregate is Aggregate.MAX]
        return tuple(dict.fromkeys(of_values))

    @property
    def summed(self) -> tuple[Column, ...]:
        """All other columns."""
        return tuple(column for column in self.columns if column not in self.maxima)

    @property
    def latest(self) -> frozenset[str]:
        """Names of the columns that are maxima in the order of event time."""
        return frozenset(column.name for column in self.summed if column.merge is Merge.MAX)

    @property
    def steps(self) -> dict[str, str]:
        """What one event adds in the sweep, by name."""
        return {name: sql for column in self.summed for name, sql in _step_sql(column).items()}

    def parts_of(self, column: Column) -> tuple[str, ...]:
        """Names of the column's parts: one a window in which some feature reads it."""
        kinds = {self.kind_of(feature) for feature in self.features if column in feature_columns(feature)}
        return tuple(part_name(column, kind) for kind in sorted(kinds))

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
    first, last = (bounds["first"], bounds["last"]) if bounds is not None else (None, None)
    reached = events.where("false" if first is None else f"event_time_ms >= {first - REACH_MS}")
    deltas = _deltas(sweep, reached, last or 0)
    merged = _running(sweep, deltas.unionByName(_queries(sweep, queries)))
    for column in sweep.maxima:
        maxima = sliding_max(_openings(sweep, column, reached), queries, sweep.keys, sweep.parts_of(column))
        merged = merged.join(maxima, [*sweep.keys, "t_ms"])
    return _finalised(sweep, merged)


def _deltas(sweep: Sweep, events: DataFrame, last_ms: int) -> DataFrame:
    counted = events.where(_selected(sweep.summed)).selectExpr(
        *sweep.keys, "event_time_ms", f"{_opening(sweep)} AS _open", *sweep.steps.values()
    )
    steps = [f"struct(_open AS at, {_OPEN} AS kind)"]
    for kind, window in enumerate(sweep.windows, start=1):
        steps.append(f"struct({_closing(window)} AS at, {kind} AS kind)")
    stepped = counted.selectExpr("*", f"explode(array({', '.join(steps)})) AS _step")
    placed = stepped.selectExpr(*sweep.keys, "_step.*", *sweep.steps)
    totals = (expr(f"{'max' if name in sweep.latest else 'sum'}({name})").alias(name) for name in sweep.steps)
    return placed.where(f"at <= {last_ms}").groupBy(*sweep.keys, "at", "kind").agg(*totals)


def _openings(sweep: Sweep, column: Column, events: DataFrame) -> DataFrame:
    """The selected events as `batch.sliding_max` reads them."""
    opened = events.where(selection_sql(column.events)).selectExpr(
        *sweep.keys, "event_time_ms", f"{_opening(sweep)} AS _open", f"CAST({column.sql} AS BIGINT) AS value"
    )
    closings = [
        f"{_closing(window)} AS {part_name(column, kind)}"
        for kind, window in enumerate(sweep.windows, start=1)
        if part_name(column, kind) in sweep.parts_of(column)
    ]
    return opened.selectExpr(*sweep.keys, "_open AS at", "value", *closings)


def _selected(columns: Sequence[Column]) -> str:
    return " OR ".join(sorted({selection_sql(column.events) for column in columns}))


def _opening(sweep: Sweep) -> str:
    return f"greatest(arrival_ms + 1, {_floor('event_time_ms', family_of(sweep.entity).tile_ms)})"


def _closing(window: tuple[int, int]) -> str:
    window_ms, tile_ms = window
    return f"greatest(_open, {_floor('event_time_ms', tile_ms)} + {tile_ms + window_ms})"


def _queries(sweep: Sweep, queries: DataFrame) -> DataFrame:
    nothing = (f"CAST(0 AS BIGINT) AS {name}" for name in sweep.steps)
    return queries.selectExpr(*sweep.keys, "t_ms AS at").distinct().selectExpr("*", f"{_QUERY} AS kind", *nothing)


def _running(sweep: Sweep, steps: DataFrame) -> DataFrame:
    """Adds, at each query, the merged value of each column in each window that some feature needs."""
    # At one instant openings and closings come before queries: intervals are half-open.
    order = f"PARTITION BY {', '.join(sweep.keys)} ORDER BY at, kind DESC ROWS UNBOUNDED PRECEDING"
    parts = {}
    for feature in sweep.features:
        kind = sweep.kind_of(feature)
        for column in feature_columns(feature):
            if column not in sweep.maxima:
                parts[part_name(column, kind)] = f"{_merged(sweep, column, kind, order)} AS {part_name(column, kind)}"
    swept = steps.selectExpr(*sweep.keys, "at AS t_ms", "kind", *parts.values())
    return swept.where(f"kind = {_QUERY}")


def _merged(sweep: Sweep, column: Column, kind: int, order: str) -> str:
    def count(name: str) -> str:
        return f"sum(CASE kind WHEN {_OPEN} THEN {name} WHEN {kind} THEN -{name} ELSE 0 END) OVER ({order})"

    if column.name in sweep.latest:
        return f"max(CASE WHEN kind = {_OPEN} THEN {column.name} ELSE 0 END) OVER ({order})"
    if column.merge is Merge.UNION:
        members = (
            f"CASE WHEN {count(name)} > 0 THEN {2**v}L ELSE 0L END" for v, name in enumerate(member_names(column))
        )
        return f"({' + '.join(members)})"
    return count(column.name)


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
        case Aggregate.MAX:
            return f"CASE WHEN {parts[1]} = 0 THEN {default} ELSE CAST({parts[0]} AS DOUBLE) END"
        case Aggregate.LAST:
            time_ms, value = f"({parts[0]} DIV {MAX_LAST_SIZE})", f"CAST({parts[0]} % {MAX_LAST_SIZE} AS DOUBLE)"
            return f"CASE WHEN {time_ms} < {_window_start(feature)} OR {time_ms} = 0 THEN {default} ELSE {value} END"
        case Aggregate.DISTINCT:
            return f"CAST(bit_count({parts[0]}) AS DOUBLE)"
        case Aggregate.SINCE_LAST:
            start = _window_start(feature)
            since = f"CAST(greatest(t_ms - {parts[0]}, 0) AS DOUBLE)"
            return f"CASE WHEN {parts[0]} = 0 OR {parts[0]} < {start} THEN {default} ELSE {since} END"


def _window_start(feature: WindowedFeature) -> str:
    return _floor(f"(t_ms - {feature.window_ms})", resolution_ms(feature))


def contributed_sql(column: Column) -> str:
    """What one event contributes to the column, under the column's name; 0 where the event is not selected."""
    return f"CAST(coalesce({contribution_sql(column)}, 0) AS BIGINT) AS {column.name}"


def member_names(column: Column) -> list[str]:
    """One name for each value that a union's members may have."""
    return [f"{column.name}__is_{value}" for value in range(column.size or 0)]


def _step_sql(column: Column) -> dict[str, str]:
    """What one event adds in the sweep, by name."""
    if column.merge is not Merge.UNION:
        return {column.name: contributed_sql(column)}
    return {
        name: f"CAST(CASE WHEN {contribution_sql(column)} = {value} THEN 1 ELSE 0 END AS BIGINT) AS {name}"
        for value, name in enumerate(member_names(column))
    }


def part_name(column: Column, kind: int) -> str:
    """The name of the column merged over the window of that kind."""
    return f"{column.name}__{kind}"


def _floor(time: str, tile_ms: int) -> str:
    return f"({time} - {time} % {tile_ms})"
