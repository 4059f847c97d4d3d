"""How long the offline features of a month take, by the number of events: the job as the DAG submits it.

A fresh job on a lake without day tiles: it counts 30 days in both families, sends them to the tile topics, stores them,
and finalises every entity's features at the month's end. The lake is written before the clock starts; the seconds are
the command's own, from the start of its JVM to its end. Users act equally often and at any time, so nearly every
event of a user has a day tile of its own: no load has more rows to write.
"""

import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake
from rich.console import Console

from batch.lake import TABLES
from features.events import EventType
from features.items import Item
from features.names import MS_PER_DAY, MS_PER_SECOND
from infra.settings import load_settings
from infra.spark import submit_command
from tests.bench.chain import Chain, open_chain
from tests.bench.load import CATEGORIES, ITEMS_PER_CREATOR, SHARES, TYPES, Load
from tests.bench.report import BenchError, Row

SIZES = {"seconds_1m": 1_000_000, "seconds_3m": 3_000_000, "seconds_10m": 10_000_000}
DAYS = 30
LOAD = Load()
END_MS = 1_800_000_000_000 // MS_PER_DAY * MS_PER_DAY
"""Midnight: the month is 30 whole days."""
CHUNK = 500_000
"""Events a commit, as an ingest of some size would have left them: one file a day."""
LIMIT_S = 1_800.0


def run(console: Console) -> list[Row]:
    """Seconds by size, and `linearity`: what an event costs from 3 to 10 million, over what it costs from 1 to 3."""
    seconds = {}
    for name, events in SIZES.items():
        with open_chain() as chain:
            lake = chain.directory / "lake"
            write_lake(lake, LOAD, events)
            seconds[name] = backfill(chain, lake)
            console.print(f"{name}: {events:,} events in {seconds[name]:.1f} s")
    settings = {"users": LOAD.users, "items": LOAD.items, "days": DAYS, "driver_mb": load_settings().spark_driver_mb}
    rows = [Row(name=name, value=taken, unit="s", settings=settings) for name, taken in seconds.items()]
    return [*rows, Row(name="linearity", value=linearity(list(SIZES.values()), list(seconds.values())), unit="ratio")]


def linearity(events: list[int], seconds: list[float]) -> float:
    """Cost of an event between the two larger sizes over that between the two smaller: 1 where time is linear."""
    first, second = ((seconds[n + 1] - seconds[n]) / (events[n + 1] - events[n]) for n in (0, 1))
    return second / first


def backfill(chain: Chain, lake: Path) -> float:
    """Runs the job and returns its seconds. Raises `BenchError` with its last words."""
    flags = ["--lake", str(lake), "--bootstrap-servers", chain.bootstrap_servers, "--now-ms", str(END_MS)]
    command = submit_command(load_settings(), "offline_features", *flags)
    log = chain.directory / "offline_features.log"
    began_s = time.monotonic()
    with log.open("wb") as out:
        try:
            subprocess.run(command, stdout=out, stderr=out, timeout=LIMIT_S, check=True)
        except subprocess.SubprocessError as error:
            said = " ".join(log.read_text().split()[-60:])
            raise BenchError(f"offline_features did not end well within {LIMIT_S:.0f} s: {said}") from error
    return time.monotonic() - began_s


def write_lake(lake: Path, load: Load, events: int) -> None:
    """The tables that the job reads, as the ingest would have left them."""
    catalogue = [vars(_item(n)) for n in range(load.items)]
    write_deltalake(str(lake / TABLES.items), pa.Table.from_pylist(catalogue))
    rng, silver = np.random.default_rng(load.seed), str(lake / TABLES.silver_events)
    for first in range(0, events, CHUNK):
        chunk = _chunk(rng, load, first, min(CHUNK, events - first))
        write_deltalake(silver, chunk, mode="append", partition_by=["event_date"])


def _item(number: int) -> Item:
    return Item(
        item_id=f"item-{number:06d}",
        category=f"category-{number % CATEGORIES:02d}",
        creator_id=f"creator-{number // ITEMS_PER_CREATOR:05d}",
        language="en",
        duration_ms=60_000,
        published_at_ms=END_MS - DAYS * MS_PER_DAY,
    )


def _chunk(rng: np.random.Generator, load: Load, first: int, count: int) -> pa.Table:
    """Events `[first, first + count)`, as `tests.bench.load` draws them, at any time of the month."""
    share_I = np.cumsum(np.arange(1, load.items + 1) ** -0.5)
    share_E = np.cumsum(list(SHARES.values()))
    user_N = rng.integers(load.users, size=count)
    item_N = np.searchsorted(share_I, rng.random(count) * share_I[-1])
    kind_N = np.searchsorted(share_E, rng.random(count) * share_E[-1])
    time_ms_N = END_MS - 1 - rng.integers(DAYS * MS_PER_DAY, size=count)
    unwatched_N = kind_N != TYPES.index(EventType.WATCH)
    number_N = np.arange(first, first + count)
    nulls = pa.nulls(count, pa.string())
    return pa.table(
        {
            "event_id": [f"0190a1b2-{number:012x}" for number in number_N],
            "event_type": _texts([str(kind) for kind in TYPES], kind_N),
            "event_time_ms": time_ms_N,
            "user_id": _texts([f"user-{n:06d}" for n in range(load.users)], user_N),
            "item_id": _texts([f"item-{n:06d}" for n in range(load.items)], item_N),
            "category": _texts([f"category-{n:02d}" for n in range(CATEGORIES)], item_N % CATEGORIES),
            "creator_id": _texts([f"creator-{n:05d}" for n in range(load.items)], item_N // ITEMS_PER_CREATOR),
            "request_id": [f"0190a1b2-7c3d-{number // 20:012x}" for number in number_N],
            "position": number_N % 20,
            "watch_ms": pa.array(rng.integers(1, 101, size=count) * 600, mask=unwatched_N),
            "duration_ms": pa.array(np.full(count, 60_000), mask=unwatched_N),
            "device": nulls,
            "schema_version": np.ones(count, np.int64),
            "event_date": pa.array((time_ms_N // MS_PER_DAY).astype(np.int32)).cast(pa.date32()),
            "topic": _texts(["events"], np.zeros(count, np.int64)),
            "partition": np.zeros(count, np.int32),
            "offset": number_N,
            "arrival_ms": np.minimum(time_ms_N + rng.integers(2 * MS_PER_SECOND, size=count), END_MS - 1),
        }
    )


def _texts(names: list[str], place_N: np.ndarray) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(place_N), pa.array(names)).cast(pa.string())
