"""Served feature values against point-in-time recomputation from the lake, row by row.

`spark-submit … batch/feature_parity.py --lake DIR --parity-report FILE [--hours H] [--max-slates N] [--every-min M]`
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable as DeltaLog
from deltalake import write_deltalake
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

from batch.command import fail, write_report
from batch.lake import TABLES, read_table, row_count
from batch.parity_report import Recomputed, compare, states_of
from batch.point_in_time import values_as_of
from batch.served_rows import PIPELINE_MS, SNAPSHOT_MS, UNSETTLED_MS, ServedRow, ServedSample, State, sample_rows
from batch.session import open_session
from features import specs
from features.algebra import Float64s
from features.names import MS_PER_HOUR, MS_PER_MINUTE
from features.specs import KEY_FIELDS, Entity, features_of
from features.tiles import ITEM_TILES

LOOKBACK_MS = SNAPSHOT_MS + PIPELINE_MS
"""How long before a row's instant its key's arrivals are looked for."""
Query = tuple[tuple[str, ...], int]
"""A key and an instant."""


class NoEventsError(RuntimeError):
    """There is nothing to recompute from."""


@dataclass(frozen=True, kw_only=True)
class ParityRun:
    """One run, over the slates served in `[now_ms - hours, now_ms)`."""

    lake: Path
    now_ms: int
    hours: int = 24
    max_slates: int = 500
    """Slates that are compared, at about 170 values an item; the others are counted."""


def run_parity(spark: SparkSession, run: ParityRun) -> dict[str, Any]:
    """Compares, writes the table's rows, and returns the report. Raises `NoEventsError` for a lake without events."""
    if not row_count(run.lake, TABLES.silver_events):
        raise NoEventsError(f"{run.lake} has no events: run lake_ingest first.")
    from_ms = run.now_ms - run.hours * MS_PER_HOUR
    compared = compare_sample(spark, run.lake, sample_rows(run.lake, from_ms, run.now_ms, run.max_slates))
    store(run.lake, run.now_ms, compared["features"])
    return {"run_ms": run.now_ms, "from_ms": from_ms, "until_ms": run.now_ms, **compared}


def compare_sample(spark: SparkSession, lake: Path, sample: ServedSample) -> dict[str, Any]:
    """Each row's features beside what the lake's events say: a record a feature (`batch.parity_report.compare`)."""
    newest = read_table(spark, lake, TABLES.bronze_events).selectExpr("coalesce(max(arrival_ms), 0) AS ms").first()
    complete_ms = newest["ms"] if newest is not None else 0
    events = read_table(spark, lake, TABLES.silver_events)
    features: list[dict[str, Any]] = []
    states: dict[str, dict[str, int]] = {}
    for entity, rows in sample.rows.items():
        recomputed = recompute(spark, events, entity, rows, complete_ms) if rows else []
        features += compare(entity, rows, recomputed)
        states[entity] = states_of(recomputed)
    return {
        "lake_complete_until_ms": complete_ms,
        "spec_version": specs.version(),
        "slates": sample.slates,
        "rows": states,
        "features": features,
    }


def recompute(
    spark: SparkSession, events: DataFrame, entity: Entity, rows: Sequence[ServedRow], complete_ms: int
) -> list[Recomputed]:
    """What each row should have been. `complete_ms` is the instant up to which the lake holds all arrivals."""
    asked = sorted({(row.key, row.instant_ms) for row in rows})
    keys = list(KEY_FIELDS[entity])
    queries = _queries(spark, entity, asked)
    own = events.join(queries.select(*keys).distinct(), keys, "left_semi").persist(StorageLevel.MEMORY_AND_DISK)
    try:
        last_arrival = _last_arrivals(own, queries, keys)
        earliest = {query: _earliest(entity, query[1], last_arrival.get(query)) for query in asked}
        both = {*asked, *((key, earliest[key, at_ms]) for key, at_ms in asked)}
        values = _values(values_as_of(own, _queries(spark, entity, sorted(both)), entity), entity)
    finally:
        own.unpersist()
    return [
        Recomputed(
            state=_state(entity, row, last_arrival.get((row.key, row.instant_ms)), complete_ms),
            latest_F=values[row.key, row.instant_ms],
            earliest_F=values[row.key, earliest[row.key, row.instant_ms]],
        )
        for row in rows
    ]


def _earliest(entity: Entity, instant_ms: int, last_arrival_ms: int | None) -> int:
    """The earliest instant at which values that hold all arrivals may have been finalised (`batch.served_rows`)."""
    if entity not in ITEM_TILES.entities:
        return instant_ms
    after_last_ms = 0 if last_arrival_ms is None else last_arrival_ms + 1
    return max(after_last_ms, instant_ms - SNAPSHOT_MS)


def _state(entity: Entity, row: ServedRow, last_arrival_ms: int | None, complete_ms: int) -> State:
    if row.degraded:
        return State.DEGRADED
    if row.instant_ms > complete_ms:
        return State.WAITING
    settled = last_arrival_ms is None or last_arrival_ms < row.instant_ms - UNSETTLED_MS[entity]
    return State.SETTLED if settled else State.UNSETTLED


def _queries(spark: SparkSession, entity: Entity, asked: Sequence[Query]) -> DataFrame:
    keys = KEY_FIELDS[entity]
    columns = ", ".join([*(f"{name} STRING" for name in keys), "t_ms BIGINT"])
    return spark.createDataFrame([(*key, at_ms) for key, at_ms in asked], columns)


def _last_arrivals(events: DataFrame, queries: DataFrame, keys: list[str]) -> dict[Query, int]:
    """The last arrival of the key in the `LOOKBACK_MS` before each query's instant; none is left out.

    Joined by the two stretches of that length in which it may lie, so that a busy key's events are not all compared.
    """
    stretches = f"explode(array((t_ms - {LOOKBACK_MS}) DIV {LOOKBACK_MS}, t_ms DIV {LOOKBACK_MS})) AS stretch"
    asked = queries.selectExpr(*keys, "t_ms", stretches)
    arrived = events.selectExpr(*keys, "arrival_ms", f"arrival_ms DIV {LOOKBACK_MS} AS stretch")
    near = asked.join(arrived, [*keys, "stretch"]).where(f"arrival_ms < t_ms AND arrival_ms >= t_ms - {LOOKBACK_MS}")
    found = near.groupBy(*keys, "t_ms").agg({"arrival_ms": "max"}).collect()
    return {(tuple(row[: len(keys)]), row["t_ms"]): row["max(arrival_ms)"] for row in found}


def _values(found: DataFrame, entity: Entity) -> Mapping[Query, Float64s]:
    keys, names = KEY_FIELDS[entity], [feature.name for feature in features_of(entity)]
    return {
        (tuple(row[name] for name in keys), row["t_ms"]): np.array([row[name] for name in names])
        for row in found.collect()
    }


def store(lake: Path, run_ms: int, features: Sequence[Mapping[str, Any]]) -> None:
    """Writes the run's rows in the place of those of a run at the same instant."""
    rows = [{"run_ms": run_ms, **record, "examples": json.dumps(record["examples"])} for record in features]
    schema = pa.schema(
        [
            ("run_ms", pa.int64()),
            ("feature", pa.string()),
            ("entity", pa.string()),
            ("rows", pa.int64()),
            ("mismatches", pa.int64()),
            ("share", pa.float64()),
            ("worst_difference", pa.float64()),
            ("unsettled_rows", pa.int64()),
            ("unsettled_mismatches", pa.int64()),
            ("examples", pa.string()),
        ]
    )
    path = str(lake / TABLES.feature_parity)
    predicate = f"run_ms = {run_ms}" if DeltaLog.is_deltatable(path) else None
    write_deltalake(path, pa.Table.from_pylist(rows, schema), mode="overwrite", predicate=predicate)


def is_recent(report: Path | None, now_ms: int, every_min: int) -> bool:
    """Whether the last report is younger than that, so that nothing is to do yet."""
    if report is None or not report.is_file():
        return False
    try:
        run_ms = int(json.loads(report.read_text())["run_ms"])
    except (ValueError, KeyError, TypeError):
        return False
    return 0 <= now_ms - run_ms < every_min * MS_PER_MINUTE


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0 whatever the shares are (`models.parity_gate` judges), or 1 with one sentence."""
    parser = argparse.ArgumentParser(prog="feature_parity", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--parity-report", type=Path, required=True, help="JSON, replaced at once")
    parser.add_argument("--hours", type=int, default=ParityRun.hours, help="how far back slates are compared")
    parser.add_argument("--max-slates", type=int, default=ParityRun.max_slates)
    parser.add_argument("--every-min", type=int, default=0, help="do nothing while the last report is younger")
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    given = parser.parse_args(arguments)
    now_ms = int(time.time() * 1000) if given.now_ms is None else given.now_ms
    if is_recent(given.parity_report, now_ms, given.every_min):
        return 0
    run = ParityRun(lake=given.lake.resolve(), now_ms=now_ms, hours=given.hours, max_slates=given.max_slates)
    try:
        write_report(run_parity(open_session("feature_parity"), run), given.parity_report)
    except NoEventsError as error:
        return fail("feature_parity", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
