"""The item snapshot against the brute-force windows of `tests.oracles`."""

import random

import numpy as np
import pytest

from features.specs import Entity, features_of
from features.tile_rows import TileRow, keyed_tiles, pack
from features.tiles import DAY_TILE_MS, ITEM_TILES
from serving.item_snapshot import ItemSnapshot, SnapshotFeatures
from serving.tile_table import TileTable
from tests.oracles.windows import DAY, MINUTE, Event, tiles_of, window_value

NOW_MS = 1_760_000_000_000
TYPES = ("impression", "impression", "click", "watch", "like", "share", "hide")


def _events(seed: int, count: int = 400, days: float = 40) -> list[Event]:
    rng = random.Random(seed)
    items = [(f"i{k}", f"c{k % 3}", f"r{k % 4}") for k in range(10)]
    return [
        Event(
            "u",
            *rng.choice(items),
            rng.choice(TYPES),
            NOW_MS - int(rng.random() ** 2 * days * DAY),
            rng.randrange(1001),
            1000,
        )
        for _ in range(count)
    ]


def _tiles(events: list[Event], tile_ms: int) -> list[TileRow]:
    return tiles_of(ITEM_TILES, events, tile_ms)


def _check(got: SnapshotFeatures, events: list[Event], entities: tuple[Entity, ...]) -> None:
    field = {Entity.ITEM: "item_id", Entity.CREATOR: "creator_id", Entity.CATEGORY: "category"}
    for entity in entities:
        features = got.by_entity[entity]
        for name in {getattr(event, field[entity]) for event in events}:
            own = [event for event in events if getattr(event, field[entity]) == name]
            want = [window_value(feature, own, got.instant_ms) for feature in features_of(entity)]
            row = features.values_XF[features.rows([name])][0]
            np.testing.assert_allclose(row, want, rtol=1e-12, err_msg=f"{entity} {name}")


ALL = (Entity.ITEM, Entity.CREATOR, Entity.CATEGORY)


@pytest.mark.parametrize("seed", range(5))
def test_upserts_in_any_order_give_the_brute_force_values(seed: int) -> None:
    events = _events(seed)
    streamed = [tile for tile in _tiles(events, ITEM_TILES.tile_ms) if tile.tile_start_ms > NOW_MS - 3 * DAY]
    rows = streamed + _tiles(events, DAY_TILE_MS)
    rows += rows[::3]  # replayed
    random.Random(seed).shuffle(rows)
    snapshot = ItemSnapshot()
    for row in rows:
        snapshot.upsert(row)
    _check(snapshot.finalise_all(NOW_MS), events, ALL)


@pytest.mark.parametrize("seed", range(3))
def test_loading_from_the_store_equals_upserts_and_goes_on_from_there(seed: int) -> None:
    events, later = _events(seed), _events(seed + 100, 60, 0.1)
    rows = _tiles(events, DAY_TILE_MS) + _tiles([e for e in events if e.time_ms > NOW_MS - 3 * DAY], 300_000)
    snapshot = ItemSnapshot()
    snapshot.load(keyed_tiles(ITEM_TILES, [row.key for row in rows], [pack(ITEM_TILES, row) for row in rows]))
    _check(snapshot.finalise_all(NOW_MS), events, ALL)
    recent = [event for event in events if event.time_ms > NOW_MS - 3 * DAY]
    for row in _tiles(recent + later, ITEM_TILES.tile_ms):
        snapshot.upsert(row)
    got = snapshot.finalise_touched(NOW_MS)
    fine = tuple(f for f, feature in enumerate(features_of(Entity.ITEM)) if feature.window_ms <= 2 * DAY)
    items = got.by_entity[Entity.ITEM]
    for name in {event.item_id for event in events + later}:
        own = [event for event in events + later if event.item_id == name]
        want = [window_value(features_of(Entity.ITEM)[f], own, NOW_MS) for f in fine]
        np.testing.assert_allclose(items.values_XF[items.rows([name])][0][list(fine)], want, err_msg=name)


def test_a_quiet_items_hour_falls_to_nothing() -> None:
    snapshot = ItemSnapshot()
    for row in _tiles([Event("u", "i", "c", "r", "click", NOW_MS, 0, 1000)], ITEM_TILES.tile_ms):
        snapshot.upsert(row)
    names = [feature.name for feature in features_of(Entity.ITEM)]
    hour = names.index("item_clicks_1h")
    values = [
        snapshot.finalise_all(instant).by_entity[Entity.ITEM].values_XF[0, hour]
        for instant in (NOW_MS, NOW_MS + 30 * MINUTE, NOW_MS + 70 * MINUTE)
    ]
    assert values == [1, 1, 0]


def test_an_unknown_id_has_empty_windows() -> None:
    items = ItemSnapshot().finalise_all(NOW_MS).by_entity[Entity.ITEM]
    row = items.values_XF[items.rows(["nobody"])][0]
    np.testing.assert_array_equal(row, [feature.default for feature in features_of(Entity.ITEM)])


def test_expired_rows_are_dropped_and_the_rest_stays_found() -> None:
    table = TileTable()
    rows = _tiles(_events(7, 300, 60), DAY_TILE_MS)
    for row in rows:
        table.upsert(row)
    dropped = table.drop_expired(NOW_MS)
    kept = [row for row in rows if row.tile_start_ms >= NOW_MS - 31 * DAY]
    assert dropped == len(rows) - len(kept) > 0
    assert len(table) == len(kept)
    assert all(table.upsert(row) is None for row in kept), "a kept row was not found again"
