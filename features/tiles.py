"""Tiles: the mergeable partial aggregates that Flink streams and Spark writes by the day.

A tile holds, for one key and one half-open span of event time `[tile_start_ms, tile_start_ms + tile_ms)`, the
number `n` of events counted in it and one integer per column. Columns only grow as events are added, so of two
rows of one tile the one with the larger `n` is the newer, and writing it is idempotent and commutative.
A window is finalised when it is read (`features.algebra`). The idea is Chronon's (airbnb/chronon, `aggregator/`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from features.events import HORIZON_MS
from features.names import MS_PER_DAY, MS_PER_MINUTE
from features.specs import (
    FINE_WINDOW_MAX_MS,
    MAX_LAST_SIZE,
    MAX_WINDOW_MS,
    WINDOWED_FEATURES,
    Aggregate,
    Entity,
    Selection,
    WindowedFeature,
)

DAY_TILE_MS = MS_PER_DAY
STREAMED_RETENTION_MS = 4 * MS_PER_DAY
"""How long the store keeps streamed tiles, by their start."""
DAY_RETENTION_MS = MAX_WINDOW_MS + MS_PER_DAY
"""How long the store keeps day tiles, by their start."""
TILE_TOPIC_MS = DAY_RETENTION_MS + MS_PER_DAY
"""How long the tile topics keep a row: no store takes it any more by then."""

if FINE_WINDOW_MAX_MS + MS_PER_DAY > STREAMED_RETENTION_MS or HORIZON_MS >= STREAMED_RETENTION_MS:
    raise AssertionError("streamed tiles must outlive the longest fine window and the horizon of late events")


class Merge(StrEnum):
    """How a column of two tiles is merged, and how an event is added to it."""

    ADD = "add"
    MAX = "max"
    UNION = "union"
    """Bitwise or of sets, bit `i` standing for value `i` of the domain."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One partial aggregate of the selected events.

    `sql` is what an event contributes, from 0 up to below 2**63: added, maximised, or for a union the place of the
    one bit that it sets, below `size`. Empty is 0 for every merge.
    """

    name: str
    merge: Merge
    events: Selection
    sql: str = "CAST(1 AS BIGINT)"
    size: int | None = None
    """How many values `sql` may have, from 0; None where that is not bounded."""


@dataclass(frozen=True, kw_only=True)
class TileFamily:
    """A set of tiles that share a key and a size, one GROUP BY of the stream job.

    `entities` are those whose features are finalised from it, each a sum of its tiles over the other key fields.
    """

    name: str
    key_fields: tuple[str, ...]
    tile_ms: int
    entities: tuple[Entity, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that the family's features need, in a stable order."""
        wanted = [feature for feature in WINDOWED_FEATURES if feature.entity in self.entities]
        return columns_of(wanted)


USER_CATEGORY_TILES = TileFamily(
    name="user_category",
    key_fields=("user_id", "category"),
    tile_ms=MS_PER_MINUTE,
    entities=(Entity.USER, Entity.USER_CATEGORY),
)
ITEM_TILES = TileFamily(
    name="item",
    key_fields=("item_id", "category", "creator_id"),
    tile_ms=5 * MS_PER_MINUTE,
    entities=(Entity.ITEM, Entity.CREATOR, Entity.CATEGORY),
)
FAMILIES: tuple[TileFamily, ...] = (USER_CATEGORY_TILES, ITEM_TILES)


def family_of(entity: Entity) -> TileFamily:
    """The family whose tiles the entity's windows are merged from."""
    return next(family for family in FAMILIES if entity in family.entities)


def columns_of(features: Iterable[WindowedFeature]) -> tuple[Column, ...]:
    """The distinct columns that these features are finalised from, sorted by name."""
    distinct = {column.name: column for feature in features for column in feature_columns(feature)}
    return tuple(distinct[name] for name in sorted(distinct))


def feature_columns(feature: WindowedFeature) -> tuple[Column, ...]:
    """The feature's own columns: what `features.algebra.finalise` reads, in its order.

    COUNT (count); SUM (sum); MEAN (sum, count); RATE (count, count of `per`); MAX (greatest value, count);
    LAST (latest event time and value, `event_time_ms * MAX_LAST_SIZE + value`); DISTINCT (set of values);
    SINCE_LAST (last event time).
    """
    match feature.aggregate:
        case Aggregate.COUNT:
            return (_count(feature.events),)
        case Aggregate.SUM:
            return (_of_value(feature, Merge.ADD),)
        case Aggregate.MEAN:
            return (_of_value(feature, Merge.ADD), _count(feature.events))
        case Aggregate.RATE:
            assert feature.per is not None  # WindowedFeature refuses a rate without it
            return (_count(feature.events), _count(feature.per))
        case Aggregate.MAX:
            return (_of_value(feature, Merge.MAX, "max"), _count(feature.events))
        case Aggregate.LAST:
            return (_of_value(feature, Merge.MAX, "last", f"event_time_ms * {MAX_LAST_SIZE} + "),)
        case Aggregate.DISTINCT:
            return (_of_value(feature, Merge.UNION, "distinct"),)
        case Aggregate.SINCE_LAST:
            name = f"last_{feature.events.name}_ms"
            return (Column(name=name, merge=Merge.MAX, events=feature.events, sql="event_time_ms"),)


def _count(events: Selection) -> Column:
    return Column(name=events.name, merge=Merge.ADD, events=events)


def _of_value(feature: WindowedFeature, merge: Merge, prefix: str = "", before: str = "") -> Column:
    value = feature.value
    assert value is not None  # WindowedFeature refuses these aggregates without it
    name = "_".join(part for part in (prefix, feature.events.name, value.name) if part)
    return Column(name=name, merge=merge, events=feature.events, sql=f"{before}{value.sql}", size=value.size)


def selection_sql(selection: Selection) -> str:
    """Whether an event counts: a predicate in the SQL that Flink and Spark share."""
    types = ", ".join(f"'{name}'" for name in sorted(selection.event_types))
    predicate = f"event_type IN ({types})"
    if selection.min_watch_percent is None:
        return predicate
    return f"({predicate} AND watch_ms * 100 >= duration_ms * {selection.min_watch_percent})"


def contribution_sql(column: Column) -> str:
    """What one event contributes to the column, in the SQL that Flink and Spark share; null where not selected."""
    return f"CASE WHEN {selection_sql(column.events)} THEN {column.sql} END"


def column_sql(column: Column) -> str:
    """The column as an aggregate over a tile's events in the SQL that Flink and Spark share. Empty is 0."""
    contribution = contribution_sql(column)
    match column.merge:
        case Merge.ADD:
            aggregate = f"SUM({contribution})"
        case Merge.MAX:
            aggregate = f"MAX({contribution})"
        case Merge.UNION:
            aggregate = f"BIT_OR(CAST(POWER(2, {contribution}) AS BIGINT))"
    return f"COALESCE({aggregate}, CAST(0 AS BIGINT))"


def tile_start(time_ms: int, tile_ms: int) -> int:
    """The start of the tile that holds the instant. Tiles are aligned to the epoch, so day tiles are UTC days."""
    return time_ms - time_ms % tile_ms


def resolution_ms(feature: WindowedFeature) -> int:
    """The tile size to which the feature's tail is rounded: its family's, or the day for long windows."""
    return DAY_TILE_MS if feature.window_ms > FINE_WINDOW_MAX_MS else family_of(feature.entity).tile_ms


def window_start(feature: WindowedFeature, instant_ms: int) -> int:
    """The first event time that counts at the instant: `floor(instant - window)` to the feature's resolution."""
    return tile_start(instant_ms - feature.window_ms, resolution_ms(feature))
