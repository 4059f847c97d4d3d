"""Training examples: one row an impression, with every feature as it was when its slate was served, and labels.

`spark-submit … batch/training_examples.py --lake DIR [--features served|recomputed] [--now-ms N]
[--from-date D --to-date D] [--report FILE] [--comparison FILE]`

Features and history are those that the ranker read, where the slate logged them (`batch.served_examples`), and else are
computed from the lake's events as of `feature_ms`: when the slate was served, or the impression's own instant. A sample
of the slates' values is computed again and compared.
"""

import argparse
import datetime
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable as DeltaLog
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

from batch.command import fail, write_json, write_report
from batch.feature_parity import compare_sample
from batch.histories import histories_as_of
from batch.labels import label_impressions
from batch.lake import TABLES, read_table, row_count, table_versions
from batch.parity_report import overview
from batch.point_in_time import values_as_of
from batch.served_examples import MAX_OPEN_MS, Placed, Source, place, take_served
from batch.served_rows import sample_rows
from batch.session import open_session
from features import specs
from features.events import FUTURE_SKEW_MS, EventType
from features.quarantine import QuarantineError, refuse_held
from features.specs import KEY_FIELDS, Entity

UNKNOWN_LANGUAGE = "und"
"""BCP 47's code for an undetermined language: the item is not in the catalogue."""


FEATURES_HELP = "served: as logged with the slate where it may be; recomputed: all from the lake's events"


class EmptyLakeError(RuntimeError):
    """There is nothing to make examples from."""


@dataclass(frozen=True, kw_only=True)
class ExampleRun:
    """One run: impressions of event dates in `[from_date, to_date]`, both ends included, that happened before now."""

    lake: Path
    now_ms: int
    from_date: datetime.date = datetime.date.min
    to_date: datetime.date = datetime.date.max
    features: Source = Source.SERVED
    """What an example has where there is a choice."""
    compare_slates: int = 200
    """Slates of the examples whose served values are compared with recomputed ones; 0: none."""
    comparison: Path | None = None
    """Where that comparison is written in full, as JSON."""

    @property
    def covers_all(self) -> bool:
        """Whether the run is about every date, so that dates it does not produce must go."""
        return self.from_date == datetime.date.min and self.to_date == datetime.date.max

    @property
    def predicate(self) -> str:
        """The run's dates in SQL."""
        return f"event_date >= DATE'{self.from_date}' AND event_date <= DATE'{self.to_date}'"


def run_examples(spark: SparkSession, run: ExampleRun) -> dict[str, Any]:
    """Writes the examples of the run's dates in one commit, and says from which versions of which tables, how many have
    served features, why the others have not, and (`comparison`) how served and recomputed values compare.

    Raises `EmptyLakeError` when the lake has no impression in these dates, `QuarantineError` when a gate has shut a
    table that it reads.
    """
    needed = {TABLES.silver_events, TABLES.items}
    versions = table_versions(run.lake, (*needed, TABLES.slates))
    if not needed <= set(versions) or not row_count(run.lake, TABLES.silver_events):
        raise EmptyLakeError(f"{run.lake} has no events: run lake_ingest first.")
    refuse_held(run.lake, versions)
    built_from = {"sources": versions, "spec_version": specs.version(), "now_ms": run.now_ms}
    counted = read_table(spark, run.lake, TABLES.silver_events)
    # Read a dozen times: once for each entity's sweep, for labels, histories and the impressions of each.
    events = counted.drop("schema_version", "topic", "partition", "offset").persist(StorageLevel.MEMORY_AND_DISK)
    try:
        impressions = impressions_of(events, run)
        if impressions.isEmpty():
            raise EmptyLakeError(f"{run.lake} has no impression of {run.from_date} to {run.to_date}.")
        placed = place(spark, run.lake, impressions, take_served=run.features is Source.SERVED)
        try:
            _write(assemble(events, placed, read_table(spark, run.lake, TABLES.items)), run, built_from)
        finally:
            placed.release()
    finally:
        events.unpersist()
    written = DeltaLog(str(run.lake / TABLES.examples))
    rows = written.to_pyarrow_dataset().to_table(
        columns=["request_id", "t_ms", "feature_source", "recomputed_because"],
        filter=(pc.field("event_date") >= run.from_date) & (pc.field("event_date") <= run.to_date),
    )
    return {
        **built_from,
        "rows": row_count(run.lake, TABLES.examples),
        "version": written.version(),
        "table": TABLES.examples,
        "feature_sources": _counts(rows.column("feature_source")),
        "recomputed_because": _counts(rows.column("recomputed_because").drop_null()),
        "comparison": _comparison(spark, run, rows),
    }


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {each["values"]: each["counts"] for each in column.value_counts().to_pylist()}


def _comparison(spark: SparkSession, run: ExampleRun, rows: pa.Table) -> dict[str, Any] | None:
    """Of a sample of the examples' slates, whatever the examples took, in short; None when none is to be compared."""
    if not run.compare_slates:
        return None
    between = pc.min_max(rows.column("t_ms")).as_py()
    first_ms, last_ms = between["min"] - MAX_OPEN_MS, between["max"] + FUTURE_SKEW_MS
    requests = frozenset(rows.column("request_id").unique().to_pylist())
    compared = compare_sample(spark, run.lake, sample_rows(run.lake, first_ms, last_ms, run.compare_slates, requests))
    in_short = overview(compared["features"])
    if run.comparison is not None:
        write_json({"run_ms": run.now_ms, **in_short, **compared}, run.comparison)
    return in_short


def impressions_of(events: DataFrame, run: ExampleRun) -> DataFrame:
    """The impressions to make examples of, with `t_ms`, the instant whose features they get."""
    shown = events.where(f"event_type = '{EventType.IMPRESSION}' AND event_time_ms <= {run.now_ms} AND {run.predicate}")
    return shown.selectExpr(
        "event_id",
        "request_id",
        "user_id",
        "item_id",
        "event_time_ms AS t_ms",
        "CAST(position AS INT) AS position",
        "coalesce(device, 'unknown') AS device",
        "category",
        "creator_id",
        "duration_ms AS shown_duration_ms",
        "event_date",
    )


def assemble(events: DataFrame, placed: Placed, items: DataFrame) -> DataFrame:
    """Impressions with item fields, labels, features and history. One row an impression comes back."""
    examples = _with_items(label_impressions(events, placed.impressions), items)
    rest = placed.impressions.where(f"feature_source = '{Source.RECOMPUTED}'")
    queries = rest.drop("t_ms").withColumnRenamed("feature_ms", "t_ms")
    for entity in Entity:
        values = values_as_of(events, queries, entity).withColumnRenamed("t_ms", "feature_ms")
        examples = examples.join(values, [*KEY_FIELDS[entity], "feature_ms"], "left")
    histories = histories_as_of(_recent(events, queries), queries).withColumnRenamed("t_ms", "feature_ms")
    return take_served(examples.join(histories, ["user_id", "feature_ms"], "left"), placed.items)


def _with_items(examples: DataFrame, items: DataFrame) -> DataFrame:
    """Catalogue fields. An impression of an item that the catalogue lacks is kept and says so in `item_known`."""
    known = items.selectExpr("item_id", "language", "duration_ms AS item_duration_ms", "published_at_ms AS published")
    names = [name for name in examples.columns if name != "shown_duration_ms"]
    return examples.join(known, "item_id", "left").selectExpr(
        *names,
        f"coalesce(language, '{UNKNOWN_LANGUAGE}') AS language",
        "coalesce(item_duration_ms, shown_duration_ms, 0L) AS duration_ms",
        "coalesce(published, t_ms) AS published_at_ms",
        "published IS NOT NULL AS item_known",
    )


def _recent(events: DataFrame, impressions: DataFrame) -> DataFrame:
    """Leaves out the events of users without an impression: nobody asks for their history."""
    return events.join(impressions.select("user_id").distinct(), "user_id", "left_semi")


def _write(examples: DataFrame, run: ExampleRun, built_from: dict[str, object]) -> None:
    """Replaces the run's dates in one commit, so a reader sees all of the old rows or all of the new."""
    writer = examples.repartition("event_date").write.format("delta").mode("overwrite").partitionBy("event_date")
    writer = writer.option("userMetadata", json.dumps(built_from, sort_keys=True))
    path = str(run.lake / TABLES.examples)
    if run.covers_all or not DeltaLog.is_deltatable(path):
        writer = writer.option("overwriteSchema", "true")
    else:
        # A table from before a column was added has it null in the other dates.
        writer = writer.option("replaceWhere", run.predicate).option("mergeSchema", "true")
    writer.save(path)


def slate_count(text: str) -> int:
    """Reads a flag. Raises `argparse.ArgumentTypeError`."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 0 or more slates")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="training_examples", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    parser.add_argument("--from-date", type=datetime.date.fromisoformat, default=datetime.date.min)
    parser.add_argument("--to-date", type=datetime.date.fromisoformat, default=datetime.date.max)
    parser.add_argument("--features", choices=[*map(str, Source)], default=str(Source.SERVED), help=FEATURES_HELP)
    parser.add_argument("--compare-slates", type=slate_count, default=ExampleRun.compare_slates, help="0: none")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--comparison", type=Path, help="where the comparison is written in full, as JSON")
    given = parser.parse_args(arguments)
    now_ms = int(time.time() * 1000) if given.now_ms is None else given.now_ms
    run = ExampleRun(
        lake=given.lake.resolve(),
        now_ms=now_ms,
        from_date=given.from_date,
        to_date=given.to_date,
        features=Source(given.features),
        compare_slates=given.compare_slates,
        comparison=given.comparison,
    )
    try:
        report = run_examples(open_session("training_examples"), run)
        write_report(report, given.report)
    except (EmptyLakeError, QuarantineError) as error:
        return fail("training_examples", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
