"""Keeps the lake small: what is past its time goes, small files become large ones, old files are removed.

`python -m batch.maintain --lake DIR [--retention FILE] [--dry-run true] [--report FILE]`
Each step is safe at any time and does nothing when it is repeated. No other job may write the lake meanwhile.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.compute as pc
from deltalake import DeltaTable

from batch.command import fail, write_report
from batch.compaction import compact, is_crowded
from features.names import MS_PER_DAY, LakeTables
from features.retention import Retention, RetentionError

TABLES = LakeTables()
EVENTS = (TABLES.silver_events, TABLES.too_late_events, TABLES.duplicates, TABLES.dead_letters, TABLES.bronze_events)


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """One run. A dry run says what it would remove, and removes nothing."""

    lake: Path
    retention: Retention
    now_ms: int
    dry_run: bool

    def cutoff_ms(self, days: int) -> int:
        """The instant before which something of so many days is past its time."""
        return self.now_ms - days * MS_PER_DAY

    def cutoff_date(self, days: int) -> date:
        """The first date that is kept."""
        return datetime.fromtimestamp(self.cutoff_ms(days) / 1000, tz=UTC).date()


def maintain(run: Upkeep) -> dict[str, object]:
    """Says of each table what was removed, with the bytes before and after."""
    tables = sorted(log.parent.relative_to(run.lake).as_posix() for log in run.lake.rglob("_delta_log"))
    reports = [_maintain_table(run, table) for table in tables]
    return {
        "dry_run": run.dry_run,
        "now_ms": run.now_ms,
        "retention": run.retention.model_dump(),
        "tables": reports,
        "feature_files_removed": [str(file.relative_to(run.lake)) for file in _old_feature_files(run)],
    }


def _maintain_table(run: Upkeep, table: str) -> dict[str, object]:
    path = run.lake / table
    delta, before = DeltaTable(str(path)), _bytes(path)
    expired = _expire(run, delta, table)
    crowded = is_crowded(path)
    merged = compact(path) if crowded and not run.dry_run else 0
    hours = run.retention.old_versions_hours
    # Within the default of a week Delta wants to be told that nobody reads for longer than that.
    removed = DeltaTable(str(path)).vacuum(hours, dry_run=run.dry_run, enforce_retention_duration=False)
    return {
        "table": table,
        "rows_expired": expired,
        "files_merged": merged,
        "to_be_compacted": crowded and run.dry_run,
        "old_files_removed": len(removed),
        "bytes_before": before,
        "bytes_after": _bytes(path),
    }


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _expire(run: Upkeep, delta: DeltaTable, table: str) -> int:
    """Deletes the rows that are past their time; says how many, or how many they would be."""
    found = _expired(run, table)
    if found is None:
        return 0
    predicate, expression = found
    rows = delta.to_pyarrow_dataset().count_rows(filter=expression)
    if rows and not run.dry_run:
        delta.delete(predicate)
    return int(rows)


def _expired(run: Upkeep, table: str) -> tuple[str, pc.Expression] | None:
    """Which of the table's rows are past their time, in SQL and for Arrow; None where all are kept.

    A refused partition leaves the quarantine when the data that it is about has gone.
    """
    kept = run.retention
    if table in EVENTS:
        before_ms = run.cutoff_ms(kept.events_days)
        return f"arrival_ms < {before_ms}", pc.field("arrival_ms") < before_ms
    if table == TABLES.slates:
        before_ms = run.cutoff_ms(kept.slates_days)
        return f"served_at_ms < {before_ms}", pc.field("served_at_ms") < before_ms
    if table.startswith(f"{TABLES.day_tiles}/"):
        day = run.cutoff_date(kept.day_tiles_days)
        return f"event_date < DATE '{day}'", pc.field("event_date") < pc.scalar(day)
    if table == TABLES.quarantine:
        day = run.cutoff_date(kept.events_days)
        return f"\"partition\" < '{day}'", pc.field("partition") < pc.scalar(str(day))
    return None


def _old_feature_files(run: Upkeep) -> Iterator[Path]:
    """Removes the files of the offline views that are past their time, and names them."""
    first_kept = str(run.cutoff_date(run.retention.feature_files_days))
    for view in sorted((run.lake / TABLES.offline_features).glob("[!.]*")):
        for file in sorted(view.glob("*.parquet"))[:-1]:
            if file.stem < first_kept:
                if not run.dry_run:
                    file.unlink()
                yield file


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m batch.maintain", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--retention", type=Path, help="TOML of `features.retention`; absent: its defaults")
    parser.add_argument("--dry-run", choices=("true", "false"), default="false", type=str.lower)
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args(arguments)
    try:
        run = Upkeep(
            lake=given.lake.resolve(),
            retention=Retention.read(given.retention),
            now_ms=int(time.time() * 1000) if given.now_ms is None else given.now_ms,
            dry_run=given.dry_run == "true",
        )
    except RetentionError as error:
        return fail("maintain", error)
    write_report(maintain(run), given.report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
