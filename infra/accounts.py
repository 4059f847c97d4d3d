"""The accounts of the stream, held against the events topic itself."""

from confluent_kafka import Consumer

from features.backends import Backend
from features.ledger import Account, accounts
from infra.kafka import topic_spans


def read_accounts(backend: Backend, bootstrap_servers: str, topic: str) -> list[Account]:
    """The account of each of the topic's partitions, as of now: the topic's ends are read first.

    Raises `StoreUnavailableError`, or `KafkaException` when the broker does not answer.
    """
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "millrace-accounts", "log_level": 0})
    try:
        spans = {partition: span for (_, partition), span in topic_spans(consumer, [topic]).items()}
    finally:
        consumer.close()
    return accounts(backend.ledger(), spans)
