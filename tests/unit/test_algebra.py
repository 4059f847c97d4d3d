"""Windows finalised from tiles, judged by a brute-force count over the events themselves.

The oracle below shares no code with `features.algebra` or `features.tiles`: it knows events, floors and the words of
the design ("tiles from floor(t - window) to floor(t)"), and nothing of columns, merges or arrays.
"""

import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.algebra import Finaliser, TileRows, finalise_windows
from features.events import EventType
from features.specs import KEY_FIELDS, NEVER_MS, Aggregate, Entity, WindowedFeature, features_of
from features.tile_rows import TileRow, keyed_tiles, pack
from features.tiles import FAMILIES, TileFamily, family_of, selects

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
NOW_MS = 1_800_000_034_567


@dataclass(frozen=True)
class Event:
    user_id: str
    item_id: str
    category: str
    creator_id: str
    kind: str
    time_ms: int
    watch_ms: int
    duration_ms: int


# The oracle.


def counts(feature: WindowedFeature, event: Event, which: str) -> bool:
    selection = feature.events if which == "events" else feature.per
    assert selection is not None
    if event.kind not in {kind.value for kind in selection.event_types}:
        return False
    if selection.min_watch_percent is None:
        return True
    return event.watch_ms / event.duration_ms * 100 >= selection.min_watch_percent


def oracle(feature: WindowedFeature, events: list[Event], instant_ms: int) -> float:
    tile_ms = DAY if feature.window_ms > 2 * DAY else MINUTE if feature.entity.startswith("user") else 5 * MINUTE
    own_ms = MINUTE if feature.entity.startswith("user") else 5 * MINUTE
    from_ms = (instant_ms - feature.window_ms) // tile_ms * tile_ms
    until_ms = instant_ms // own_ms * own_ms + own_ms
    inside = [event for event in events if from_ms <= event.time_ms < until_ms]
    chosen = [event for event in inside if counts(feature, event, "events")]
    amounts = [event.watch_ms for event in chosen]
    if feature.aggregate == "count":
        return len(chosen)
    if feature.aggregate == "sum":
        return sum(amounts)
    if feature.aggregate == "mean":
        return sum(amounts) / len(amounts) if amounts else feature.default
    if feature.aggregate == "rate":
        base = [event for event in inside if counts(feature, event, "per")]
        return len(chosen) / len(base) if base else feature.default
    assert feature.aggregate == "since_last"
    return max(instant_ms - max(event.time_ms for event in chosen), 0) if chosen else feature.default


# The tiles, built event by event.


def build_tiles(family: TileFamily, events: list[Event], tile_ms: int) -> list[TileRow]:
    held: dict[tuple[tuple[str, ...], int], list[Event]] = defaultdict(list)
    for event in events:
        key = tuple(getattr(event, field) for field in family.key_fields)
        held[key, event.time_ms // tile_ms * tile_ms].append(event)
    rows = []
    for (key, start_ms), inside in held.items():
        values = []
        for column in family.columns:
            own = [e for e in inside if selects(column.events, EventType(e.kind), e.watch_ms, e.duration_ms)]
            amounts = {
                None: [1] * len(own),
                "watch_ms": [e.watch_ms for e in own],
                "event_time_ms": [e.time_ms for e in own],
            }
            added = amounts[column.field]
            values.append(sum(added) if column.merge == "add" else max(added, default=0))
        newest_ms = max(event.time_ms for event in inside)
        rows.append(TileRow(key, tile_ms, start_ms, len(inside), newest_ms, tuple(values)))
    return rows


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
        rows += build_tiles(family, streamed, family.tile_ms) + build_tiles(family, daily, DAY)
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
            assert value == pytest.approx(oracle(feature, own, instant_ms), rel=1e-12, abs=0), feature.name


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
        assert value == pytest.approx(oracle(feature, events, NOW_MS), rel=1e-12, abs=0), feature.name


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
def test_many_rows_are_merged_as_few_are(family: TileFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above `MAX_ROWS_AT_ONCE` the windows go one at a time."""
    rng = random.Random(4)
    tiles = store_like(family, random_events(rng, 400), NOW_MS, rng)
    keyed = keyed_tiles(family, [row.key for row in tiles], [pack(family, row) for row in tiles])
    finaliser = Finaliser([f for entity in family.entities for f in features_of(entity)], family.columns)
    together = finaliser.merge(keyed.rows, keyed.rows.key_T, len(keyed.keys), NOW_MS)
    monkeypatch.setattr("features.algebra.MAX_ROWS_AT_ONCE", 0)
    apart = finaliser.merge(keyed.rows, keyed.rows.key_T, len(keyed.keys), NOW_MS)
    np.testing.assert_array_equal(together, apart)


def test_empty_windows_have_the_defaults() -> None:
    for entity in Entity:
        features = features_of(entity)
        empty_F = Finaliser(features, family_of(entity).columns).empty()
        assert empty_F.tolist() == [feature.default for feature in features]
    since = [feature for feature in features_of(Entity.USER) if feature.aggregate is Aggregate.SINCE_LAST]
    assert [feature.default for feature in since] == [NEVER_MS]
