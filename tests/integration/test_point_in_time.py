"""Spark's features as of any instant against a brute-force oracle that shares no code with them."""

import random
from collections.abc import Iterable

import pytest
from pyspark.sql import DataFrame, SparkSession

from batch.histories import histories_as_of
from batch.point_in_time import values_as_of
from features.events import HORIZON_MS
from features.specs import KEY_FIELDS, Entity, WindowedFeature, features_of
from tests.oracles.windows import Event, window_value

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
START_MS = 1_760_000_000_000
SPAN_MS = 40 * DAY_MS
COLUMNS = (
    "event_id STRING, event_type STRING, event_time_ms BIGINT, arrival_ms BIGINT, user_id STRING, item_id STRING, "
    "category STRING, creator_id STRING, watch_ms BIGINT, duration_ms BIGINT"
)
TYPES = ["impression"] * 6 + ["click"] * 3 + ["watch"] * 3 + ["like", "share", "follow", "hide", "unlike"]
DELAYS_MS = [0, 1, 40, MINUTE_MS, 12 * MINUTE_MS, 61 * MINUTE_MS, 25 * HOUR_MS, HORIZON_MS]
Row = dict[str, object]


def random_events(rng: random.Random, count: int) -> list[Row]:
    """Bursts around tile and day edges; out of order, late up to the horizon, early by a skewed clock."""
    events = []
    for n in range(count):
        moment = START_MS + rng.choice([rng.randrange(SPAN_MS), rng.randrange(40) * DAY_MS, rng.randrange(3 * HOUR_MS)])
        moment += rng.choice([-1, 0, 1, rng.randrange(2 * MINUTE_MS)])
        delay = rng.choice([0, 5, 20, rng.choice(DELAYS_MS), -rng.randrange(5 * MINUTE_MS), rng.randrange(3_000)])
        event_type = rng.choice(TYPES)
        watched = event_type == "watch"
        item = rng.randrange(6)
        events.append(
            {
                "event_id": f"e{n:05d}",
                "event_type": event_type,
                "event_time_ms": moment,
                "arrival_ms": moment + delay,
                "user_id": f"u{rng.randrange(4)}",
                "item_id": f"i{item}",
                "category": f"c{item % 3}",
                "creator_id": f"k{item % 2}",
                "watch_ms": rng.choice([0, 900, 899, 5_000]) if watched else None,
                "duration_ms": 1_000 if watched or rng.random() < 0.3 else None,
            }
        )
    return events


def random_instants(rng: random.Random, events: list[Row], count: int) -> list[int]:
    """Instants where something changes: at arrivals, tile edges and window edges, and a millisecond either side."""
    instants = []
    for _ in range(count):
        event = rng.choice(events)
        window = rng.choice([0, 10 * MINUTE_MS, HOUR_MS, DAY_MS, 7 * DAY_MS, 30 * DAY_MS])
        tile = rng.choice([1, MINUTE_MS, 5 * MINUTE_MS, DAY_MS])
        edge = rng.choice([event["arrival_ms"], event["event_time_ms"] // tile * tile + tile + window])
        instants.append(edge + rng.choice([-1, 0, 1, rng.randrange(MINUTE_MS)]))
    return instants


def oracle(feature: WindowedFeature, events: Iterable[Row], instant_ms: int) -> float:
    """`tests.oracles.windows` over the events that had arrived before the instant."""
    return float(window_value(feature, [as_event(e) for e in events if e["arrival_ms"] < instant_ms], instant_ms))


def as_event(row: Row) -> Event:
    names = ("user_id", "item_id", "category", "creator_id", "event_type", "event_time_ms")
    return Event(*(row[name] for name in names), row["watch_ms"] or 0, row["duration_ms"] or 1)


@pytest.fixture(scope="module")
def events() -> list[Row]:
    return random_events(random.Random(11), 1_500)


@pytest.fixture(scope="module")
def table(spark: SparkSession, events: list[Row]) -> DataFrame:
    return spark.createDataFrame([tuple(event.values()) for event in events], COLUMNS).cache()


def queries_of(spark: SparkSession, asked: list[Row]) -> DataFrame:
    names = list(asked[0])
    columns = ", ".join(f"{name} {'BIGINT' if name == 't_ms' else 'STRING'}" for name in names)
    return spark.createDataFrame([tuple(row[name] for name in names) for row in asked], columns)


@pytest.mark.parametrize("entity", list(Entity))
def test_features_equal_the_oracle_bit_for_bit(
    spark: SparkSession, table: DataFrame, events: list[Row], entity: Entity
) -> None:
    rng, keys = random.Random(f"{entity}"), KEY_FIELDS[entity]
    asked = []
    for instant_ms in random_instants(rng, events, 250):
        of = rng.choice(events)
        asked.append({**{key: of[key] for key in keys}, "t_ms": instant_ms})
    asked.append({**dict.fromkeys(keys, "unheard-of"), "t_ms": START_MS})
    asked.append(asked[0])
    got = values_as_of(table, queries_of(spark, asked), entity).collect()
    assert len(got) == len({tuple(row.values()) for row in asked}), "each distinct query is answered once"
    for row in got:
        own = [event for event in events if all(event[key] == row[key] for key in keys)]
        wanted = {feature.name: oracle(feature, own, row.t_ms) for feature in features_of(entity)}
        assert {name: row[name] for name in wanted} == wanted, f"{[row[key] for key in keys]} at {row.t_ms}"


def test_histories_equal_the_oracle(spark: SparkSession, table: DataFrame, events: list[Row]) -> None:
    rng = random.Random(5)
    asked = [{"user_id": f"u{rng.randrange(5)}", "t_ms": t} for t in random_instants(rng, events, 300)]
    got = histories_as_of(table, queries_of(spark, asked)).collect()
    assert len(got) == len({(row["user_id"], row["t_ms"]) for row in asked})
    for row in got:
        past = [e for e in events if e["user_id"] == row.user_id and e["arrival_ms"] < row.t_ms]
        past = [e for e in past if e["event_type"] != "impression"]
        newest = sorted(past, key=lambda e: (e["event_time_ms"], e["event_id"]), reverse=True)[:50]
        assert row.history_item_ids == [e["item_id"] for e in newest]
        assert row.history_event_types == [e["event_type"] for e in newest]
        assert row.history_event_times_ms == [e["event_time_ms"] for e in newest]
    assert max(len(row.history_item_ids) for row in got) == 50, "the bound is met"
