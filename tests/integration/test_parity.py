"""Three answers to one question: the online store's while the stream stands still, Spark's as of that instant later
on, and a brute-force count's over the events that had arrived.

Everything is real: broker, Flink job, writer, SQLite store, Spark's ingest, day tiles and sweep.
"""

import random
from bisect import bisect_left
from pathlib import Path

from pyspark.sql import SparkSession

from batch.day_tiles import refresh_families
from batch.lake import TABLES, read_table
from batch.lake_ingest import LakeIngest, run_ingest
from batch.point_in_time import values_as_of
from features.backends import Backend, open_backend
from features.names import MS_PER_HOUR, MS_PER_MINUTE
from features.specs import KEY_FIELDS, Entity, features_of
from tests.oracles.keyed_sets import assert_sets_are_those_of
from tests.oracles.stream import Record, as_window_events, judge, produce, stream
from tests.oracles.windows import assert_windows_are_those_of
from tests.stream_chain import Chain, open_chain

RECORDS, STEP_MS = 5_000, 20_000
"""With the horizon and the quiet hours under four days: the store still has the streamed tiles of all of them."""
QUIET_MS = (0, 10 * MS_PER_MINUTE, MS_PER_HOUR, 3 * MS_PER_HOUR)
PAUSES = 6
KILLED_AT = 2
Values = dict[tuple[str, ...], list[float]]


def test_store_spark_and_oracle_agree_at_every_pause(spark: SparkSession, tmp_path: Path) -> None:
    rng = random.Random(31)
    # Everybody is quiet for a while at each pause, up to an edge of some window.
    ends = [*sorted(rng.sample(range(RECORDS // 4, RECORDS), PAUSES - 1)), RECORDS]
    quiet = {end: rng.choice(QUIET_MS) for end in ends}
    records = stream(rng, RECORDS, step_ms=STEP_MS, gaps_ms=quiet)
    # What came earlier is there earlier: otherwise nobody could say what had arrived.
    records.sort(key=lambda record: record.arrival_ms)
    arrivals_ms = [record.arrival_ms for record in records]
    newest_ms = records[-1].arrival_ms + max(QUIET_MS)

    with (
        open_chain(tmp_path, "sqlite", newest_ms) as chain,
        open_backend(chain.location, chain.topics.version) as store,
    ):
        lake = LakeIngest(
            bootstrap_servers=chain.broker.bootstrap_servers,
            lake=tmp_path / "lake",
            checkpoints=tmp_path / "checkpoints",
            topics=chain.topics,
        )
        said: dict[int, dict[Entity, Values]] = {}
        sent = 0
        for pause, number in enumerate(ends):
            # Some records are broken, so an event's number is less than its place.
            end = number + len(records) - RECORDS
            produce(chain.broker.bootstrap_servers, chain.topics.events, records[sent:end])
            sent = end
            if pause == KILLED_AT:
                _kill_under_load(chain)
            chain.wait_until_stored(store)
            next_ms = records[end].arrival_ms if end < len(records) else newest_ms + 1
            instant_ms = rng.choice([next_ms, rng.randint(records[end - 1].arrival_ms + 1, next_ms)])
            assert bisect_left(arrivals_ms, instant_ms) == end, "what was sent is what had arrived"
            said[instant_ms] = _agrees_with_oracle(store, records[:end], instant_ms)
        run_ingest(spark, lake)
        _send_day_tiles(spark, lake, instant_ms)
        chain.wait_until_stored(store)
        assert _agrees_with_oracle(store, records, instant_ms) == said[instant_ms]
    assert len(said) == PAUSES
    _agrees_with_spark(spark, lake, said)


def _kill_under_load(chain: Chain) -> None:
    """What was just produced is still on its way."""
    chain.kill("flink", "writer")
    chain.start("writer", "flink")


def _send_day_tiles(spark: SparkSession, lake: LakeIngest, now_ms: int) -> None:
    reports = refresh_families(spark, lake.lake, now_ms, lake.bootstrap_servers, lake.topics)
    assert all(report["rows"] for report in reports), "a day is over"


def _agrees_with_oracle(store: Backend, arrived: list[Record], instant_ms: int) -> dict[Entity, Values]:
    """Windows and keyed sets of everyone; returns the windows."""
    counted = judge(arrived).counted
    assert_sets_are_those_of(store, {event.user_id for event in counted}, counted, instant_ms)
    plain = as_window_events(counted)
    return {entity: assert_windows_are_those_of(store, entity, plain, instant_ms) for entity in Entity}


def _agrees_with_spark(spark: SparkSession, lake: LakeIngest, said: dict[int, dict[Entity, Values]]) -> None:
    """Spark, asked for all instants at once when all is over, says what the store said at each."""
    events = read_table(spark, lake.lake, TABLES.silver_events)
    for entity in Entity:
        names, keys = [feature.name for feature in features_of(entity)], KEY_FIELDS[entity]
        wanted = {(*key, at_ms): values for at_ms, of in said.items() for key, values in of[entity].items()}
        schema = ", ".join([*(f"{key} STRING" for key in keys), "t_ms BIGINT"])
        rows = values_as_of(events, spark.createDataFrame(list(wanted), schema), entity).collect()
        got = {(*(row[key] for key in keys), row["t_ms"]): [row[name] for name in names] for row in rows}
        assert got == wanted, entity
