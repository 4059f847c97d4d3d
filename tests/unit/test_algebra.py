"""Windows finalised from tiles, judged by a brute-force count over the events themselves.

The oracle is `tests.oracles.windows`.
"""

import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.algebra import Finaliser, TileRows, finalise_windows
from features.events import EventType
from features.specs import KEY_FIELDS, NEVER_MS, Aggregate, Entity, features_of
from features.tile_rows import TileRow, keyed_tiles, pack
from features.tiles import FAMILIES, TileFamily, family_of
from tests.oracles.windows import DAY, HOUR, MINUTE, Event, tiles_of, window_value

NOW_MS = 1_800_000_034_567


def store_like(family: TileFamily, events: list[Event], instant_ms: int, rng: random.Random) -> list[TileRow]:
    """What a store may hold: streamed tiles of recent days, day tiles of past days, some of them behind.

    Every past day is complete on at least one side; the other side may lack events, or all of them.
    """
    today = instant_ms // DAY
    rows = []
    by_day: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        by_day[event.time_ms // DAY].append(event)
    for day, of_day in by_day.items():
        part = rng.sample(of_day, rng.randrange(len(of_day) + 1))
        fine_matters = day >= today - 2
        streamed, daily = (of_day, part) if fine_matters or rng.random() < 0.5 else (part, of_day)
        rows += tiles_of(family, streamed, family.tile_ms) + tiles_of(family, daily, DAY)
    rng.shuffle(rows)
    return rows


def finalised(
    entity: Entity, events: list[Event], instant_ms: int, rng: random.Random
) -> dict[tuple[str, ...], list[float]]:
    family = family_of(entity)
    tiles = store_like(family, events, instant_ms, rng)
    keyed = keyed_tiles(family, [row.key for row in tiles], [pack(family, row) for row in tiles])
    places = [family.key_fields.index(field) for field in KEY_FIELDS[entity]]
    groups = {tuple(key[place] for place in places): None for key in keyed.keys}
    index = {key: group for group, key in enumerate(groups)}
    group_K = [index[tuple(key[place] for place in places)] for key in keyed.keys]
    group_T = np.array(group_K, dtype=np.int64)[keyed.rows.key_T] if group_K else np.zeros(0, dtype=np.int64)
    features = features_of(entity)
    out_GF = finalise_windows(features, family.columns, keyed.rows, group_T, len(index), instant_ms)
    return {key: out_GF[group].tolist() for key, group in index.items()}


def random_events(rng: random.Random, number: int) -> list[Event]:
    """Times that crowd the edges of minutes, days and windows."""
    edges = [0, MINUTE, 5 * MINUTE, 10 * MINUTE, HOUR, DAY, 2 * DAY, 3 * DAY, 7 * DAY, 30 * DAY, 31 * DAY]
    events = []
    for _ in range(number):
        edge_ms = NOW_MS - rng.choice(edges) if rng.random() < 0.5 else NOW_MS - rng.randrange(33 * DAY)
        if rng.random() < 0.5:
            edge_ms -= edge_ms % rng.choice([MINUTE, 5 * MINUTE, DAY])
        item = rng.randrange(4)
        duration_ms = rng.choice([1_000, 20_000])
        events.append(
            Event(
                user_id=rng.choice("ab"),
                item_id=f"i{item}",
                category=f"c{item % 2}",
                creator_id=f"k{item % 3}",
                kind=rng.choice([kind.value for kind in EventType]),
                time_ms=edge_ms + rng.choice([-1, 0, 1]),
                watch_ms=rng.choice([0, duration_ms * 9 // 10 - 1, duration_ms * 9 // 10, duration_ms]),
                duration_ms=duration_ms,
            )
        )
    return events


@pytest.mark.parametrize("entity", Entity)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), number=st.integers(0, 120), shift=st.integers(-2 * DAY, 40 * DAY))
def test_windows_are_those_of_the_brute_force(entity: Entity, seed: int, number: int, shift: int) -> None:
    rng = random.Random(seed)
    events = random_events(rng, number)
    instant_ms = NOW_MS + rng.choice([0, 0, shift, -(NOW_MS % DAY), 7 * DAY])
    got = finalised(entity, events, instant_ms, rng)
    for key, values in got.items():
        own = [e for e in events if tuple(getattr(e, field) for field in KEY_FIELDS[entity]) == key]
        for feature, value in zip(features_of(entity), values, strict=True):
            assert value == pytest.approx(window_value(feature, own, instant_ms), rel=1e-12, abs=0), feature.name


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_users_total_is_the_regrouped_categories(seed: int) -> None:
    """The online read merges by category once, and takes the user from that."""
    rng = random.Random(seed)
    events = [event for event in random_events(rng, 80) if event.user_id == "a"]
    family = family_of(Entity.USER)
    tiles = store_like(family, events, NOW_MS, rng)
    keyed = keyed_tiles(family, [row.key for row in tiles], [pack(family, row) for row in tiles])
    finaliser = Finaliser(features_of(Entity.USER), family.columns)
    merged = finaliser.merge(keyed.rows, keyed.rows.key_T, len(keyed.keys), NOW_MS)
    total_F = finaliser.finalise(finaliser.regroup(merged), NOW_MS)[0]
    for feature, value in zip(features_of(Entity.USER), total_F, strict=True):
        assert value == pytest.approx(window_value(feature, events, NOW_MS), rel=1e-12, abs=0), feature.name


def test_quiet_user_falls_to_zero_with_time_alone() -> None:
    """
    event  |x
    read   | 10 min: 1      11 min: 0
    """
    event = Event("a", "i0", "c0", "k0", "click", NOW_MS, 0, 1)
    rng = random.Random(0)
    names = [feature.name for feature in features_of(Entity.USER)]
    for later_ms, expected in ((0, 1), (10 * MINUTE, 1), (11 * MINUTE, 0)):
        values = finalised(Entity.USER, [event], NOW_MS + later_ms, rng)[("a",)]
        assert values[names.index("user_clicks_10m")] == expected


@pytest.mark.parametrize(
    ("day_n", "streamed_n", "expected"),
    [(5, 3, 5), (3, 5, 5), (4, 4, 4), (0, 6, 6), (6, 0, 6)],
)
def test_each_day_is_read_from_the_side_that_counted_more(day_n: int, streamed_n: int, expected: int) -> None:
    family = family_of(Entity.USER)
    feature = next(feature for feature in features_of(Entity.USER) if feature.name == "user_clicks_30d")
    day_ms = NOW_MS // DAY * DAY - 3 * DAY
    halves = (streamed_n // 2, streamed_n - streamed_n // 2)
    sizes = [(DAY, day_ms, day_n), (MINUTE, day_ms, halves[0]), (MINUTE, day_ms + HOUR, halves[1])]
    rows = [row for row in sizes if row[2]]
    clicks = [column.name for column in family.columns].index("clicks")
    values_TK = np.zeros((len(rows), len(family.columns)), dtype=np.int64)
    values_TK[:, clicks] = [n for _, _, n in rows]
    tiles = TileRows(
        key_T=np.zeros(len(rows), dtype=np.int64),
        tile_ms_T=np.array([row[0] for row in rows]),
        tile_start_T=np.array([row[1] for row in rows]),
        n_T=np.array([row[2] for row in rows]),
        values_TK=values_TK,
    )
    got_GF = finalise_windows([feature], family.columns, tiles, tiles.key_T, 1, NOW_MS)
    assert got_GF.tolist() == [[expected]]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_neither_order_nor_layout_of_the_rows_matters(family: TileFamily) -> None:
    rng = random.Random(4)
    tiles = store_like(family, random_events(rng, 400), NOW_MS, rng)
    keyed = keyed_tiles(family, [row.key for row in tiles], [pack(family, row) for row in tiles])
    rows = keyed.rows
    finaliser = Finaliser([f for entity in family.entities for f in features_of(entity)], family.columns)
    merged_WGK = finaliser.merge(rows, rows.key_T, len(keyed.keys), NOW_MS)
    turned = rows.reordered(np.arange(len(rows.n_T))[::-1])
    strided = replace(turned, key_T=np.repeat(turned.key_T, 2)[::2], values_TK=np.asfortranarray(turned.values_TK))
    strided.values_TK.flags.writeable = False
    np.testing.assert_array_equal(finaliser.merge(strided, strided.key_T, len(keyed.keys), NOW_MS), merged_WGK)


@pytest.mark.parametrize("group", [-1, 1])
def test_a_group_that_is_not_there_is_refused(group: int) -> None:
    family = family_of(Entity.USER)
    row = TileRow(("u", "c"), MINUTE, NOW_MS - NOW_MS % MINUTE, 1, NOW_MS, (1,) * len(family.columns))
    rows = keyed_tiles(family, [row.key], [pack(family, row)]).rows
    with pytest.raises(IndexError, match="group_T"):
        Finaliser(features_of(Entity.USER), family.columns).merge(rows, np.array([group]), 1, NOW_MS)


def test_empty_windows_have_the_defaults() -> None:
    for entity in Entity:
        features = features_of(entity)
        empty_F = Finaliser(features, family_of(entity).columns).empty()
        assert empty_F.tolist() == [feature.default for feature in features]
    since = [feature for feature in features_of(Entity.USER) if feature.aggregate is Aggregate.SINCE_LAST]
    assert [feature.default for feature in since] == [NEVER_MS]
