"""From an event that is produced to its value read through Feast's API, under a live load of 1,500 events a second.

One probe at a time: a user without a past clicks, and the user's `user_clicks_10m` is read again and again until it
says so. The time includes the last read. Job, writer, broker, load and probe share the machine; the store is SQLite.
"""

import json
import multiprocessing
import time

import numpy as np
from confluent_kafka import Producer
from rich.console import Console

from tests.bench.chain import Chain, open_chain, wait_until
from tests.bench.load import Load, produce_live
from tests.bench.report import BenchError, Row

LOAD = Load()
PER_S = 1_500
WARM_UP_S = 60.0
PROBES = 500
PAUSE_S = 0.1
GIVE_UP_S = 10.0
POLL_S = 0.001
FEATURE = "user_activity:user_clicks_10m"


def run(console: Console) -> list[Row]:
    """The quantiles of the probes' times."""
    with open_chain() as chain:
        chain.start_flink()
        chain.start_writer()
        seconds = WARM_UP_S + PROBES * (PAUSE_S + 0.2) + 60
        arguments = (chain.bootstrap_servers, chain.topics.events, LOAD, PER_S, seconds)
        load = multiprocessing.get_context("spawn").Process(target=produce_live, args=arguments, daemon=True)
        load.start()
        try:
            wait_until(lambda: chain.end_offset(chain.topics.interactions) > 0, 120.0, "the first event", chain)
            console.print(f"freshness: {PER_S} events/s; warming up for {WARM_UP_S:.0f} s")
            time.sleep(WARM_UP_S)
            times_ms = _probe(console, chain)
        finally:
            load.terminate()
            load.join()
    settings = {"load_per_s": PER_S, "users": LOAD.users, "items": LOAD.items, "probes": PROBES, "store": "sqlite"}
    quantiles = {"ms_p50": 50, "ms_p90": 90, "ms_p99": 99}
    rows = [
        Row(name=name, value=float(np.percentile(times_ms, q)), unit="ms", settings=settings)
        for name, q in quantiles.items()
    ]
    return [*rows, Row(name="ms_max", value=max(times_ms), unit="ms", settings=settings)]


def _probe(console: Console, chain: Chain) -> list[float]:
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(chain.repo))
    producer = Producer({"bootstrap.servers": chain.bootstrap_servers, "linger.ms": 0})
    times_ms = []
    for number in range(PROBES):
        user_id = f"probe-{number}"
        _clicks(store, user_id)  # connections are made and nothing is there yet
        began_s = time.perf_counter()
        producer.produce(chain.topics.events, _click(number, user_id), user_id)
        producer.flush(5)
        while not _clicks(store, user_id):
            if time.perf_counter() - began_s > GIVE_UP_S:
                raise BenchError(f"probe {number} was not readable after {GIVE_UP_S:.0f} s; logs in {chain.directory}.")
            time.sleep(POLL_S)
        times_ms.append(1_000 * (time.perf_counter() - began_s))
        if number % 100 == 99:
            console.print(f"freshness: {number + 1} of {PROBES} probes, p50 {np.median(times_ms):.0f} ms")
        time.sleep(PAUSE_S)
    return times_ms


def _clicks(store, user_id: str) -> int:
    answer = store.get_online_features([FEATURE], [{"user_id": user_id}]).to_dict()
    return int(answer["user_clicks_10m"][0])


def _click(number: int, user_id: str) -> bytes:
    event = {
        "event_id": f"probe-{number}",
        "event_type": "click",
        "event_time_ms": time.time_ns() // 1_000_000,
        "user_id": user_id,
        "item_id": "item-000001",
        "category": "category-01",
        "creator_id": "creator-00000",
        "schema_version": 1,
    }
    return json.dumps(event).encode()
