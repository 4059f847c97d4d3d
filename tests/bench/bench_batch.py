"""How long a backfill of day tiles takes, by its days, and against a plain Spark job of the same query.

The lake holds 30 days of a million events (`tests.bench.bench_backfill`). Each run is the job as the DAG submits it,
over the last 10, 20 or all days, from the start of its JVM to its end: it counts both families, sends the rows to the
tile topics and replaces the days' partitions. The plain job (`tests/bench/plain_day_tiles.py`) counts and writes alone.
"""

import datetime
import subprocess
import time
from pathlib import Path

from rich.console import Console

from features.names import MS_PER_SECOND
from infra.settings import ROOT, load_settings
from infra.spark import job_file, submit_command
from tests.bench.bench_backfill import DAYS, END_MS, LIMIT_S, LOAD, linearity, write_lake
from tests.bench.chain import open_chain
from tests.bench.report import BenchError, Row

EVENTS = 1_000_000
RANGES = (10, 20, DAYS)
LAST = datetime.datetime.fromtimestamp(END_MS / MS_PER_SECOND, datetime.UTC).date() - datetime.timedelta(days=1)


def run(console: Console) -> list[Row]:
    """`backfill_minutes` of all days, seconds by days, `linearity` of those, and `ratio_to_plain_spark`."""
    with open_chain() as chain:
        lake, log = chain.directory / "lake", chain.directory / "job.log"
        write_lake(lake, LOAD, EVENTS)
        seconds: dict[int, float] = {}
        for days in RANGES:
            first = LAST - datetime.timedelta(days=days - 1)
            flags = ["--lake", str(lake), "--bootstrap-servers", chain.bootstrap_servers, "--step", "day_tiles"]
            flags += ["--start", str(first), "--end", str(LAST), "--today", str(LAST + datetime.timedelta(days=1))]
            flags += ["--topics-version", chain.topics.version]
            seconds[days] = _seconds(submit_command(load_settings(), "backfill", *flags), log)
            console.print(f"{days} days: {seconds[days]:.1f} s")
        plain = _seconds(_plain(lake, chain.directory / "plain", str(first), str(LAST)), log)
        console.print(f"plain Spark: {plain:.1f} s")
    settings = {"step": "day_tiles", "events": EVENTS, "days": DAYS, "users": LOAD.users, "items": LOAD.items}
    return [
        Row(name="backfill_minutes", value=seconds[DAYS] / 60, unit="min", settings=settings),
        Row(name="ratio_to_plain_spark", value=seconds[DAYS] / plain, unit="ratio", settings=settings),
        Row(name="plain_spark_seconds", value=plain, unit="s", settings=settings),
        *(Row(name=f"seconds_{days}_days", value=seconds[days], unit="s", settings=settings) for days in RANGES),
        Row(name="linearity", value=linearity(list(RANGES), [seconds[days] for days in RANGES]), unit="ratio"),
    ]


def _plain(lake: Path, out: Path, first: str, last: str) -> list[str]:
    job = str(ROOT / "tests" / "bench" / "plain_day_tiles.py")
    command = submit_command(load_settings(), "backfill", str(lake), str(out), first, last)
    return [job if word == str(job_file("backfill")) else word for word in command]


def _seconds(command: list[str], log: Path) -> float:
    """Runs the job and returns its seconds. Raises `BenchError` with its last words."""
    began_s = time.monotonic()
    with log.open("wb") as out:
        try:
            subprocess.run(command, stdout=out, stderr=out, timeout=LIMIT_S, check=True)
        except subprocess.SubprocessError as error:
            said = " ".join(log.read_text().split()[-60:])
            raise BenchError(f"the job did not end well within {LIMIT_S:.0f} s: {said}") from error
    return time.monotonic() - began_s
