"""Day tiles for all past days, and the offline tables of the Feast views, from the lake's silver events.

`spark-submit … batch/offline_features.py --lake DIR --bootstrap-servers B [--feature-repo DIR] [--now-ms N]`
With `--feature-repo` the daily views are materialised to the online store afterwards, by `batch.materialize`.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession

from batch.command import add_topic_flags, fail, topics_of, write_report
from batch.day_tiles import SHUFFLE_PARTITIONS, refresh_families
from batch.lake import TABLES, read_table, row_count, table_versions
from batch.offline_tables import item_daily, publish_rows, user_daily, windowed_values_at
from batch.session import open_session
from features import specs
from features.daily import ACTIVITY_VIEWS, ITEM_DAILY, USER_DAILY
from features.names import Topics
from features.quarantine import QuarantineError, refuse_held
from features.specs import Entity
from features.tiles import DAY_TILE_MS, tile_start


class OfflineError(RuntimeError):
    """The offline features cannot be made or materialised."""


@dataclass(frozen=True, kw_only=True)
class OfflineRun:
    """One run."""

    lake: Path
    bootstrap_servers: str
    topics: Topics
    now_ms: int
    resend_tiles: bool = False
    """Count and send all days anew: for tile topics that are new, or have lost rows."""


def run_offline_features(spark: SparkSession, run: OfflineRun) -> dict[str, object]:
    """Refreshes the day tiles, then the offline tables.

    Raises `OfflineError` when the lake has no events, `QuarantineError` when a gate has shut them.
    """
    if not row_count(run.lake, TABLES.silver_events):
        raise OfflineError(f"{run.lake} has no events: run lake_ingest first.")
    refuse_held(run.lake, [TABLES.silver_events])
    versions = table_versions(run.lake, (TABLES.silver_events, TABLES.items))
    tiles = refresh_families(spark, run.lake, run.now_ms, run.bootstrap_servers, run.topics, every_day=run.resend_tiles)
    return {
        "day_tiles": tiles,
        "views": write_views(spark, run),
        "sources": versions,
        "spec_version": specs.version(),
        "now_ms": run.now_ms,
    }


def write_views(spark: SparkSession, run: OfflineRun) -> dict[str, int]:
    """Writes the run date's file of every view and returns the rows of each."""
    root = run.lake / TABLES.offline_features
    events = read_table(spark, run.lake, TABLES.silver_events)
    items = read_table(spark, run.lake, TABLES.items)
    day_end_ms = tile_start(run.now_ms, DAY_TILE_MS)
    rows = {
        ACTIVITY_VIEWS[entity]: publish_rows(
            windowed_values_at(events, entity, run.now_ms), root, ACTIVITY_VIEWS[entity], run.now_ms, run.now_ms
        )
        for entity in Entity
    }
    daily = {
        USER_DAILY.name: user_daily(events, day_end_ms),
        ITEM_DAILY.name: item_daily(events, items, day_end_ms),
    }
    return rows | {view: publish_rows(of, root, view, day_end_ms, run.now_ms) for view, of in daily.items()}


def materialize(feature_repo: Path, now_ms: int) -> None:
    """Runs `batch.materialize` in a process of its own. Raises `OfflineError` with its words."""
    command = [sys.executable, "-m", "batch.materialize", "--feature-repo", str(feature_repo), "--now-ms", str(now_ms)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise OfflineError(f"the daily views were written but not materialised: {' '.join(said)}")


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="offline_features", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--feature-repo", type=Path, help="materialise the daily views to this Feast repo")
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    parser.add_argument("--resend-tiles", action="store_true", help="send the day tiles of all days, changed or not")
    parser.add_argument("--report", type=Path)
    add_topic_flags(parser)
    given = parser.parse_args(arguments)
    now_ms = int(time.time() * 1000) if given.now_ms is None else given.now_ms
    run = OfflineRun(
        lake=given.lake.resolve(),
        bootstrap_servers=given.bootstrap_servers,
        topics=topics_of(given),
        now_ms=now_ms,
        resend_tiles=given.resend_tiles,
    )
    try:
        report = run_offline_features(open_session("offline_features", SHUFFLE_PARTITIONS), run)
        if given.feature_repo is not None:
            materialize(given.feature_repo, now_ms)
        write_report(report, given.report)
    except (OfflineError, QuarantineError) as error:
        return fail("offline_features", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
