"""Training examples: one row an impression, with every feature as it was at that instant, history and labels.

`spark-submit … batch/training_examples.py --lake DIR [--now-ms N] [--from-date D --to-date D] [--report FILE]`
"""

import argparse
import datetime
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from deltalake import DeltaTable as DeltaLog
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

from batch.command import fail, write_report
from batch.histories import histories_as_of
from batch.labels import label_impressions
from batch.lake import TABLES, read_table, row_count, table_versions
from batch.point_in_time import values_as_of
from batch.session import open_session
from features import specs
from features.events import EventType
from features.quarantine import QuarantineError, refuse_held
from features.specs import KEY_FIELDS, Entity

UNKNOWN_LANGUAGE = "und"
"""BCP 47's code for an undetermined language: the item is not in the catalogue."""


class EmptyLakeError(RuntimeError):
    """There is nothing to make examples from."""


@dataclass(frozen=True, kw_only=True)
class ExampleRun:
    """One run: impressions of event dates in `[from_date, to_date]`, both ends included, that happened before now."""

    lake: Path
    now_ms: int
    from_date: datetime.date = datetime.date.min
    to_date: datetime.date = datetime.date.max

    @property
    def covers_all(self) -> bool:
        """Whether the run is about every date, so that dates it does not produce must go."""
        return self.from_date == datetime.date.min and self.to_date == datetime.date.max

    @property
    def predicate(self) -> str:
        """The run's dates in SQL."""
        return f"event_date >= DATE'{self.from_date}' AND event_date <= DATE'{self.to_date}'"


def run_examples(spark: SparkSession, run: ExampleRun) -> dict[str, object]:
    """Writes the examples of the run's dates in one commit, and says from which versions of which tables.

    Raises `EmptyLakeError` when the lake has no impression in these dates, `QuarantineError` when a gate has shut a
    table that it reads.
    """
    sources = (TABLES.silver_events, TABLES.items)
    versions = table_versions(run.lake, sources)
    if set(versions) != set(sources) or not row_count(run.lake, TABLES.silver_events):
        raise EmptyLakeError(f"{run.lake} has no events: run lake_ingest first.")
    refuse_held(run.lake, sources)
    built_from = {"sources": versions, "spec_version": specs.version(), "now_ms": run.now_ms}
    counted = read_table(spark, run.lake, TABLES.silver_events)
    # Read a dozen times: once for each entity's sweep, for labels, histories and the impressions of each.
    events = counted.drop("schema_version", "topic", "partition", "offset").persist(StorageLevel.MEMORY_AND_DISK)
    try:
        impressions = impressions_of(events, run)
        if impressions.isEmpty():
            raise EmptyLakeError(f"{run.lake} has no impression of {run.from_date} to {run.to_date}.")
        _write(assemble(events, impressions, read_table(spark, run.lake, TABLES.items)), run, built_from)
    finally:
        events.unpersist()
    table = str(run.lake / TABLES.examples)
    rows = row_count(run.lake, TABLES.examples)
    return {**built_from, "rows": rows, "version": DeltaLog(table).version(), "table": TABLES.examples}


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


def assemble(events: DataFrame, impressions: DataFrame, items: DataFrame) -> DataFrame:
    """Impressions with item fields, labels, features and history. One row an impression comes back."""
    examples = _with_items(label_impressions(events, impressions), items)
    for entity in Entity:
        keys = [*KEY_FIELDS[entity], "t_ms"]
        examples = examples.join(values_as_of(events, impressions, entity), keys, "left")
    histories = histories_as_of(_recent(events, impressions), impressions)
    return examples.join(histories, ["user_id", "t_ms"], "left")


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
        writer = writer.option("replaceWhere", run.predicate)
    writer.save(path)


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="training_examples", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    parser.add_argument("--from-date", type=datetime.date.fromisoformat, default=datetime.date.min)
    parser.add_argument("--to-date", type=datetime.date.fromisoformat, default=datetime.date.max)
    parser.add_argument("--report", type=Path)
    given = parser.parse_args(arguments)
    now_ms = int(time.time() * 1000) if given.now_ms is None else given.now_ms
    run = ExampleRun(lake=given.lake.resolve(), now_ms=now_ms, from_date=given.from_date, to_date=given.to_date)
    try:
        write_report(run_examples(open_session("training_examples"), run), given.report)
    except (EmptyLakeError, QuarantineError) as error:
        return fail("training_examples", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
