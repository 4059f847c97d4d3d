"""The ranking service beyond what it can do: what is answered in time, with how many candidates, and what is shed.

One service process without Kafka, SQLite as the store, open-loop load with a deadline. The machine is shared with the
load generator, so the rate at which the service is full depends on it; what happens beyond should not.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
from rich.console import Console

from features.backends import open_backend
from features.names import Topics
from models.bundle import Bundle
from serving.answer import to_proto
from serving.callers import Caller
from serving.client import RankingClient
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.pipeline import Pipeline, PipelineConfig
from serving.query import Query
from serving.rates import Rates
from serving.stages import Progress
from serving.users import unknown_user
from tests.bench import ghz
from tests.bench.report import Row
from tests.bench.serving_world import World, described, fill_store, write_requests
from tests.bench.world_bundle import write_world_bundle
from tests.conftest import wait_for
from tests.ranking_service import Service, ranking_service, write_feature_repo
from tests.serving_bundle import promote

RATES = (60, 120, 240, 480)
SECONDS = 10.0
DEADLINE_S = 0.2
HURRIED = 200
RATED = 20_000


class _Nobody:
    """A store that knows nobody."""

    def read(self, user_id: str, instant_ms: int, _: float) -> object:
        return unknown_user(user_id, instant_ms)


def run(console: Console) -> list[Row]:
    """All figures."""
    ghz.binary()
    world, now_ms = World(), time.time_ns() // 1_000_000
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path, _ = write_world_bundle(world, directory / "bundles", "bench", now_ms)
        rows = [_last_resort(world, path, now_ms), _rate_check()]
        with _service(world, directory, path, now_ms) as (service, requests):
            for rate in RATES:
                rows += _under_load(console, world, service, requests, rate, directory)
    return rows


@contextmanager
def _service(world: World, directory: Path, bundle: Path, now_ms: int) -> Iterator[tuple[Service, Path]]:
    with open_backend(str(write_feature_repo(directory))) as backend:
        fill_store(world, backend, now_ms)
    requests = directory / "requests.json"
    write_requests(world, requests)
    flags = ["--max-candidates", str(world.candidates), "--log-level", "error"]
    with ranking_service(directory, None, Topics(version="pressure"), *flags, repo=False) as service:
        promote(service.bundles, bundle.name)
        with RankingClient(service.address) as client:
            wait_for(client.serving, f"the service; see {service.log}")
        yield service, requests


def _under_load(
    console: Console, world: World, service: Service, requests: Path, rate: int, directory: Path
) -> list[Row]:
    counters = ("ranking_candidates_sum", "ranking_candidates_count", "ranking_last_resort_total")
    before = [service.metric(name) for name in counters]
    log = directory / f"ghz-{rate}.json"
    load = ghz.load(service.address, requests, rate=rate, seconds=SECONDS, timeout_s=DEADLINE_S, log=log)
    candidates, answers, hurried = (service.metric(name) - was for name, was in zip(counters, before, strict=True))
    sent, ok = sum(load.statuses.values()), load.statuses.get("OK", 0)
    shed = load.statuses.get("ResourceExhausted", 0)
    settings = {**described(world), "rate": rate, "deadline_ms": DEADLINE_S * 1000, "statuses": dict(load.statuses)}
    settings |= {"last_resort": hurried, "load": round(psutil.getloadavg()[0], 1)}
    values = {
        "answered": (ok / sent, "share"),
        "shed": (shed / sent, "share"),
        "late": ((sent - ok - shed) / sent, "share"),
        "answered_per_s": (ok / SECONDS, "requests/s"),
        "ms_p99": (load.quantile_ms(99) if ok else float("nan"), "ms"),
        "candidates": (candidates / max(answers, 1), "items"),
    }
    told = ", ".join(f"{name} {value:.3g}" for name, (value, _) in values.items())
    console.print(f"pressure: {rate} requests/s: {told}, last resort {hurried:.0f}")
    return [Row(name=f"at_{rate}_{name}", value=v, unit=unit, settings=settings) for name, (v, unit) in values.items()]


def _last_resort(world: World, path: Path, now_ms: int) -> Row:
    """What the last resort takes for 50 of 50,000 items, in this process."""
    live = Live(ItemSnapshot().finalise_all(now_ms))
    live.switch(Bundle.load(path))
    assert live.view is not None
    pipeline = Pipeline(users=_Nobody(), slates=None, config=PipelineConfig(), clock_ms=lambda: now_ms)  # type: ignore[arg-type]
    taken = []
    for k in range(HURRIED):
        query = Query(request_id=f"r{k}", user_id="u", count=world.returned)
        started_s = perf_counter()
        to_proto(pipeline.recommend(live.view, query, Progress(monotonic_s=perf_counter, deadline_s=started_s)))
        taken.append((perf_counter() - started_s) * 1000)
    settings = {"p99": float(np.percentile(taken[10:], 99)), "load": round(psutil.getloadavg()[0], 1)}
    return Row(name="last_resort_ms_p50", value=float(np.median(taken[10:])), unit="ms", settings=settings)


def _rate_check() -> Row:
    caller = Caller(name="a", key_sha256=["0" * 64], requests_per_second=1_000)

    async def check() -> float:
        rates, started_s = Rates(perf_counter), time.process_time()
        for _ in range(RATED):
            await rates.retry_after_ms(caller)
        return (time.process_time() - started_s) / RATED * 1e6

    return Row(name="rate_check_cpu_us", value=asyncio.run(check()), unit="µs", settings={"requests": RATED})
