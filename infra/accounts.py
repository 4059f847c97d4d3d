"""The accounts of the stream, held against the events topic itself."""

from features.backends import Backend
from features.ledger import Account, accounts
from infra.kafka import partition_spans


def read_accounts(backend: Backend, bootstrap_servers: str, topic: str) -> list[Account]:
    """The account of each of the topic's partitions, as of now: the topic's ends are read first.

    Raises `StoreUnavailableError`, or `KafkaException` when the broker does not answer.
    """
    spans = partition_spans(bootstrap_servers, topic)
    return accounts(backend.ledger(), spans)
