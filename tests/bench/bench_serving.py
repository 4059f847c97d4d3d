"""The ranking service as its callers meet it: latency, the rate that one process holds, and how far from the floor.

Broker, service, load, client and the stream of item tiles share the machine. The store is SQLite, slates go to the
broker, and the item snapshot takes tiles while requests are answered. What is compared takes turns.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import grpc
import numpy as np
import psutil
from rich.console import Console

from features.backends import open_backend
from models.bundle import Bundle
from models.ranker.network import RankerNetwork
from serving import ranking_pb2 as pb
from serving import ranking_pb2_grpc
from serving.client import RankingClient
from tests.bench import ghz
from tests.bench.chain import Chain, open_chain
from tests.bench.report import BenchError, Row
from tests.bench.serving_assembly import assembly_rows
from tests.bench.serving_floor import METHOD
from tests.bench.serving_outage import outage_rows
from tests.bench.serving_stock import StockRanking
from tests.bench.serving_world import (
    World,
    described,
    fill_store,
    live_tiles,
    publish_catalogue,
    write_requests,
)
from tests.bench.world_bundle import write_world_bundle
from tests.conftest import free_port, running, wait_for
from tests.ranking_service import SERVE_PYTHON, Service, ranking_service, write_feature_repo
from tests.serving_bundle import promote

ROUNDS = 5
ROUND_REQUESTS = 400
WARM_UP_REQUESTS = 200
STOCK_REQUESTS = 3
"""A round: one takes as long as a hundred of ours."""
OPEN_RATE, OPEN_S, OPEN_RUNS = 60, 15.0, 3
RATES = (60, 80, 100, 120, 140, 160, 200, 240, 300, 400)
RATE_S = 8.0
HELD_MS = 50.0
OUTAGE_S = 300.0
TIMEOUT_S = 1.0
LIVE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What runs, and what it is made of."""

    world: World
    chain: Chain
    service: Service
    bundle: Bundle
    network: RankerNetwork
    requests: Path

    @property
    def directory(self) -> Path:
        """For logs and files."""
        return self.chain.directory


def run(console: Console, outage_s: float = OUTAGE_S) -> list[Row]:
    """All figures of the service; the outage is of `outage_s` seconds and left out at 0."""
    ghz.binary()
    world = World()
    with _bench(world) as bench:
        console.print(f"serving: {world.items:,} items, bundle {bench.bundle.bundle_id}")
        rows = [*_closed_loop(console, bench), *_open_loop(console, bench), *_memory(bench)]
        _check_snapshot(bench)
        rows += assembly_rows(world, bench.bundle, bench.service.store)
    if outage_s:
        rows += outage_rows(console, world, outage_s)
    return rows


@contextmanager
def _bench(world: World) -> Iterator[Bench]:
    now_ms = time.time_ns() // 1_000_000
    with open_chain() as chain:
        publish_catalogue(world, chain.bootstrap_servers, chain.topics.items, now_ms)
        directory = chain.directory / "service"
        bundles = directory / "bundles"
        path, network = write_world_bundle(world, bundles, "bench", now_ms)
        with open_backend(str(write_feature_repo(directory))) as backend:
            fill_store(world, backend, now_ms)
        requests = chain.directory / "requests.json"
        write_requests(world, requests)
        flags = ["--max-candidates", str(world.candidates), "--log-level", "warning", "--pin"]
        tiles = live_tiles(world, chain.bootstrap_servers, chain.topics.tiles("item"))
        with ranking_service(directory, chain.bootstrap_servers, chain.topics, *flags, repo=False) as service, tiles:
            promote(bundles, path.name)
            with RankingClient(service.address) as client:
                wait_for(client.serving, f"the service; see {service.log}")
            wait_for(lambda: chain.end_offset(chain.topics.tiles("item")) > 1_000, "live tiles")
            bundle = Bundle.load(path)
            yield Bench(world=world, chain=chain, service=service, bundle=bundle, network=network, requests=requests)


def _closed_loop(console: Console, bench: Bench) -> list[Row]:
    """One client at a time: ours by the Python client, the floor by its channel, the usual way in this process."""
    taken: dict[str, list[np.ndarray]] = {"ours": [], "floor": [], "stock": []}
    cut_short = list[str]()
    world, load = bench.world, psutil.getloadavg()[0]
    with RankingClient(bench.service.address, timeout_s=TIMEOUT_S) as client, _floor(bench) as echo:
        stock = StockRanking(bench.network, bench.bundle, bench.directory / "stock", world)
        one = _requests(world, client, cut_short)
        work = {"ours": (one, ROUND_REQUESTS), "floor": (echo, ROUND_REQUESTS), "stock": (stock.rank, STOCK_REQUESTS)}
        for warm, count in ((one, WARM_UP_REQUESTS), (echo, WARM_UP_REQUESTS), (stock.rank, 1)):
            _timed(warm, count)
        before_s = {role: _cpu_s(bench, role) for role in ("worker", "scribe")}
        for _ in range(ROUNDS):
            for name, (do, count) in work.items():
                taken[name].append(_timed(do, count))
    p50 = {name: statistics.median(float(np.median(ms)) for ms in rounds) for name, rounds in taken.items()}
    p99 = statistics.median(float(np.percentile(ms, 99)) for ms in taken["ours"])
    cpu_ms = {
        role: (_cpu_s(bench, role) - was_s) / (ROUNDS * ROUND_REQUESTS) * 1_000 for role, was_s in before_s.items()
    }
    settings = {**described(world), "rounds": ROUNDS, "requests": ROUND_REQUESTS, "load": round(load, 1)}
    settings["degraded"] = dict(Counter(cut_short))
    console.print(f"serving: one client, p50 {p50['ours']:.2f} ms, p99 {p99:.2f} ms; floor {p50['floor']:.2f} ms")
    return [
        Row(name="recommend_ms_p50", value=p50["ours"], unit="ms", settings=settings),
        Row(name="recommend_ms_p99", value=p99, unit="ms", settings=settings),
        *(
            Row(name=f"{role}_cpu_ms_per_request", value=value, unit="ms", settings=settings)
            for role, value in cpu_ms.items()
        ),
        Row(name="floor_ms_p50", value=p50["floor"], unit="ms", settings=settings),
        Row(name="floor_ratio", value=p50["ours"] / p50["floor"], unit="ratio", settings=settings),
        Row(name="stock_ms_p50", value=p50["stock"], unit="ms", settings=settings | stock.described),
        Row(name="stock_ratio", value=p50["stock"] / p50["ours"], unit="ratio", settings=settings | stock.described),
    ]


def _requests(world: World, client: RankingClient, cut_short: list[str]) -> Callable[[], object]:
    """One request after the other. An answer that degraded is noted; any other is the whole of what is asked for."""
    users = cycle(range(world.users))

    def one() -> object:
        slate = client.recommend(world.user_id(next(users)), world.returned, device="phone")
        if slate.degraded:
            cut_short.extend(slate.degraded.values())
        elif (len(slate.items), slate.candidates_scored) != (world.returned, world.candidates):
            raise BenchError(
                f"got {len(slate.items)} items of {slate.candidates_scored} candidates; "
                f"expected {world.returned} of {world.candidates}."
            )
        return slate

    return one


@contextmanager
def _floor(bench: Bench) -> Iterator[Callable[[], object]]:
    """The floor's server, and a call of it with a request and an answer of ours' sizes."""
    with grpc.insecure_channel(bench.service.address) as channel:
        stub = ranking_pb2_grpc.RankingServiceStub(channel)
        request = pb.RecommendRequest(user_id=bench.world.user_id(0), count=bench.world.returned, device="phone")
        answer = stub.Recommend(request, timeout=10).SerializeToString()
    file, port = bench.directory / "answer.bin", free_port()
    file.write_bytes(answer)
    command = [SERVE_PYTHON, "-m", "tests.bench.serving_floor", str(port), str(bench.bundle.path)]
    command += [str(bench.world.candidates), str(file)]
    with (
        running(command, bench.directory / "floor.log"),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        grpc.channel_ready_future(channel).result(timeout=60)
        call, sent = channel.unary_unary(METHOD), request.SerializeToString()
        yield lambda: call(sent, timeout=10)


def _cpu_s(bench: Bench, role: str) -> float:
    """Processor time of the processes of a role so far: what other work on the machine disturbs least."""
    children = psutil.Process(bench.service.process.pid).children()
    return sum(sum(each.cpu_times()[:2]) for each in children if f"serving.{role}" in each.cmdline())


def _timed(do: Callable[[], object], count: int) -> np.ndarray:
    taken = np.empty(count)
    for n in range(count):
        began_s = time.perf_counter()
        do()
        taken[n] = time.perf_counter() - began_s
    return taken * 1_000


def _open_loop(console: Console, bench: Bench) -> list[Row]:
    """At a fixed rate, then at rising ones until the 99th percentile passes `HELD_MS` or a request fails."""

    def load(rate: int, seconds: float) -> ghz.Load:
        log = bench.directory / f"ghz-{rate}.json"
        return ghz.load(bench.service.address, bench.requests, rate=rate, seconds=seconds, timeout_s=TIMEOUT_S, log=log)

    load(OPEN_RATE, 3.0)
    runs = [load(OPEN_RATE, OPEN_S) for _ in range(OPEN_RUNS)]
    settings = {**described(bench.world), "runs": OPEN_RUNS, "seconds": OPEN_S}
    settings["load"] = round(psutil.getloadavg()[0], 1)
    failed = sum(count for run in runs for status, count in run.statuses.items() if status != "OK")
    p99 = statistics.median(run.quantile_ms(99) for run in runs)
    p50 = statistics.median(run.quantile_ms(50) for run in runs)
    console.print(f"serving: {OPEN_RATE} requests/s, p99 {p99:.1f} ms, {failed} failed")
    held = 0
    for rate in RATES:
        got = load(rate, RATE_S)
        console.print(f"serving: {rate} requests/s, p99 {got.quantile_ms(99):.1f} ms, {dict(got.statuses)}")
        if not got.all_ok or got.quantile_ms(99) > HELD_MS:
            break
        held = rate
    return [
        Row(name="recommend_60rps_ms_p50", value=p50, unit="ms", settings=settings),
        Row(name="recommend_60rps_ms_p99", value=p99, unit="ms", settings=settings),
        Row(name="recommend_60rps_failed", value=failed, unit="requests", settings=settings),
        Row(name="recommend_max_rps", value=held, unit="1/s", settings=settings | {"held_ms_p99": HELD_MS}),
    ]


def _check_snapshot(bench: Bench) -> None:
    """Raises `BenchError` unless the item features are those of the last seconds."""
    with RankingClient(bench.service.address) as client:
        age_s = time.time() - client.recommend(bench.world.user_id(0), 1).item_snapshot_time_ms / 1_000
    if age_s > LIVE_S:
        raise BenchError(f"the item features are {age_s:.1f} s old: the snapshot did not take the live tiles.")


def _memory(bench: Bench) -> list[Row]:
    """Of each process, and of what they share."""
    rows = []
    for process in psutil.Process(bench.service.process.pid).children():
        (role,) = [name for name in ("keeper", "scribe", "worker") if f"serving.{name}" in process.cmdline()]
        got = process.memory_full_info()
        for kind, size in (("rss", got.rss), ("own", got.uss)):
            rows.append(Row(name=f"{role}_{kind}_mb", value=size / 1e6, unit="MB", settings=described(bench.world)))
    parent = psutil.Process(bench.service.process.pid).memory_info().rss
    shared = sum(path.stat().st_size for path in bench.service.shared_dir.joinpath("snapshot").iterdir())
    return [
        *rows,
        Row(name="parent_rss_mb", value=parent / 1e6, unit="MB", settings=described(bench.world)),
        Row(name="snapshot_shared_mb", value=shared / 1e6, unit="MB", settings=described(bench.world)),
    ]
