"""Sends to the topics of one version what the lake knows and the events topic may hold no more: `millrace reprocess`.

`spark-submit … batch/resend.py --lake DIR --bootstrap-servers B --topics-version V --before 0:1200,1:950 [--now-ms N]`
Day tiles of all past days, and the interactions of events that stood before these offsets of their partitions.
Rows are absolute, and interactions are known by their event ids, so sending them twice does no harm.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession

from batch.command import add_topic_flags, fail, topics_of, write_report
from batch.day_tiles import SHUFFLE_PARTITIONS, refresh_families, send_records
from batch.lake import TABLES, read_table, row_count
from batch.session import open_session
from features.events import INTERACTION_FIELDS
from features.names import Topics


class ResendError(RuntimeError):
    """The lake does not hold what is asked of it."""


@dataclass(frozen=True, kw_only=True)
class ResendRun:
    """One run."""

    lake: Path
    bootstrap_servers: str
    topics: Topics
    before: Mapping[int, int]
    """The first offset of each partition that is still to be read from Kafka."""
    now_ms: int


def run_resend(spark: SparkSession, run: ResendRun) -> dict[str, object]:
    """Sends everything and returns the numbers of rows. Raises `ResendError` before anything is sent."""
    if not row_count(run.lake, TABLES.silver_events):
        raise ResendError(f"{run.lake} has no events: run lake_ingest first.")
    tiles = refresh_families(spark, run.lake, run.now_ms, run.bootstrap_servers, run.topics, every_day=True)
    return {"day_tiles": tiles, "interactions": _send_interactions(spark, run), "now_ms": run.now_ms}


def _send_interactions(spark: SparkSession, run: ResendRun) -> int:
    """In the stream's own wire format, of which absent fields are no part."""
    older = [f"(partition = {partition} AND offset < {first})" for partition, first in run.before.items() if first]
    if not older:
        return 0
    events = read_table(spark, run.lake, TABLES.silver_events)
    chosen = events.where(f"topic = '{run.topics.events}' AND ({' OR '.join(older)})")
    value = ", ".join((*INTERACTION_FIELDS, "partition", "offset"))
    records = chosen.selectExpr("user_id AS key", f"to_json(struct({value})) AS value")
    send_records(records, run.bootstrap_servers, run.topics.interactions)
    return chosen.count()


def _offsets(text: str) -> dict[int, int]:
    pairs = [part.split(":") for part in text.split(",")]
    if not all(len(pair) == 2 and all(number.isdecimal() for number in pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed is partition:offset, several by commas")
    return {int(partition): int(offset) for partition, offset in pairs}


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="resend", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--before", type=_offsets, required=True, help="partition:offset,… of the events topic")
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    parser.add_argument("--report", type=Path)
    add_topic_flags(parser)
    given = parser.parse_args(arguments)
    run = ResendRun(
        lake=given.lake.resolve(),
        bootstrap_servers=given.bootstrap_servers,
        topics=topics_of(given),
        before=given.before,
        now_ms=int(time.time() * 1000) if given.now_ms is None else given.now_ms,
    )
    try:
        write_report(run_resend(open_session("resend", SHUFFLE_PARTITIONS), run), given.report)
    except ResendError as error:
        return fail("resend", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
