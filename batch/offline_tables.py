"""The offline side of the Feast views: parquet files, one a run date, each replaced at once."""

import datetime
import shutil
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql.functions import expr

from batch.point_in_time import REACH_MS, Sweep, contributed_sql, finalise_sql, part_name
from features.daily import CREATED, EVENT_TIMESTAMP
from features.names import MS_PER_DAY
from features.specs import Entity
from features.tiles import Column, Merge, contribution_sql, family_of, feature_columns, tile_start, window_start

SMOOTHING_IMPRESSIONS = 20
"""Weight, in impressions, of the mean click rate in an item's smoothed one."""


def windowed_values_at(events: DataFrame, entity: Entity, now_ms: int) -> DataFrame:
    """The entity's windowed features at one instant for every key with an event in reach, in one grouping.

    Says the same as `batch.point_in_time.values_as_of` with every key asked at `now_ms`. Integers are BIGINT.
    """
    sweep = Sweep.of(entity)
    tile_ms = family_of(entity).tile_ms
    counted = events.where(
        f"arrival_ms < {now_ms} AND event_time_ms >= {now_ms - REACH_MS} "
        f"AND event_time_ms < {tile_start(now_ms, tile_ms) + tile_ms}"
    ).selectExpr(*sweep.keys, "event_time_ms", *(_part_sql(column) for column in sweep.columns))
    merged = {}
    for feature in sweep.features:
        start_ms = window_start(feature, now_ms)
        for column in feature_columns(feature):
            function = {Merge.ADD: "sum", Merge.MAX: "max", Merge.UNION: "bit_or"}[column.merge]
            part = part_name(column, sweep.kind_of(feature))
            merged[part] = expr(f"{function}(CASE WHEN event_time_ms >= {start_ms} THEN {column.name} ELSE 0 END)")
    parts = counted.groupBy(*sweep.keys).agg(*(total.alias(part) for part, total in merged.items()))
    values = []
    for feature in sweep.features:
        names = [part_name(column, sweep.kind_of(feature)) for column in feature_columns(feature)]
        value = finalise_sql(feature, names)
        values.append(f"{f'CAST({value} AS BIGINT)' if feature.is_integer else value} AS {feature.name}")
    return parts.selectExpr("*", f"{now_ms}L AS t_ms").selectExpr(*sweep.keys, *values)


def _part_sql(column: Column) -> str:
    if column.merge is not Merge.UNION:
        return contributed_sql(column)
    return f"coalesce(shiftleft(1L, CAST({contribution_sql(column)} AS INT)), 0L) AS {column.name}"


def user_daily(events: DataFrame, day_end_ms: int) -> DataFrame:
    """`features.daily.USER_DAILY` of every user with an event before the day's end."""
    past = events.where(f"event_time_ms < {day_end_ms}")
    totals = past.groupBy("user_id").agg(
        expr("count(*)").alias("user_lifetime_events"),
        expr("count_if(event_type = 'impression')").alias("user_lifetime_impressions"),
        expr("count_if(event_type = 'click')").alias("_clicks"),
        expr(f"({day_end_ms} - min(event_time_ms)) / {float(MS_PER_DAY)}D").alias("user_tenure_days"),
    )
    clicks = past.where("event_type = 'click'").groupBy("user_id", "category").count()
    first = "min_by(category, struct(-count AS fewest, category))"
    favourites = clicks.groupBy("user_id").agg(expr(first).alias("_favourite"))
    return totals.join(favourites, "user_id", "left").selectExpr(
        "user_id",
        "user_lifetime_events",
        "user_lifetime_impressions",
        f"{_rate('_clicks', 'user_lifetime_impressions')} AS user_lifetime_ctr",
        "user_tenure_days",
        "coalesce(_favourite, '') AS user_favourite_category",
    )


def item_daily(events: DataFrame, items: DataFrame, day_end_ms: int) -> DataFrame:
    """`features.daily.ITEM_DAILY` of every item in the catalogue."""
    past = events.where(f"event_time_ms < {day_end_ms} AND event_type IN ('impression', 'click')")
    shown, clicked = "count_if(event_type = 'impression')", "count_if(event_type = 'click')"
    totals = past.groupBy("item_id").agg(expr(shown).alias("_shown"), expr(clicked).alias("_clicks"))
    mean = past.agg(expr(shown).alias("_all_shown"), expr(clicked).alias("_all_clicks"))
    known = items.select("item_id", "published_at_ms").join(totals, "item_id", "left").crossJoin(mean)
    known = known.selectExpr(
        "*",
        "coalesce(_shown, 0L) AS shown",
        "coalesce(_clicks, 0L) AS clicks",
        f"{_rate('_all_clicks', '_all_shown')} AS mean_ctr",
    )
    smoothed = f"(clicks + {SMOOTHING_IMPRESSIONS} * mean_ctr) / (shown + {SMOOTHING_IMPRESSIONS})"
    return known.selectExpr(
        "item_id",
        "shown AS item_lifetime_impressions",
        f"{_rate('clicks', 'shown')} AS item_lifetime_ctr",
        f"{smoothed} AS item_smoothed_ctr",
        f"greatest({day_end_ms} - published_at_ms, 0L) / {float(MS_PER_DAY)}D AS item_age_days",
    )


def _rate(part: str, whole: str) -> str:
    return f"CASE WHEN {whole} = 0 THEN 0D ELSE CAST({part} AS DOUBLE) / CAST({whole} AS DOUBLE) END"


def publish_rows(rows: DataFrame, root: Path, view: str, event_timestamp_ms: int, created_ms: int) -> int:
    """Replaces the view's file of the run's UTC date by these rows, at once; returns their number.

    A reader of `root/view` sees the old file or the new one, and never one that is being written.
    """
    stamped = rows.selectExpr(
        "*",
        f"timestamp_millis({event_timestamp_ms}) AS {EVENT_TIMESTAMP}",
        f"timestamp_millis({created_ms}) AS {CREATED}",
    )
    unfinished = root / ".unfinished" / view
    shutil.rmtree(unfinished, ignore_errors=True)
    # Not `coalesce`, which would have one task do the grouping as well.
    stamped.repartition(1).write.parquet(str(unfinished))
    part = next(unfinished.glob("*.parquet"))
    target = root / view / f"{utc_date(created_ms)}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    shutil.rmtree(unfinished, ignore_errors=True)
    return int(pq.read_metadata(target).num_rows)


def utc_date(time_ms: int) -> datetime.date:
    """The UTC date of an instant."""
    return datetime.datetime.fromtimestamp(time_ms / 1000, tz=datetime.UTC).date()
