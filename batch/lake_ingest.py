"""Kafka → Delta, all that is there now: bronze, silver events, too late, duplicates, dead letters, items, slates.

`spark-submit … batch/lake_ingest.py --bootstrap-servers B --lake DIR --checkpoints DIR [--report FILE]`
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from batch.command import add_topic_flags, fail, topics_of, write_report
from batch.compaction import compact_tables
from batch.door import refused
from batch.ingest_stages import Stage, events_stage, items_stage, slates_stage
from batch.kafka_source import (
    CheckpointError,
    DataLossError,
    check_together,
    checkpointed_offsets,
    read_topic,
    topics_behind,
    unless_refused,
)
from batch.lake import INGESTED, TABLES, create_tables, row_count, rows_of_topic, table_versions
from batch.session import open_session
from features.backends import StoreUnavailableError
from features.names import Topics
from features.repo import FeatureRepoError

REFUSALS = (
    DataLossError,
    CheckpointError,
    ArithmeticError,
    ConnectionError,
    FeatureRepoError,
    StoreUnavailableError,
)
"""What ends a run in one sentence."""


@dataclass(frozen=True, kw_only=True)
class LakeIngest:
    """One run."""

    bootstrap_servers: str
    lake: Path
    checkpoints: Path
    """One folder a stream below it. Belongs to the lake: restore both together."""
    topics: Topics
    max_records: int = 1_000_000
    """Most Kafka records in one micro-batch: bounds the driver's memory."""
    erased: frozenset[str] = frozenset()
    """Digests of users whose records are read and not kept (`batch.door`)."""

    @property
    def readers(self) -> dict[str, Path]:
        """The checkpoint of each topic's reader."""
        return {
            self.topics.events: self.checkpoints / "bronze_events",
            self.topics.items: self.checkpoints / "items",
            self.topics.slates: self.checkpoints / "slates",
        }


def check(ingest: LakeIngest) -> list[str]:
    """The topics that hold something new. Needs no Spark; raises as `run_ingest` does."""
    behind = topics_behind(ingest.bootstrap_servers, ingest.readers)
    bronze_rows = row_count(ingest.lake, TABLES.bronze_events)
    emptied = table_versions(ingest.lake, (TABLES.bronze_events,)).get(TABLES.bronze_events, 0) > 0
    check_together(ingest.readers[ingest.topics.events], TABLES.bronze_events, bronze_rows, emptied=emptied)
    return behind


def run_ingest(spark: SparkSession, ingest: LakeIngest) -> dict[str, object]:
    """Reads all that the topics hold now, and says what the lake holds after it.

    Raises `DataLossError` when the broker lost what the lake has not read, `CheckpointError` when lake and
    checkpoints do not belong together, `ArithmeticError` when the accounts do not balance.
    """
    readers, behind = ingest.readers, check(ingest)
    create_tables(ingest.lake)
    before = _counts(ingest.lake)
    read = _run_streams(spark, ingest, {topic: readers[topic] for topic in behind})
    compacted = compact_tables(ingest.lake, [definition.path for definition in INGESTED])
    after = _counts(ingest.lake)
    return {
        "rows": after,
        "rows_added": {table: after[table] - before[table] for table in after},
        "erased_events_refused": read - (after[TABLES.bronze_events] - before[TABLES.bronze_events])
        if ingest.erased
        else 0,
        "versions": table_versions(ingest.lake, tuple(after)),
        "next_offsets": {topic: checkpointed_offsets(path).get(topic, {}) for topic, path in readers.items()},
        "compacted": compacted,
        "accounts": accounts(ingest.lake, ingest.topics.events),
    }


def accounts(lake: Path, events_topic: str) -> dict[str, int]:
    """Proves bronze = silver + too late + duplicates + dead letters, counting the records of the events topic.

    Raises `ArithmeticError` with the figures when they do not balance.
    """
    tables = {
        "silver": TABLES.silver_events,
        "too_late": TABLES.too_late_events,
        "duplicates": TABLES.duplicates,
        "dead_letters": TABLES.dead_letters,
    }
    parts = {name: rows_of_topic(lake, table, events_topic) for name, table in tables.items()}
    figures = {"bronze": row_count(lake, TABLES.bronze_events), **parts}
    if figures["bronze"] != sum(parts.values()):
        raise ArithmeticError(f"the lake's accounts do not balance: {figures}")
    return figures


def _counts(lake: Path) -> dict[str, int]:
    return {definition.path: row_count(lake, definition.path) for definition in INGESTED}


def _run_streams(spark: SparkSession, ingest: LakeIngest, behind: dict[str, Path]) -> int:
    """The topics that have something new, all at once; then silver from what bronze holds.

    Returns the number of records that were read of the events topic.
    """
    stages = {ingest.topics.items: items_stage, ingest.topics.slates: slates_stage}
    running: dict[str, StreamingQuery] = {}
    for topic, checkpoint in behind.items():
        stream = read_topic(spark, ingest.bootstrap_servers, topic, ingest.max_records)
        if topic != ingest.topics.items:
            stream = unless_refused(stream, ingest.erased)
        if topic in stages:
            running[topic] = _start(stream, stages[topic](spark, ingest.lake), checkpoint)
            continue
        bronze = stream.writeStream.format("delta").option("checkpointLocation", str(checkpoint))
        running[topic] = bronze.trigger(availableNow=True).start(str(ingest.lake / TABLES.bronze_events))
    for query in running.values():
        query.awaitTermination()
    # Bronze is appended to; the one other change is an erasure, which silver has seen to itself.
    appended = spark.readStream.format("delta").option("maxBytesPerTrigger", "256m").option("skipChangeCommits", "true")
    silver = appended.load(str(ingest.lake / TABLES.bronze_events))
    _start(silver, events_stage(spark, ingest.lake), ingest.checkpoints / "silver_events").awaitTermination()
    events = running.get(ingest.topics.events)
    return sum(int(progress["numInputRows"]) for progress in events.recentProgress) if events is not None else 0


def _start(stream: DataFrame, stage: Stage, checkpoint: Path) -> StreamingQuery:
    writer = stream.writeStream.foreachBatch(stage).option("checkpointLocation", str(checkpoint))
    return writer.trigger(availableNow=True).start()


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="lake_ingest", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--feature-repo", type=Path, help="whose store knows which users are erased, beside the lake")
    parser.add_argument("--max-records", type=int, default=LakeIngest.max_records)
    parser.add_argument("--report", type=Path)
    add_topic_flags(parser)
    given = parser.parse_args(arguments)
    try:
        ingest = LakeIngest(
            bootstrap_servers=given.bootstrap_servers,
            lake=given.lake.resolve(),
            checkpoints=given.checkpoints.resolve(),
            topics=topics_of(given),
            max_records=given.max_records,
            erased=frozenset(refused(given.lake.resolve(), given.feature_repo)),
        )
        check(ingest)  # before a session is started, which takes seconds
        write_report(run_ingest(open_session("lake_ingest"), ingest), given.report)
    except (*REFUSALS, StreamingQueryException) as error:
        return fail("lake_ingest", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
