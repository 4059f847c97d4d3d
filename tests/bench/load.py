"""A steady load of realistic events: many users, items by popularity, a few of each kind of fault."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from features.events import EventType

TYPES = tuple(EventType)
_SHARES = {
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
CATEGORIES = 20
ITEMS_PER_CREATOR = 10
CHUNK = 50_000
DUPLICATES, DEAD, LATE = 0.01, 0.001, 0.001


@dataclass(frozen=True, kw_only=True)
class Load:
    """Who acts on what."""

    users: int = 100_000
    items: int = 20_000
    seed: int = 7


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of the events topic."""

    key: bytes
    value: bytes


def records(load: Load, times_ms: Iterator[int]) -> Iterator[Record]:
    """One record a time, which is its event time but for a jitter of up to two seconds into the past.

    Users act equally often; an item's popularity falls with the root of its rank. One in a hundred records is a copy,
    one in a thousand each is broken or beyond the horizon.
    """
    rng = np.random.default_rng(load.seed)
    weight_I = np.arange(1, load.items + 1) ** -0.5
    share_I = np.cumsum(weight_I / weight_I.sum())
    share_E = np.cumsum([_SHARES[kind] for kind in TYPES])
    number = 0
    last: Record | None = None
    while True:
        user_N = rng.integers(load.users, size=CHUNK).tolist()
        item_N = np.searchsorted(share_I, rng.random(CHUNK)).tolist()
        kind_N = np.searchsorted(share_E, rng.random(CHUNK) * share_E[-1]).tolist()
        fault_N = rng.random(CHUNK).tolist()
        early_N = rng.integers(2_000, size=CHUNK).tolist()
        watched_N = rng.integers(1, 101, size=CHUNK).tolist()
        for user, item, kind, fault, early, watched in zip(
            user_N, item_N, kind_N, fault_N, early_N, watched_N, strict=True
        ):
            time_ms = next(times_ms, None)
            if time_ms is None:
                return
            number += 1
            if fault < DUPLICATES and last is not None:
                yield last
                continue
            fault -= DUPLICATES
            if fault < DEAD:
                yield Record(key=b"dead", value=b'{"event_id":')
                continue
            late_ms = 3 * 86_400_000 if fault < DEAD + LATE else 0
            event = _event(number, user, item, TYPES[kind], time_ms - early - late_ms, watched)
            last = Record(key=event["user_id"].encode(), value=json.dumps(event, separators=(",", ":")).encode())
            yield last


def _event(number: int, user: int, item: int, kind: EventType, time_ms: int, watched: int) -> dict[str, str | int]:
    event: dict[str, str | int] = {
        "event_id": f"0190a1b2-{number:012x}",
        "event_type": kind.value,
        "event_time_ms": time_ms,
        "user_id": f"user-{user:06d}",
        "item_id": f"item-{item:06d}",
        "category": f"category-{item % CATEGORIES:02d}",
        "creator_id": f"creator-{item // ITEMS_PER_CREATOR:05d}",
        "request_id": f"0190a1b2-7c3d-{number // 20:012x}",
        "position": number % 20,
        "device": ("phone", "tablet", "tv", "web")[user % 4],
        "schema_version": 1,
    }
    if kind is EventType.WATCH:
        event |= {"watch_ms": watched * 600, "duration_ms": 60_000}
    return event
