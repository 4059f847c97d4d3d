"""Kafka → Delta on a real broker and real Spark: nothing lost, nothing twice, whatever is killed or rerun."""

import contextlib
import json
import random
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from pyspark.sql import DataFrame, SparkSession

from batch import compaction, contract_sql, ingest_stages
from batch.erase_lake import erase_from_lake
from batch.ingest_stages import events_stage
from batch.kafka_source import CheckpointError, DataLossError, read_topic
from batch.lake import INGESTED, TABLES, TableDefinition, create_tables, read_table, row_count
from batch.lake_ingest import LakeIngest, run_ingest
from batch.user_traces import files_that_mention
from features.erasure import digest_of
from features.events import FIELDS, HORIZON_MS, Event, EventField, EventType, FieldKind
from features.items import Item
from features.names import Topics

NOW_MS = 1_760_000_000_000
Record = tuple[bytes, bytes | None, int]
"""Value, key and arrival_ms."""


def event(n: int, user: str = "u1", event_time_ms: int = NOW_MS, **fields: object) -> Event:
    base = Event(
        event_id=f"e{n}",
        event_type=EventType.LIKE,
        event_time_ms=event_time_ms,
        user_id=user,
        item_id=f"i{n % 7}",
        category="music",
        creator_id="c1",
    )
    return replace(base, **fields)


def sent(of: Event, arrival_ms: int | None = None) -> Record:
    return of.to_json(), of.user_id.encode(), of.event_time_ms + 50 if arrival_ms is None else arrival_ms


def send(bootstrap_servers: str, topic: str, records: Sequence[Record]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 5})
    for value, key, arrival_ms in records:
        producer.produce(topic, value=value, key=key, timestamp=arrival_ms)
    assert producer.flush(30) == 0


def slate(request_id: str, **fields: object) -> Record:
    item = {"item_id": "i1", "position": 0, "score": 1.5, "propensity": 0.5, "sources": ["als"]}
    record = {
        "request_id": request_id,
        "user_id": "u1",
        "served_at_ms": NOW_MS,
        "surface": "home",
        "bundle_id": "b",
        "arm": "millrace",
        "degraded": [],
        "snapshot_instant_ms": NOW_MS,
        "newest_event_ms": None,
        "items": [{**item, "probabilities": {"click": 0.2}, "features": {"user_clicks_1h": 3.0}}],
        "candidates": [{"item_id": "i1", "score": 1.5, "sources": ["als"]}],
        "schema_version": 1,
        **fields,
    }
    return json.dumps(record).encode(), b"u1", NOW_MS


def item(item_id: str, **fields: object) -> Item:
    base = Item(
        item_id=item_id, category="music", creator_id="c1", language="en", duration_ms=1_000, published_at_ms=NOW_MS
    )
    return replace(base, **fields)


@pytest.fixture
def ingest(kafka_broker: str, topics: Topics, tmp_path: Path) -> LakeIngest:
    return LakeIngest(
        bootstrap_servers=kafka_broker, lake=tmp_path / "lake", checkpoints=tmp_path / "checkpoints", topics=topics
    )


def mixed_records(rng: random.Random, count: int) -> tuple[list[Record], Counter[str]]:
    """Valid events with duplicates, changed duplicates, broken and too late ones in between."""
    records, expected = [], Counter[str]()
    for n in range(count):
        one = event(n, user=f"u{n % 5}", event_time_ms=NOW_MS - rng.randrange(3 * 86_400_000))
        late = rng.random() < 0.1
        expected["too_late" if late else "in_time"] += 1
        records.append(sent(one, one.event_time_ms + HORIZON_MS + 1 if late else None))
        if rng.random() < 0.2:
            records.append(sent(replace(one, item_id="changed")))
            # The copy of an event that came too late is the first in time.
            expected["in_time" if late else "duplicate"] += 1
            expected["changed"] += late
        if rng.random() < 0.05:
            records.append(sent(one, one.event_time_ms + HORIZON_MS + 1))
            expected["too_late"] += 1
        if rng.random() < 0.1:
            records.append((b"{broken", b"u1", NOW_MS))
            expected["dead"] += 1
    return records, expected


def test_accounts_balance_and_a_rerun_adds_nothing(spark: SparkSession, ingest: LakeIngest) -> None:
    records, expected = mixed_records(random.Random(1), 200)
    send(ingest.bootstrap_servers, ingest.topics.events, records)
    send(
        ingest.bootstrap_servers,
        ingest.topics.items,
        [
            (item("i1").to_json(), b"i1", 1),
            (item("i2").to_json(), b"i2", 2),
            (b'{"item_id": 7}', b"7", 3),
            (item("i1", available=False).to_json(), b"i1", 4),
        ],
    )
    second = {"schema_version": 2, "evidence": {"method": "Recommend", "arrays": ""}}
    slates = [slate("r1"), slate("r2", **second), slate("r1", arm="later"), (b"[]", b"u1", 5), slate("r3", items=None)]
    send(ingest.bootstrap_servers, ingest.topics.slates, slates)

    report = run_ingest(spark, ingest)

    dead, duplicates = expected["dead"], expected["duplicate"]
    late, in_time = expected["too_late"], expected["in_time"]
    counted = {
        "bronze": len(records),
        "silver": in_time,
        "too_late": late,
        "duplicates": duplicates,
        "dead_letters": dead,
    }
    assert report["accounts"] == counted
    rows = {TABLES.items: 2, TABLES.slates: 2, TABLES.dead_letters: dead + 3, TABLES.duplicates: duplicates + 1}
    assert {table: report["rows"][table] for table in rows} == rows
    silver = read_table(spark, ingest.lake, TABLES.silver_events)
    changed = silver.where("item_id = 'changed'").count()
    assert changed == expected["changed"] > 0, "the first in time of a key counts, whatever the payload"
    catalogue = {row.item_id: row.available for row in read_table(spark, ingest.lake, TABLES.items).collect()}
    assert catalogue == {"i1": False, "i2": True}
    served = read_table(spark, ingest.lake, TABLES.slates).where("request_id = 'r1'").first()
    assert (served.arm, served["items"][0].features) == ("millrace", {"user_clicks_1h": 3.0})
    assert json.loads(served.value)["arm"] == "millrace"
    newer = read_table(spark, ingest.lake, TABLES.slates).where("request_id = 'r2'").first()
    assert newer.schema_version == 2 and json.loads(newer.value)["evidence"] == second["evidence"]
    again = run_ingest(spark, ingest)
    assert set(again["rows_added"].values()) == {0}

    more = [sent(event(1_000)), sent(event(3, user="u3", item_id="changed"))]
    send(ingest.bootstrap_servers, ingest.topics.events, more)
    third = run_ingest(spark, ingest)
    assert third["accounts"]["silver"] == in_time + 1
    assert third["accounts"]["duplicates"] == duplicates + 1


def test_killed_between_writes_ends_as_if_undisturbed(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint plans a killed batch again with the same records: here it dies after 0 to 3 writes."""
    records, expected = mixed_records(random.Random(2), 30)
    rows = [(bytearray(value), key, "t", 0, n, arrival_ms) for n, (value, key, arrival_ms) in enumerate(records)]
    columns = "value BINARY, key BINARY, topic STRING, partition INT, offset BIGINT, arrival_ms BIGINT"
    batch = spark.createDataFrame(rows, columns)
    create_tables(tmp_path)
    real, stage = ingest_stages._append, events_stage(spark, tmp_path)
    for writes in range(4):
        done: list[Path] = []

        def dies(rows: DataFrame, path: Path, done: list[Path] = done, writes: int = writes) -> None:
            if len(done) == writes:
                raise RuntimeError("killed here")
            done.append(path)
            real(rows, path)

        monkeypatch.setattr(ingest_stages, "_append", dies)
        with contextlib.suppress(RuntimeError):
            stage(batch, 0)
    monkeypatch.setattr(ingest_stages, "_append", real)
    stage(batch, 0)
    stage(batch, 0)
    tables = (TABLES.silver_events, TABLES.too_late_events, TABLES.duplicates, TABLES.dead_letters)
    counts = [row_count(tmp_path, table) for table in tables]
    assert counts == [expected[name] for name in ("in_time", "too_late", "duplicate", "dead")]


def test_a_schema_change_within_a_day_loses_and_doubles_nothing(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Producers send a new optional field, then readers know it, then a generation comes that they do not know."""
    columns = "value BINARY, key BINARY, topic STRING, partition INT, offset BIGINT, arrival_ms BIGINT"

    def record(n: int, version: int) -> tuple[object, ...]:
        value = json.dumps({**json.loads(event(n).to_json()), "schema_version": version, "mood": "calm"})
        return bytearray(value.encode()), b"u1", "t", 0, n, NOW_MS

    def stage(records: list[tuple[object, ...]], definitions: Sequence[TableDefinition] = INGESTED) -> None:
        create_tables(tmp_path, tuple(definitions))
        events_stage(spark, tmp_path)(spark.createDataFrame(records, columns), 0)

    morning = [record(n, 1 if n < 3 else 2) for n in range(6)]
    stage(morning)
    mood = EventField(name="mood", kind=FieldKind.ID, required_for=frozenset())
    monkeypatch.setattr(contract_sql, "FIELDS", (*FIELDS, mood))
    extended = [
        replace(each, columns=f"mood STRING, {each.columns}") if each.path == TABLES.silver_events else each
        for each in INGESTED
    ]
    # The last records of the morning come again, as after a kill.
    stage([*morning[3:], *(record(n, 2 if n < 9 else 100) for n in range(6, 12))], extended)
    rows = read_table(spark, tmp_path, TABLES.silver_events).orderBy("offset").collect()
    told = [(row.event_id, row.schema_version, row.mood) for row in rows]
    assert told == [(f"e{n}", 1 if n < 3 else 2, None if n < 6 else "calm") for n in range(9)]
    dead = read_table(spark, tmp_path, TABLES.dead_letters).orderBy("offset").collect()
    assert [(row.offset, row.reason) for row in dead] == [(n, "invalid:schema_version") for n in (9, 10, 11)]
    assert row_count(tmp_path, TABLES.duplicates) == 0


def test_lost_records_and_a_lost_checkpoint_fail_the_run(spark: SparkSession, ingest: LakeIngest) -> None:
    topic = ingest.topics.events
    send(ingest.bootstrap_servers, topic, [sent(event(n)) for n in range(5)])
    partition = next(p for p, end in run_ingest(spark, ingest)["next_offsets"][topic].items() if end == 5)
    send(ingest.bootstrap_servers, topic, [sent(event(n)) for n in range(5, 12)])
    admin = AdminClient({"bootstrap.servers": ingest.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(topic, partition, 9)]).values():
        future.result(timeout=30)
    with pytest.raises(DataLossError, match=rf"partition {partition}: next offset 5, the broker has \[9, 12\)"):
        run_ingest(spark, ingest)
    assert row_count(ingest.lake, TABLES.bronze_events) == 5
    with pytest.raises(CheckpointError, match="Restore table and checkpoint together"):
        run_ingest(spark, replace(ingest, checkpoints=ingest.checkpoints / "elsewhere"))


def test_the_command_says_in_one_sentence_that_the_broker_is_away(tmp_path: Path, submit: list[str]) -> None:
    flags = ["--bootstrap-servers", "127.0.0.1:1", "--lake", str(tmp_path), "--checkpoints", str(tmp_path / "c")]
    done = subprocess.run([*submit, "batch/lake_ingest.py", *flags], capture_output=True, text=True, check=False)
    # spark-submit passes on both of Python's streams as its standard output.
    said = [line for line in done.stdout.splitlines() if line.startswith("lake_ingest:")]
    assert (done.returncode, len(said)) == (1, 1), done.stdout[-500:]
    assert "no answer from the broker at 127.0.0.1:1" in said[0]
    assert "Traceback" not in done.stdout + done.stderr


def test_an_erased_user_is_gone_and_does_not_come_back(spark: SparkSession, ingest: LakeIngest, tmp_path: Path) -> None:
    """Whatever reads on afterwards: the next run, also over compacted files, and one from the first offset."""
    broken = [(b'{"user_id": "u1", "event_type": "jump"}', b"u1", NOW_MS), (b"{u1", b"u2", NOW_MS)]
    hidden = event(900, user="u1").to_json().replace(b"u1", b"\\u0075\\u0031")
    records = [sent(event(n, user=f"u{n % 3}")) for n in range(30)]
    records += [sent(event(1, user="u1")), sent(event(2, "u1", NOW_MS - 3 * HORIZON_MS), NOW_MS), *broken]
    records += [(hidden, None, NOW_MS), sent(event(950, user="u1x", item_id="u1"))]
    send(ingest.bootstrap_servers, ingest.topics.events, records)
    send(ingest.bootstrap_servers, ingest.topics.slates, [slate("r1"), slate("r2", user_id="u2")])
    run_ingest(spark, ingest)
    report = erase_from_lake(ingest.lake, ingest.checkpoints, digest_of("u1"))
    assert report["rows_removed"] == {
        TABLES.bronze_events: 15,
        TABLES.silver_events: 11,
        TABLES.duplicates: 1,
        TABLES.too_late_events: 1,
        TABLES.dead_letters: 2,
        TABLES.slates: 1,
    }
    assert files_that_mention([ingest.lake], digest_of("u1"), "u1") == only_as_an_item(ingest.lake)
    after = users_of(spark, ingest.lake)
    assert "u1" not in after

    create_tables(ingest.lake)
    assert compaction.compact(ingest.lake / TABLES.bronze_events, small_files=1) == 1
    knowing = replace(ingest, erased=frozenset({digest_of("u1")}))
    send(ingest.bootstrap_servers, ingest.topics.events, [sent(event(n, user=f"u{n % 3}")) for n in range(40, 46)])
    run = run_ingest(spark, knowing)
    assert run["rows_added"][TABLES.silver_events] == 4
    assert run["erased_events_refused"] == 2
    assert users_of(spark, ingest.lake) == after + Counter({"u0": 2, "u2": 2})

    anew = replace(knowing, lake=tmp_path / "anew", checkpoints=tmp_path / "anew-checkpoints")
    assert run_ingest(spark, anew)["accounts"] == run["accounts"]
    assert users_of(spark, anew.lake) == users_of(spark, ingest.lake)


def users_of(spark: SparkSession, lake: Path) -> Counter[str]:
    rows = read_table(spark, lake, TABLES.silver_events).groupBy("user_id").count().collect()
    return Counter({row["user_id"]: row["count"] for row in rows})


def only_as_an_item(lake: Path) -> list[Path]:
    """The files with the event in which another user's item has the erased user's name."""
    return [
        file
        for table in (TABLES.bronze_events, TABLES.silver_events)
        for file in sorted((lake / table).rglob("*.parquet"))
        if "u1x" in str(pq.read_table(file).to_pylist())
    ]


def test_silver_reads_bronze_anew_when_an_erasure_came_before_it(spark: SparkSession, ingest: LakeIngest) -> None:
    """The run was killed between bronze and silver: the files that silver was about to read are gone."""
    send(ingest.bootstrap_servers, ingest.topics.events, [sent(event(n, user=f"u{n % 2}")) for n in range(10)])
    run_ingest(spark, ingest)
    send(ingest.bootstrap_servers, ingest.topics.events, [sent(event(n, user=f"u{n % 2}")) for n in range(10, 20)])
    bronze = read_topic(spark, ingest.bootstrap_servers, ingest.topics.events, 1_000).writeStream.format("delta")
    checkpointed = bronze.option("checkpointLocation", str(ingest.readers[ingest.topics.events]))
    checkpointed.trigger(availableNow=True).start(str(ingest.lake / TABLES.bronze_events)).awaitTermination()
    erase_from_lake(ingest.lake, ingest.checkpoints, digest_of("u1"))
    assert not (ingest.checkpoints / "silver_events").exists()
    report = run_ingest(spark, replace(ingest, erased=frozenset({digest_of("u1")})))
    assert report["accounts"] == {"bronze": 10, "silver": 10, "too_late": 0, "duplicates": 0, "dead_letters": 0}
