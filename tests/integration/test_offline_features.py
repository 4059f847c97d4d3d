"""Day tiles, offline tables and training examples from one small lake, judged by plain Python."""

import datetime
import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from confluent_kafka import Consumer
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from batch.backfill import Filling, run_backfill
from batch.backfill_plan import BackfillError, checked
from batch.day_tiles import refresh_families
from batch.erase_lake import erase_from_lake
from batch.lake import TABLES, create_tables, read_table
from batch.lake_ingest import LakeIngest
from batch.offline_features import OfflineError, OfflineRun, run_offline_features
from batch.offline_tables import windowed_values_at
from batch.point_in_time import values_as_of
from batch.training_examples import EmptyLakeError, ExampleRun, run_examples
from features.daily import ACTIVITY_VIEWS
from features.erasure import digest_of
from features.names import Topics
from features.specs import KEY_FIELDS, WINDOWED_FEATURES, Entity, features_of
from features.tiles import FAMILIES, USER_CATEGORY_TILES

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
NOW_MS = 1_760_000_000_000 // DAY_MS * DAY_MS + 10 * HOUR_MS
FIRST_MS = NOW_MS - 5 * DAY_MS
Row = dict[str, object]


def silver(rng: random.Random, count: int) -> list[Row]:
    """Impressions, each sometimes followed by reactions; some arrive as late as the horizon allows."""
    rows: list[Row] = []
    for n in range(count):
        item, user = rng.randrange(8), f"u{rng.randrange(5)}"
        shown = FIRST_MS + rng.randrange(NOW_MS - FIRST_MS - HOUR_MS)
        base = {"user_id": user, "item_id": f"i{item}", "category": f"c{item % 3}", "creator_id": f"k{item % 2}"}
        base |= {"request_id": f"r{n}", "device": "phone", "schema_version": 1}
        rows.append({**base, "event_type": "impression", "event_time_ms": shown, "position": n % 10})
        for event_type in rng.sample(["click", "watch", "like", "share", "hide", "follow"], rng.randrange(4)):
            at = shown + rng.choice([0, 1_000, HOUR_MS, 23 * HOUR_MS, 24 * HOUR_MS])
            watch = {"watch_ms": rng.choice([100, 900, 5_000]), "duration_ms": 1_000} if event_type == "watch" else {}
            of_request = {} if rng.random() < 0.2 else {"request_id": f"r{n if rng.random() < 0.8 else n + 1}"}
            rows.append(
                {**base, "request_id": None, **of_request, **watch, "event_type": event_type, "event_time_ms": at}
            )
    for n, row in enumerate(rows):
        delay = rng.choice([10, 20, HOUR_MS, 2 * DAY_MS])
        row |= {"event_id": f"e{n}", "arrival_ms": row["event_time_ms"] + delay}
        row |= {"topic": "t", "partition": 0, "offset": n, "event_date": utc_date(row["event_time_ms"])}
    return rows


def utc_date(time_ms: int) -> datetime.date:
    return datetime.datetime.fromtimestamp(time_ms / 1000, tz=datetime.UTC).date()


def add_events(spark: SparkSession, lake: Path, rows: list[Row]) -> None:
    schema = read_table(spark, lake, TABLES.silver_events).schema
    table = spark.createDataFrame([tuple(row.get(name) for name in schema.names) for row in rows], schema)
    table.write.format("delta").mode("append").save(str(lake / TABLES.silver_events))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return silver(random.Random(21), 250)


@pytest.fixture(scope="module")
def lake(spark: SparkSession, rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("offline") / "lake"
    create_tables(path)
    add_events(spark, path, rows)
    schema = read_table(spark, path, TABLES.items).schema
    item = {"language": "en", "duration_ms": 1_000, "published_at_ms": FIRST_MS, "available": True, "topic": "t"}
    items = [
        {**item, "item_id": f"i{n}", "category": f"c{n % 3}", "creator_id": "k", "partition": 0, "offset": n}
        for n in range(7)
    ]
    table = spark.createDataFrame([tuple(row.get(name) for name in schema.names) for row in items], schema)
    table.write.format("delta").mode("append").save(str(path / TABLES.items))
    return path


def consumed(bootstrap_servers: str, topic: str, expected: int) -> Iterator[tuple[Row, Row]]:
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "t", "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        for message in consumer.consume(expected, timeout=30):
            yield json.loads(message.key()), json.loads(message.value())
    finally:
        consumer.close()


def test_day_tiles_are_counted_sent_once_and_reopened_by_a_late_event(
    spark: SparkSession, lake: Path, rows: list[Row], kafka_broker: str, topics: Topics
) -> None:
    refresh = partial(refresh_families, spark, lake, NOW_MS, kafka_broker, topics)
    report = refresh()
    past = [row for row in rows if row["event_time_ms"] < NOW_MS // DAY_MS * DAY_MS]
    wanted = Counter((row["user_id"], row["category"], row["event_time_ms"] // DAY_MS * DAY_MS) for row in past)
    clicks = Counter(
        (row["user_id"], row["category"], row["event_time_ms"] // DAY_MS * DAY_MS)
        for row in past
        if row["event_type"] == "click"
    )
    got = list(consumed(kafka_broker, topics.tiles("user_category"), len(wanted)))
    assert {(key["user_id"], key["category"], key["tile_start_ms"]): value["n"] for key, value in got} == wanted
    for key, value in got:
        place = (key["user_id"], key["category"], key["tile_start_ms"])
        assert list(key) == ["user_id", "category", "tile_ms", "tile_start_ms"]
        assert list(value) == [*key, "n", "max_event_time_ms", *(c.name for c in USER_CATEGORY_TILES.columns)]
        assert (value["clicks"], key["tile_ms"]) == (clicks[place], DAY_MS)
    assert report[0]["rows"] == len(wanted)

    assert [tiles["days"] for tiles in refresh()] == [[], []], "nothing changed"
    late = {**past[0], "event_id": "late", "event_type": "like", "request_id": None}
    add_events(spark, lake, [late])
    rows.append(late)
    reopened = refresh()
    assert [tiles["days"] for tiles in reopened] == [[str(past[0]["event_date"])]] * len(FAMILIES)

    again = refresh(every_day=True)
    assert [tiles["days"] for tiles in again] == [tiles["days"] for tiles in report], "all of them"
    assert again[0]["rows"] == len(
        {*wanted, (late["user_id"], late["category"], late["event_time_ms"] // DAY_MS * DAY_MS)}
    )


def test_offline_tables_say_what_point_in_time_says(spark: SparkSession, lake: Path, ingest_topics: LakeIngest) -> None:
    run = OfflineRun(
        lake=lake, bootstrap_servers=ingest_topics.bootstrap_servers, topics=ingest_topics.topics, now_ms=NOW_MS
    )
    run_offline_features(spark, run)
    events = read_table(spark, lake, TABLES.silver_events)
    for entity in Entity:
        keys = list(KEY_FIELDS[entity])
        files = list((lake / TABLES.offline_features / ACTIVITY_VIEWS[entity]).glob("*.parquet"))
        assert [file.name for file in files] == [f"{utc_date(NOW_MS)}.parquet"], "a rerun replaces the date's file"
        table = pd.read_parquet(files[0])
        asked = events.select(*keys).distinct().selectExpr(*keys, f"{NOW_MS}L AS t_ms")
        names = [feature.name for feature in features_of(entity)]
        wanted = {
            tuple(row[k] for k in keys): [row[n] for n in names]
            for row in values_as_of(events, asked, entity).collect()
        }
        got = {tuple(row[k] for k in keys): [float(row[n]) for n in names] for row in table.to_dict("records")}
        assert got == {key: wanted[key] for key in got}
        assert len(got) > 1
        assert set(table["event_timestamp"]) == {pd.Timestamp(NOW_MS, unit="ms", tz="UTC")}
    users = pd.read_parquet(lake / TABLES.offline_features / "user_daily").set_index("user_id")
    assert users.loc["u1", "user_lifetime_events"] > 0
    items = pd.read_parquet(lake / TABLES.offline_features / "item_daily").set_index("item_id")
    assert items["item_smoothed_ctr"].between(0, 1).all()
    assert len(items) == 7


@pytest.fixture
def ingest_topics(kafka_broker: str, topics: Topics, tmp_path: Path) -> LakeIngest:
    return LakeIngest(bootstrap_servers=kafka_broker, lake=tmp_path, checkpoints=tmp_path, topics=topics)


def labels(rows: list[Row], impression: Row) -> Row:
    """The rule of attribution, event by event."""
    start = impression["event_time_ms"]
    due = [
        row
        for row in rows
        if (row["user_id"], row["item_id"]) == (impression["user_id"], impression["item_id"])
        and start <= row["event_time_ms"] < start + DAY_MS
        and row["request_id"] in (None, impression["request_id"])
    ]
    kinds = {row["event_type"] for row in due}
    told: Row = {f"label_{kind}": int(kind in kinds) for kind in ("click", "like", "share", "hide")}
    watches = [row for row in due if row["event_type"] == "watch"]
    fraction = max((row["watch_ms"] / row["duration_ms"] for row in watches), default=None)
    told["label_watch_fraction"] = None if fraction is None else min(fraction, 1.0)
    told["label_completion"] = None if fraction is None else int(fraction >= 0.9)
    return told


def test_examples_are_one_row_an_impression_with_its_labels(spark: SparkSession, lake: Path, rows: list[Row]) -> None:
    run = ExampleRun(lake=lake, now_ms=NOW_MS)
    report = run_examples(spark, run)
    shown = {row["event_id"]: row for row in rows if row["event_type"] == "impression"}
    table = DeltaTable(str(lake / TABLES.examples)).to_pyarrow_table().to_pylist()
    assert {row["event_id"] for row in table} == set(shown)
    assert len(table) == len(shown) == report["rows"]
    for row in table:
        wanted = labels(rows, shown[row["event_id"]])
        assert {name: row[name] for name in wanted} == wanted
        assert all(isinstance(row[feature.name], float) for feature in WINDOWED_FEATURES)
        assert row["history_event_times_ms"] == sorted(row["history_event_times_ms"], reverse=True)
        assert (row["language"], row["item_known"]) == (("und", False) if row["item_id"] == "i7" else ("en", True))
    commit = DeltaTable(str(lake / TABLES.examples)).history(1)[0]
    assert json.loads(commit["userMetadata"])["sources"] == report["sources"]

    day = utc_date(FIRST_MS) + datetime.timedelta(days=1)
    run_examples(spark, ExampleRun(lake=lake, now_ms=NOW_MS, from_date=day, to_date=day))
    again = DeltaTable(str(lake / TABLES.examples)).to_pyarrow_table().to_pylist()
    assert by_event(again) == by_event(table), "one date run again replaces itself alone"


def by_event(table: list[Row]) -> dict[object, Row]:
    return {row["event_id"]: row for row in table}


def test_an_empty_lake_is_refused(spark: SparkSession, tmp_path: Path, topics: Topics, kafka_broker: str) -> None:
    with pytest.raises(EmptyLakeError, match="run lake_ingest first"):
        run_examples(spark, ExampleRun(lake=tmp_path, now_ms=NOW_MS))
    run = OfflineRun(lake=tmp_path, bootstrap_servers=kafka_broker, topics=topics, now_ms=NOW_MS)
    with pytest.raises(OfflineError, match="run lake_ingest first"):
        run_offline_features(spark, run)


class TestBackfill:
    """Whole days again, part by part, beside what the daily jobs have made of the same lake."""

    def filling(self, lake: Path, step: str, first: int, last: int, servers: str, topics: Topics) -> Filling:
        """Days by their number from the first with events."""
        start, end = (utc_date(FIRST_MS + number * DAY_MS) for number in (first, last))
        asked = checked(step, str(start), str(end), utc_date(NOW_MS + 9 * DAY_MS))
        return Filling(backfill=asked, lake=lake, bootstrap_servers=servers, topics=topics)

    def content(self, path: Path) -> list[str]:
        return sorted(map(repr, DeltaTable(str(path)).to_pyarrow_table().to_pylist()))

    def test_parts_side_by_side_make_what_one_run_makes(
        self, spark: SparkSession, lake: Path, kafka_broker: str, topics: Topics
    ) -> None:
        refresh_families(spark, lake, NOW_MS, kafka_broker, topics, every_day=True)
        tables = [lake / TABLES.day_tiles / family.name for family in FAMILIES]
        whole = [self.content(table) for table in tables]
        for table in tables:
            DeltaTable(str(table)).delete(f"event_date > '{utc_date(FIRST_MS)}'")
        parts = [self.filling(lake, "day_tiles", first, last, kafka_broker, topics) for first, last in ((0, 2), (3, 4))]
        with ThreadPoolExecutor(2) as pool:
            reports = list(pool.map(lambda part: run_backfill(spark, part), parts))
        assert [self.content(table) for table in tables] == whole
        assert [report["empty_days"] for report in reports] == [[], []]
        run_backfill(spark, parts[0])
        assert [self.content(table) for table in tables] == whole, "a rerun changes nothing"

    def test_examples_of_a_part_and_of_an_empty_day(
        self, spark: SparkSession, lake: Path, kafka_broker: str, topics: Topics
    ) -> None:
        table = lake / TABLES.examples
        if not DeltaTable.is_deltatable(str(table)):  # left by the test of the examples, where it has run
            run_examples(spark, ExampleRun(lake=lake, now_ms=NOW_MS))
        whole = self.content(table)
        run_backfill(spark, self.filling(lake, "training_examples", 1, 2, kafka_broker, topics))
        assert self.content(table) == whole
        empty = utc_date(FIRST_MS - 2 * DAY_MS)
        stale = DeltaTable(str(table)).to_pyarrow_table().slice(0, 1)
        column = stale.schema.get_field_index("event_date")
        write_deltalake(str(table), stale.set_column(column, "event_date", pa.array([empty])), mode="append")
        report = run_backfill(spark, self.filling(lake, "training_examples", -2, -1, kafka_broker, topics))
        assert report["empty_days"] == [str(empty), str(utc_date(FIRST_MS - DAY_MS))]
        assert self.content(table) == whole, "what an empty day had is gone, the others stay"

    def test_views_are_those_of_the_days_end(
        self, spark: SparkSession, lake: Path, kafka_broker: str, topics: Topics
    ) -> None:
        filling = self.filling(lake, "offline_features", 2, 2, kafka_broker, topics)
        run_backfill(spark, filling)
        view = lake / TABLES.offline_features / ACTIVITY_VIEWS[Entity.USER] / f"{filling.backfill.start}.parquet"
        first = pd.read_parquet(view).sort_values("user_id", ignore_index=True)
        end_ms = (FIRST_MS // DAY_MS + 3) * DAY_MS - 1
        assert set(first["event_timestamp"]) == {pd.Timestamp(end_ms, unit="ms", tz="UTC")}
        values = windowed_values_at(read_table(spark, lake, TABLES.silver_events), Entity.USER, end_ms).toPandas()
        values = values.sort_values("user_id", ignore_index=True)
        pd.testing.assert_frame_equal(first[list(values.columns)], values)

    def test_without_events_it_says_what_to_run(
        self, spark: SparkSession, tmp_path: Path, kafka_broker: str, topics: Topics
    ) -> None:
        with pytest.raises(BackfillError, match="run lake_ingest first"):
            run_backfill(spark, self.filling(tmp_path / "none", "day_tiles", 0, 1, kafka_broker, topics))


def test_a_settled_day_keeps_an_erased_users_part_of_items_and_an_open_one_is_counted_anew(
    spark: SparkSession, lake: Path, kafka_broker: str, topics: Topics
) -> None:
    refresh = partial(refresh_families, spark, lake, NOW_MS, kafka_broker, topics)
    refresh(every_day=True)
    erase_from_lake(lake, lake.parent / "checkpoints", digest_of("u0"))
    reopened = {tiles["table"]: tiles["days"] for tiles in refresh()}
    settled = [str(utc_date(NOW_MS - days * DAY_MS)) for days in (5, 4, 3)]
    assert reopened[f"{TABLES.day_tiles}/user_category"] == []
    assert not set(settled) & set(reopened[f"{TABLES.day_tiles}/item"])
    assert refresh() == [{**tiles, "days": [], "rows": 0} for tiles in refresh()], "once"
    tiles = DeltaTable(str(lake / TABLES.day_tiles / "user_category")).to_pyarrow_table()
    assert "u0" not in tiles["user_id"].to_pylist()
