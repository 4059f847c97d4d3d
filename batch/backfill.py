"""One step for days that are over, made anew: `spark-submit … batch/backfill.py --step S --start DAY --end DAY`.

| step | what takes the place of what is there |
|---|---|
| day_tiles | the days' tiles of both families, which also go to the tile topics |
| offline_features | the same, and each day's files of the Feast views, as of the day's last millisecond |
| training_examples | the days' partitions of the examples; `--features recomputed` leaves served values aside |
| quality | nothing: the gates judge the days |

Each day's output is replaced as a whole, so a rerun on the same lake changes nothing. A day without events is named in
`empty_days`: its examples go, its tiles stay, and views say what held on that day all the same.
"""

import argparse
import datetime
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalake import DeltaTable as DeltaLog
from pyspark.sql import SparkSession

from batch.backfill_plan import Backfill, BackfillError, checked
from batch.command import add_topic_flags, fail, topics_of, write_report
from batch.day_tiles import SHUFFLE_PARTITIONS, recount
from batch.lake import TABLES, read_table, row_count
from batch.offline_features import OfflineRun, write_views
from batch.served_examples import Source
from batch.session import open_session
from batch.training_examples import FEATURES_HELP, EmptyLakeError, ExampleRun, run_examples
from features.names import MS_PER_DAY, Topics
from features.tiles import FAMILIES


@dataclass(frozen=True, kw_only=True)
class Filling:
    """One run."""

    backfill: Backfill
    lake: Path
    bootstrap_servers: str
    topics: Topics
    features: Source = Source.SERVED
    """What training examples have where there is a choice."""

    @property
    def predicate(self) -> str:
        """The run's days in SQL."""
        return f"event_date >= DATE'{self.backfill.start}' AND event_date <= DATE'{self.backfill.end}'"


def run_backfill(spark: SparkSession, filling: Filling) -> dict[str, Any]:
    """Fills the days and says what it wrote. Raises `BackfillError`, and what the step's own job raises."""
    if not row_count(filling.lake, TABLES.silver_events):
        raise BackfillError(f"{filling.lake} has no events: run lake_ingest first.")
    events = read_table(spark, filling.lake, TABLES.silver_events).where(filling.predicate)
    happened = {row["event_date"] for row in events.select("event_date").distinct().collect()}
    written = _STEPS[filling.backfill.step](spark, filling, sorted(happened))
    asked = filling.backfill
    return {
        "step": asked.step,
        "start": str(asked.start),
        "end": str(asked.end),
        "empty_days": [str(day) for day in asked.days if day not in happened],
        "written": written,
    }


def _day_tiles(spark: SparkSession, filling: Filling, days: list[datetime.date]) -> dict[str, int]:
    if not days:
        return {}
    events = read_table(spark, filling.lake, TABLES.silver_events)
    texts = [str(day) for day in days]
    return {
        family.name: recount(
            filling.lake, family, events, texts, filling.bootstrap_servers, filling.topics.tiles(family.name)
        )
        for family in FAMILIES
    }


def _offline_features(spark: SparkSession, filling: Filling, days: list[datetime.date]) -> dict[str, Any]:
    tiles = _day_tiles(spark, filling, days)
    servers, topics = filling.bootstrap_servers, filling.topics
    views = {}
    for day in filling.backfill.days:
        run = OfflineRun(lake=filling.lake, bootstrap_servers=servers, topics=topics, now_ms=_last_ms(day))
        views[str(day)] = write_views(spark, run)
    return {"day_tiles": tiles, "views": views}


def _last_ms(day: datetime.date) -> int:
    midnight = datetime.datetime.combine(day, datetime.time(), datetime.UTC)
    return int(midnight.timestamp()) * 1000 + MS_PER_DAY - 1


def _training_examples(spark: SparkSession, filling: Filling, _days: list[datetime.date]) -> dict[str, Any]:
    asked = filling.backfill
    run = ExampleRun(
        lake=filling.lake,
        now_ms=_last_ms(asked.end),
        from_date=asked.start,
        to_date=asked.end,
        features=filling.features,
    )
    try:
        return run_examples(spark, run)
    except EmptyLakeError:
        table = str(filling.lake / TABLES.examples)
        if DeltaLog.is_deltatable(table) and row_count(filling.lake, TABLES.examples):
            DeltaLog(table).delete(f"event_date >= '{asked.start}' AND event_date <= '{asked.end}'")
        return {"rows": row_count(filling.lake, TABLES.examples)}


def _quality(_spark: SparkSession, filling: Filling, days: list[datetime.date]) -> dict[str, Any]:
    """The gates in a process of their own, as the DAGs run them. Raises `BackfillError` when one is shut."""
    dates = [f"--date={day}" for day in days]
    for suite in ("events", "examples") if days else ():
        command = [sys.executable, "-m", "batch.quality", "--lake", str(filling.lake), f"--suite={suite}", *dates]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise BackfillError(" ".join(said))
    return {"judged": [str(day) for day in days]}


_STEPS: dict[str, Callable[[SparkSession, Filling, list[datetime.date]], dict[str, Any]]] = {
    "day_tiles": _day_tiles,
    "offline_features": _offline_features,
    "training_examples": _training_examples,
    "quality": _quality,
}


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="backfill", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--step", required=True)
    parser.add_argument("--start", required=True, help="first day")
    parser.add_argument("--end", required=True, help="last day; it must be over")
    parser.add_argument("--today", type=datetime.date.fromisoformat, help="default: by the wall clock, UTC")
    parser.add_argument("--features", choices=[*map(str, Source)], default=str(Source.SERVED), help=FEATURES_HELP)
    parser.add_argument("--report", type=Path)
    add_topic_flags(parser)
    given = parser.parse_args(arguments)
    today = given.today or datetime.datetime.now(datetime.UTC).date()
    try:
        filling = Filling(
            backfill=checked(given.step, given.start, given.end, today),
            lake=given.lake.resolve(),
            bootstrap_servers=given.bootstrap_servers,
            topics=topics_of(given),
            features=Source(given.features),
        )
        write_report(run_backfill(open_session("backfill", SHUFFLE_PARTITIONS), filling), given.report)
    except (BackfillError, RuntimeError) as error:
        return fail("backfill", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
