"""What the serving benchmark serves: a catalogue, users in an online store, and item tiles that come all the time."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from confluent_kafka import Producer

from features.backends import Backend
from features.events import EventType
from features.items import Item
from features.names import MS_PER_DAY, MS_PER_SECOND
from features.tile_rows import TileRow
from features.tiles import DAY_TILE_MS, ITEM_TILES, USER_CATEGORY_TILES, Merge, TileFamily, tile_start
from features.user_state import Interaction


@dataclass(frozen=True, kw_only=True)
class World:
    """Sizes; they stand beside every figure."""

    items: int = 50_000
    creators: int = 5_000
    categories: int = 24
    languages: int = 8
    users: int = 200
    user_minute_tiles: int = 300
    """Of one user, spread over six categories and the last two days."""
    user_day_tiles: int = 168
    history: int = 100
    seen: int = 1_000
    item_day_tiles: int = 3
    item_tiles: int = 2
    """Five-minute tiles of one item, within the last hours."""
    live_tiles_per_s: int = 500
    """Rows of the item tile topic that come while requests are answered, each of another item."""
    candidates: int = 500
    returned: int = 50
    seed: int = 5

    def item(self, i: int, now_ms: int) -> Item:
        """One item; the older ones are a year old."""
        return Item(
            item_id=f"item-{i:06}",
            category=f"category-{i % self.categories:02}",
            creator_id=f"creator-{i % self.creators:05}",
            language=f"l{i % self.languages}",
            duration_ms=30_000 + i % 300 * 1_000,
            published_at_ms=now_ms - i * 365 * MS_PER_DAY // self.items,
        )

    def item_key(self, i: int) -> tuple[str, str, str]:
        """The key of its tiles."""
        return f"item-{i:06}", f"category-{i % self.categories:02}", f"creator-{i % self.creators:05}"

    def user_id(self, u: int) -> str:
        """One user's id."""
        return f"user-{u:05}"


def fill_store(world: World, backend: Backend, now_ms: int) -> None:
    """Every user with full sets and windows, and every item with tiles of some days and of today."""
    rng = np.random.default_rng(world.seed)
    for u in range(world.users):
        backend.write_tiles(USER_CATEGORY_TILES.name, _user_tiles(world, u, now_ms, rng), {})
        backend.write_interactions(_interactions(world, u, now_ms, rng), {})
    for first in range(0, world.items, 2_000):
        rows = [
            _tile(
                ITEM_TILES, world.item_key(i), tile_ms, tile_start(now_ms, tile_ms) - age * tile_ms, 1 + (i + age) % 9
            )
            for i in range(first, min(first + 2_000, world.items))
            for tile_ms, ages in (
                (DAY_TILE_MS, range(1, 1 + world.item_day_tiles)),
                (ITEM_TILES.tile_ms, range(i % 7, i % 7 + world.item_tiles)),
            )
            for age in ages
        ]
        backend.write_tiles(ITEM_TILES.name, rows, {})


def _user_tiles(world: World, u: int, now_ms: int, rng: np.random.Generator) -> list[TileRow]:
    minutes = rng.choice(2 * MS_PER_DAY // USER_CATEGORY_TILES.tile_ms, world.user_minute_tiles, replace=False)
    places = [(USER_CATEGORY_TILES.tile_ms, int(minute)) for minute in minutes]
    places += [(DAY_TILE_MS, 1 + day // 6) for day in range(world.user_day_tiles)]
    return [
        _tile(
            USER_CATEGORY_TILES,
            (world.user_id(u), f"category-{(u + place % 6) % world.categories:02}"),
            tile_ms,
            tile_start(now_ms, tile_ms) - age * tile_ms,
            1 + place % 9,
        )
        for place, (tile_ms, age) in enumerate(places)
    ]


def _interactions(world: World, u: int, now_ms: int, rng: np.random.Generator) -> list[Interaction]:
    """Items seen, the newest hundred of them watched, some creators followed."""
    chosen, user_id = rng.choice(world.items, world.seen, replace=False), world.user_id(u)
    kinds = [EventType.FOLLOW] * 10 + [EventType.WATCH] * (world.history - 10)
    kinds += [EventType.IMPRESSION] * (world.seen - len(kinds))
    return [
        Interaction(
            event_id=f"{user_id}-{place:06}",
            event_type=kind,
            event_time_ms=now_ms - place * 60 * MS_PER_SECOND,
            user_id=user_id,
            **dict(zip(("item_id", "category", "creator_id"), world.item_key(int(i)), strict=True)),
            **({"watch_ms": 30_000, "duration_ms": 60_000} if kind is EventType.WATCH else {}),
        )
        for place, (i, kind) in enumerate(zip(chosen, kinds, strict=True))
    ]


def _tile(family: TileFamily, key: tuple[str, ...], tile_ms: int, start_ms: int, n: int) -> TileRow:
    values = tuple(start_ms + n if column.merge is Merge.MAX else n for column in family.columns)
    return TileRow(key, tile_ms, start_ms, n, start_ms + n, values)


@contextmanager
def live_tiles(world: World, bootstrap_servers: str, topic: str) -> Iterator[None]:
    """Has another process send item tiles of now until the end."""
    process = get_context("spawn").Process(target=_send_tiles, args=(world, bootstrap_servers, topic), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _send_tiles(world: World, bootstrap_servers: str, topic: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 20, "log_level": 0})
    rng, sent, began_s = np.random.default_rng(world.seed), 0, time.monotonic()
    while True:
        due = int((time.monotonic() - began_s) * world.live_tiles_per_s) - sent
        now_ms = time.time_ns() // 1_000_000
        for i in rng.integers(world.items, size=due).tolist():
            sent += 1
            start_ms = tile_start(now_ms, ITEM_TILES.tile_ms)
            tile = _tile(ITEM_TILES, world.item_key(i), ITEM_TILES.tile_ms, start_ms, sent)
            key = dict(zip(ITEM_TILES.key_fields, tile.key, strict=True)) | {"tile_ms": tile.tile_ms}
            row = key | {"tile_start_ms": start_ms, "n": sent, "max_event_time_ms": tile.max_event_time_ms}
            row |= dict(zip((column.name for column in ITEM_TILES.columns), tile.values, strict=True))
            producer.produce(topic, json.dumps(row).encode(), json.dumps(key | {"tile_start_ms": start_ms}).encode())
        producer.poll(0)
        time.sleep(0.02)


def publish_catalogue(world: World, bootstrap_servers: str, topic: str, now_ms: int) -> None:
    """Sends every item to the catalogue's topic."""
    producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 50, "compression.type": "lz4"})
    for i in range(world.items):
        item = world.item(i, now_ms)
        producer.produce(topic, item.to_json(), item.item_id)
        producer.poll(0)
    producer.flush(30)


def write_requests(world: World, path: Path) -> None:
    """The users' requests in turn, as JSON for the load generator."""
    requests = [{"user_id": world.user_id(u), "count": world.returned, "device": "phone"} for u in range(world.users)]
    path.write_text(json.dumps(requests))


def described(world: World) -> dict[str, object]:
    """What stands beside every figure."""
    return {**asdict(world), "weights": "drawn, not trained"}
