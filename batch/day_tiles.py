"""Day tiles: every past day counted by the same rule as the stream's tiles, kept in Delta and sent to the tile topics.

A day is over when its end is not after now; days that are not over are the stream's alone, whose head tile is
finer. A day is counted again when the number of its events differs from what its tiles have counted, so a late
event reopens its day and an unchanged lake changes nothing. Rows are absolute: sending them twice does no harm,
and they are sent before the table says that they are counted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalake import DeltaTable as DeltaLog
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import expr

from batch.lake import TABLES, read_table
from batch.offline_tables import utc_date
from features import specs
from features.events import HORIZON_MS
from features.names import Topics
from features.tiles import DAY_TILE_MS, FAMILIES, TileFamily, column_sql, tile_start

SHUFFLE_PARTITIONS = 32
"""More than a session's default, so that a large month is grouped in small parts; what is small is merged again."""
_PRODUCER = {"compression.type": "lz4", "batch.size": "262144", "linger.ms": "20"}
"""Many rows of equal names at once: they are sent in large batches, in which names weigh little."""


def count_days(events: DataFrame, family: TileFamily) -> DataFrame:
    """The family's day tiles of valid, distinct events that are not too late, with `event_date`.

    A day's tiles stand in one partition: most events of a user are alone in their tile, so events are narrower to
    shuffle than tiles, and the days are written as they stand.
    """
    start = f"event_time_ms - event_time_ms % {DAY_TILE_MS}"
    grouped = events.repartition("event_date").groupBy(
        *family.key_fields, "event_date", expr(start).alias("tile_start_ms")
    )
    columns = (expr(column_sql(column)).alias(column.name) for column in family.columns)
    return grouped.agg(expr("count(*)").alias("n"), expr("max(event_time_ms)").alias("max_event_time_ms"), *columns)


def refresh_families(
    spark: SparkSession, lake: Path, now_ms: int, bootstrap_servers: str, topics: Topics, *, every_day: bool = False
) -> list[dict[str, object]]:
    """`refresh_days` of every family, to its own topic; says what that says of each."""
    return [
        refresh_days(spark, lake, family, now_ms, bootstrap_servers, topics.tiles(family.name), every_day=every_day)
        for family in FAMILIES
    ]


def refresh_days(
    spark: SparkSession,
    lake: Path,
    family: TileFamily,
    now_ms: int,
    bootstrap_servers: str,
    topic: str,
    *,
    every_day: bool = False,
) -> dict[str, object]:
    """Counts, sends and stores the days that changed, or all of them for a topic that may lack what did not change.

    Returns the table's path, the days and the number of rows.
    """
    table = f"{TABLES.day_tiles}/{family.name}"
    past = f"event_time_ms < {tile_start(now_ms, DAY_TILE_MS)}"
    events = read_table(spark, lake, TABLES.silver_events).where(past)
    days = _days(spark, lake, table, events, now_ms, every_day=every_day)
    rows = recount(lake, family, events, days, bootstrap_servers, topic) if days else 0
    return {"table": table, "days": days, "rows": rows}


def recount(
    lake: Path, family: TileFamily, events: DataFrame, days: Sequence[str], bootstrap_servers: str, topic: str
) -> int:
    """Counts these days among the events, sends their tiles and puts them in the place of those held, in one commit."""
    dates = ", ".join(f"DATE'{day}'" for day in days)
    tiles = count_days(events.where(f"event_date IN ({dates})"), family).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        _send(tiles, family, bootstrap_servers, topic)
        _store(tiles, lake / f"{TABLES.day_tiles}/{family.name}", f"event_date IN ({dates})")
        return tiles.count()
    finally:
        tiles.unpersist()


def _days(spark: SparkSession, lake: Path, table: str, events: DataFrame, now_ms: int, *, every_day: bool) -> list[str]:
    """The days to count. An erasure leaves fewer events than an item's tiles have counted, and those stay: a day with
    fewer is only counted again while late events may still come.
    """
    happened = {str(row["day"]): row["n"] for row in _per_day(events, "count(*)")}
    counted = {}
    if DeltaLog.is_deltatable(str(lake / table)) and not every_day:
        tiles = read_table(spark, lake, table).where(f"spec_version = '{specs.version()}'")
        counted = {str(row["day"]): row["n"] for row in _per_day(tiles, "sum(n)")}
    open_from = utc_date(now_ms - HORIZON_MS).isoformat()
    return sorted(
        day for day, n in happened.items() if counted.get(day, 0) < n or (counted[day] > n and day >= open_from)
    )


def _per_day(rows: DataFrame, total: str) -> list[dict[str, Any]]:
    return [row.asDict() for row in rows.groupBy(expr("event_date").alias("day")).agg(expr(total).alias("n")).collect()]


def _send(tiles: DataFrame, family: TileFamily, bootstrap_servers: str, topic: str) -> None:
    """Rows in the stream's own wire format: JSON key and JSON value (`features.tiles`)."""
    key = [*family.key_fields, f"{DAY_TILE_MS}L AS tile_ms", "tile_start_ms"]
    value = [*key, "n", "max_event_time_ms", *(column.name for column in family.columns)]
    records = tiles.selectExpr(
        f"to_json(struct({', '.join(key)})) AS key", f"to_json(struct({', '.join(value)})) AS value"
    )
    send_records(records, bootstrap_servers, topic)


def send_records(records: DataFrame, bootstrap_servers: str, topic: str) -> None:
    """Sends rows of `key` and `value` to the topic, in large batches."""
    sink = records.write.format("kafka").option("kafka.bootstrap.servers", bootstrap_servers)
    for name, setting in _PRODUCER.items():
        sink = sink.option(f"kafka.{name}", setting)
    sink.option("topic", topic).save()


def _store(tiles: DataFrame, path: Path, changed: str) -> None:
    stamped = tiles.selectExpr("*", f"{DAY_TILE_MS}L AS tile_ms", f"'{specs.version()}' AS spec_version")
    writer = stamped.write.format("delta").mode("overwrite").partitionBy("event_date")
    if DeltaLog.is_deltatable(str(path)):
        # A changed definition adds columns; days of the older version stay until they are counted again, now.
        writer = writer.option("replaceWhere", changed).option("mergeSchema", "true")
    writer.save(str(path))
