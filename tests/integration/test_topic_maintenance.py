"""Records that arrived before an erasure go from a real broker, and none that somebody has still to read."""

from confluent_kafka import Consumer, Producer

from features.names import Topics
from infra.kafka import partition_spans, topic_configs
from infra.maintenance.topics import delete_before, kept_topics, records_to_delete

ERASED_MS = 1_760_000_000_000


def test_what_is_due_and_read_goes(kafka_broker: str, topics: Topics) -> None:
    producer = Producer({"bootstrap.servers": kafka_broker})
    for n in range(10):
        for partition in (0, 1):
            producer.produce(topics.events, b"%d" % n, partition=partition, timestamp=ERASED_MS - 5 + n)
        producer.produce(topics.slates, b"%d" % n, partition=0, timestamp=ERASED_MS - 100)
    assert producer.flush(30) == 0
    read = {(topics.events, 0): 10, (topics.events, 1): 3, (topics.slates, 0): 10}
    cuts = records_to_delete(kafka_broker, kept_topics(topics), ERASED_MS, read)
    assert cuts == {(topics.events, 0): 5, (topics.events, 1): 3, (topics.slates, 0): 10}
    delete_before(kafka_broker, cuts)
    assert partition_spans(kafka_broker, topics.events) == {0: (5, 10), 1: (3, 10)}
    assert records_to_delete(kafka_broker, kept_topics(topics), ERASED_MS, read) == {}, "a repetition does nothing"
    assert records_to_delete(kafka_broker, kept_topics(topics), ERASED_MS, {}) == {}, "nobody has read anything"
    consumer = Consumer({"bootstrap.servers": kafka_broker, "group.id": "left", "auto.offset.reset": "earliest"})
    consumer.subscribe([topics.events])
    left = consumer.consume(12, timeout=30)
    consumer.close()
    assert sorted(int(message.value() or b"") for message in left) == [3, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]


def test_the_topics_that_keep_everything_are_the_ones_that_are_cut(topics: Topics) -> None:
    configs = topic_configs(topics)
    kept = {name for name, config in configs.items() if config.get("retention.ms") == "-1"}
    assert set(kept_topics(topics)) == kept
    assert all("delete" in config["cleanup.policy"] for name, config in configs.items() if ".tiles." in name)
