"""The accounts of the stream, held against the events topic itself."""

from confluent_kafka import Consumer, TopicPartition

from features.backends import Backend
from features.ledger import Account, accounts

TIMEOUT_S = 30.0


def read_accounts(backend: Backend, bootstrap_servers: str, topic: str) -> list[Account]:
    """The account of each of the topic's partitions, as of now: the topic's ends are read first.

    Raises `StoreUnavailableError`, or `KafkaException` when the broker does not answer.
    """
    spans = topic_spans(bootstrap_servers, topic)
    return accounts(backend.ledger(), spans)


def topic_spans(bootstrap_servers: str, topic: str) -> dict[int, tuple[int, int]]:
    """The first offset and the end of each of the topic's partitions."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "millrace-accounts", "log_level": 0})
    try:
        partitions = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
        return {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=TIMEOUT_S)
            for number in partitions
        }
    finally:
        consumer.close()
