"""The producer and the replay against a real broker: everything sent is there, in order, stamped with its arrival."""

import json
import time
from collections import defaultdict
from pathlib import Path

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Consumer, Message, TopicPartition

from features.items import parse_item
from features.names import Topics
from infra.kafka import end_offsets
from streaming.producer import ProduceError, Producer, publish_items, publish_records
from streaming.records import Record, RecordKind
from streaming.replay import replay_file
from streaming.world import World, WorldParameters
from tests.conftest import free_port

NOW_MS = 1_760_000_000_000


def small_world() -> World:
    default = WorldParameters()
    population = default.population.model_copy(update={"users": 100, "live_only_users": 5})
    catalogue = default.catalogue.model_copy(update={"items": 200})
    return World(default.model_copy(update={"population": population, "catalogue": catalogue}), now_ms=NOW_MS)


def read_all(bootstrap_servers: str, topic: str) -> list[Message]:
    """Every message of the topic up to its end at the time of the call."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "test", "enable.auto.commit": False})
    try:
        ends = end_offsets(consumer, [topic])
        consumer.assign([TopicPartition(topic, partition, 0) for _, partition in ends])
        messages: list[Message] = []
        deadline = time.monotonic() + 60
        while len(messages) < sum(ends.values()):
            batch = consumer.consume(1_000, timeout=0.2)
            assert time.monotonic() < deadline, f"got {len(messages)} of {sum(ends.values())} messages"
            assert all(message.error() is None for message in batch)
            messages += batch
        return messages
    finally:
        consumer.close()


def test_what_is_published_is_what_is_read(kafka_broker: str, topics: Topics) -> None:
    world = small_world()
    records = list(world.history())
    told: list[int] = []
    delivered = publish_records(
        iter(records), bootstrap_servers=kafka_broker, topic=topics.events, on_progress=told.append
    )
    assert delivered == len(records) == told[-1] == world.ledger.records_sent

    sent, got = defaultdict(list), defaultdict(list)
    for record in records:
        sent[record.key].append((record.value, record.arrival_ms))
    partitions: dict[bytes, set[int]] = defaultdict(set)
    for message in read_all(kafka_broker, topics.events):
        kind, arrival_ms = message.timestamp()
        assert kind == TIMESTAMP_CREATE_TIME
        got[message.key()].append((message.value(), arrival_ms))
        partitions[message.key()].add(message.partition())
    assert got == sent, "each user's records, in order, with their arrival"
    assert {len(used) for used in partitions.values()} == {1}
    assert len(set().union(*partitions.values())) == 2


def test_items_are_keyed_by_item(kafka_broker: str, topics: Topics) -> None:
    items = small_world().items()
    assert publish_items(items, bootstrap_servers=kafka_broker, topic=topics.items, now_ms=NOW_MS) == len(items)
    got = {message.key().decode(): parse_item(message.value()) for message in read_all(kafka_broker, topics.items)}
    assert got == {item.item_id: item for item in items}


def test_a_live_producer_sends_at_once(kafka_broker: str, topics: Topics) -> None:
    world = small_world()
    clone = world.clone_user("user-00001", "millrace")
    with Producer(kafka_broker, topics.events, linger_ms=0) as producer:
        for number in range(3):
            slate = world.random_slate(clone, 5, NOW_MS)
            producer.send(world.react(clone, slate, f"r{number}", NOW_MS + number).records)
            producer.flush()
            assert len(read_all(kafka_broker, topics.events)) == producer.delivered


def test_a_replayed_file_arrives_with_times_moved(kafka_broker: str, topics: Topics, tmp_path: Path) -> None:
    records = [record for record in small_world().history() if record.kind is RecordKind.EVENT][:500]
    path = tmp_path / "events.jsonl"
    rows = [{**json.loads(record.value), "arrival_ms": record.arrival_ms} for record in records]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = replay_file(path, bootstrap_servers=kafka_broker, topic=topics.events, shift_to_ms=NOW_MS)
    assert report.events == 500

    def moved(row: dict[str, object]) -> tuple[object, object, object]:
        return row["event_id"], row["event_time_ms"] + report.shift_ms, row["arrival_ms"] + report.shift_ms

    messages = read_all(kafka_broker, topics.events)
    values = [(json.loads(message.value()), message.timestamp()[1]) for message in messages]
    assert sorted((v["event_id"], v["event_time_ms"], at) for v, at in values) == sorted(moved(row) for row in rows)
    assert max(v["event_time_ms"] for v, _ in values) == NOW_MS


def test_a_missing_topic_is_one_clear_error(kafka_broker: str) -> None:
    with pytest.raises(ProduceError, match=r"has no topic nowhere.*Create it"):
        publish_records(small_world().history(), bootstrap_servers=kafka_broker, topic="nowhere")


def test_a_missing_broker_is_one_clear_error() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ProduceError, match=rf"no Kafka broker answers at {address}.*make up"):
        Producer(address, "events", connect_timeout_s=0.5)


@pytest.mark.parametrize(
    ("value", "arrival_ms", "says"),
    [
        pytest.param(b"x" * 2_000_000, NOW_MS, "too large", id="oversized: refused by the client"),
        pytest.param(b"{}", 10 * NOW_MS, "timestamp", id="far future: refused by the broker"),
    ],
)
def test_a_refused_delivery_is_raised(
    kafka_broker: str, topics: Topics, value: bytes, arrival_ms: int, says: str
) -> None:
    refused = Record(value=value, key=b"u", arrival_ms=arrival_ms)
    with pytest.raises(ProduceError, match=rf"(?i)was refused: .*{says}.*send all again"):
        publish_records([refused], bootstrap_servers=kafka_broker, topic=topics.events)
