"""A steady load of realistic events: many users, items by popularity, a few of each kind of fault."""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, tee
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from confluent_kafka import Producer

from features.events import EventType

SHARES = {
    EventType.IMPRESSION: 0.62,
    EventType.CLICK: 0.14,
    EventType.WATCH: 0.13,
    EventType.LIKE: 0.05,
    EventType.SHARE: 0.02,
    EventType.FOLLOW: 0.015,
    EventType.HIDE: 0.015,
    EventType.UNLIKE: 0.004,
    EventType.UNFOLLOW: 0.003,
    EventType.UNHIDE: 0.003,
}
TYPES = tuple(SHARES)
CATEGORIES = 20
ITEMS_PER_CREATOR = 10
CHUNK = 50_000
SENDERS = 2
DUPLICATES, DEAD, LATE = 0.01, 0.001, 0.001
LATE_MS = 3 * 86_400_000
JITTER_MS = 2_000


@dataclass(frozen=True, kw_only=True)
class Load:
    """Who acts on what."""

    users: int = 100_000
    items: int = 20_000
    seed: int = 7


class Record(NamedTuple):
    """One record of the events topic."""

    key: str
    value: str


def records(load: Load, times_ms: Iterator[int]) -> Iterator[Record]:
    """One record a time, which is its event time but for a jitter of up to two seconds into the past.

    Users act equally often; an item's popularity falls with the root of its rank. One in a hundred records is a copy,
    one in a thousand each is broken or beyond the horizon.
    """
    rng = np.random.default_rng(load.seed)
    share_I = np.cumsum(np.arange(1, load.items + 1) ** -0.5)
    share_E = np.cumsum(list(SHARES.values()))
    number, last = 0, Record("none", "{")
    while times := list(islice(times_ms, CHUNK)):
        size = len(times)
        columns = (
            times,
            rng.integers(load.users, size=size).tolist(),
            np.searchsorted(share_I, rng.random(size) * share_I[-1]).tolist(),
            np.searchsorted(share_E, rng.random(size) * share_E[-1]).tolist(),
            rng.integers(JITTER_MS, size=size).tolist(),
            rng.integers(1, 101, size=size).tolist(),
            rng.random(size).tolist(),
        )
        for time_ms, user, item, kind, early_ms, watched, fault in zip(*columns, strict=True):
            number += 1
            if fault >= DUPLICATES + DEAD:
                late_ms = LATE_MS if fault < DUPLICATES + DEAD + LATE else 0
                last = _record(number, user, item, TYPES[kind], time_ms - early_ms - late_ms, watched)
                yield last
            else:
                yield last if fault < DUPLICATES else Record("none", '{"event_id":')


def _record(number: int, user: int, item: int, kind: EventType, time_ms: int, watched: int) -> Record:
    user_id = f"user-{user:06d}"
    watch = f',"watch_ms":{watched * 600},"duration_ms":60000' if kind is EventType.WATCH else ""
    return Record(
        user_id,
        f'{{"event_id":"0190a1b2-{number:012x}","event_type":"{kind}","event_time_ms":{time_ms},"user_id":"{user_id}",'
        f'"item_id":"item-{item:06d}","category":"category-{item % CATEGORIES:02d}",'
        f'"creator_id":"creator-{item // ITEMS_PER_CREATOR:05d}","request_id":"0190a1b2-7c3d-{number // 20:012x}",'
        f'"position":{number % 20},"device":"phone"{watch},"schema_version":1}}',
    )


def produce_backlog(bootstrap_servers: str, topic: str, load: Load, count: int, last_ms: int, per_s: int) -> None:
    """Sends `count` records as fast as two processes can, stamped as if they had come at `per_s` until `last_ms`."""
    share = partial(_send_share, bootstrap_servers, topic, load, count, last_ms, per_s)
    with ProcessPoolExecutor(SENDERS, mp_context=get_context("spawn")) as pool:
        list(pool.map(share, range(SENDERS)))


def _send_share(
    bootstrap_servers: str, topic: str, load: Load, count: int, last_ms: int, per_s: int, sender: int
) -> None:
    """Every `SENDERS`th of the records, whose ids begin with the sender's number."""
    producer = _producer(bootstrap_servers)
    own = replace(load, seed=load.seed + sender)
    stamps, times = tee(last_ms - (count - place) * 1_000 // per_s for place in range(sender, count, SENDERS))
    for arrival_ms, record in zip(stamps, records(own, times), strict=True):
        _send(producer, topic, _renamed(record, sender), arrival_ms)
    assert producer.flush(60) == 0


def produce_live(bootstrap_servers: str, topic: str, load: Load, per_s: int, seconds: float) -> int:
    """Sends records at a rate, at the wall clock's time, in steps of 10 ms. Returns how many."""
    producer = _producer(bootstrap_servers)
    began, sent = time.monotonic(), 0
    while (elapsed_s := time.monotonic() - began) < seconds:
        now_ms, due = time.time_ns() // 1_000_000, int(elapsed_s * per_s) - sent
        for record in records(replace(load, seed=load.seed + sent), iter([now_ms] * due)):
            _send(producer, topic, _renamed(record, sent), now_ms)
        sent += due
        producer.poll(0.01)
    assert producer.flush(60) == 0
    return sent


def _renamed(record: Record, prefix: int) -> Record:
    """With an event id that no other prefix gives."""
    return record._replace(value=record.value.replace("0190a1b2-", f"{prefix:08x}-", 1))


def _producer(bootstrap_servers: str) -> Producer:
    return Producer(
        {"bootstrap.servers": bootstrap_servers, "compression.type": "lz4", "linger.ms": 5, "batch.num.messages": 2_000}
    )


def _send(producer: Producer, topic: str, record: Record, arrival_ms: int) -> None:
    while True:
        try:
            producer.produce(topic, record.value, record.key, timestamp=arrival_ms)
        except BufferError:
            producer.poll(0.1)
        else:
            return
