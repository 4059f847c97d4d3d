"""Sends records and items to Kafka: batched, compressed, idempotent, and every delivery accounted for."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

import confluent_kafka as kafka

from features.items import Item
from streaming.records import Record

Progress = Callable[[int], None]
"""Called with the number of records sent so far."""

_LOG = logging.getLogger(__name__)
_PROGRESS_EVERY = 10_000
_QUEUE_RECORDS = 200_000
_NEW_TOPIC_S = 3.0
_DELIVERY_TIMEOUT_S = 60.0


class ProduceError(RuntimeError):
    """Records that the broker did not take."""


class Producer:
    """Sends records to one topic; leaving its context waits for those under way.

    A record's timestamp is its arrival. Keys go to partitions as Java clients send them (murmur2), so one user's
    records stay in order in one partition. A failed delivery is raised by the next `send` or `flush`: nothing
    that was not delivered passes for sent.
    """

    def __init__(
        self, bootstrap_servers: str, topic: str, *, linger_ms: int = 5, connect_timeout_s: float = 15.0
    ) -> None:
        """Connects. `linger_ms` is how long a record waits for company: 0 for least delay, 20 for throughput.

        Raises `ProduceError` unless the broker answers and has the topic.
        """
        self.topic = topic
        self.delivered = 0
        self._bootstrap_servers = bootstrap_servers
        self._failure: str | None = None
        self._producer = kafka.Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,
                "compression.type": "lz4",
                "linger.ms": linger_ms,
                "partitioner": "murmur2_random",
                "queue.buffering.max.messages": _QUEUE_RECORDS,
                "delivery.timeout.ms": round(_DELIVERY_TIMEOUT_S * 1_000),
                "log_level": 0,
            }
        )
        self._check_topic(connect_timeout_s)

    def _check_topic(self, timeout_s: float) -> None:
        # A topic that was created a moment ago is not known everywhere at once.
        deadline_s = time.monotonic() + _NEW_TOPIC_S
        while (error := self._topic_error(timeout_s)) is not None:
            if time.monotonic() > deadline_s:
                raise ProduceError(
                    f"the broker at {self._bootstrap_servers} has no topic {self.topic} ({error.str()}). "
                    "Create it (`make up` does) or correct its name."
                )
            time.sleep(0.1)

    def _topic_error(self, timeout_s: float) -> kafka.KafkaError | None:
        try:
            error: kafka.KafkaError | None = self._producer.list_topics(self.topic, timeout_s).topics[self.topic].error
        except kafka.KafkaException as failure:
            raise ProduceError(
                f"no Kafka broker answers at {self._bootstrap_servers} ({failure.args[0].str()}). "
                "Start it (`make up`) or correct the address."
            ) from failure
        return error

    def send(self, records: Iterable[Record]) -> None:
        """Queues the records in their order; waits while the queue is full.

        Raises `ProduceError` as soon as a delivery has failed.
        """
        for record in records:
            self._queue(record)
            self._producer.poll(0)
            self._raise_failure()

    def _queue(self, record: Record) -> None:
        while True:
            try:
                self._producer.produce(
                    self.topic,
                    value=record.value,
                    key=record.key,
                    timestamp=record.arrival_ms,
                    on_delivery=self._settled,
                )
                return
            except BufferError:
                self._producer.poll(0.1)
            except kafka.KafkaException as error:
                raise ProduceError(self._refusal(error.args[0])) from error

    def flush(self) -> None:
        """Waits until everything sent is delivered. Raises `ProduceError` when that fails or takes too long."""
        left = self._producer.flush(_DELIVERY_TIMEOUT_S)
        self._raise_failure()
        if left:
            raise ProduceError(
                f"{left} records were not taken by {self._bootstrap_servers} within {_DELIVERY_TIMEOUT_S:.0f} s. "
                "Look at the broker's log, then send again: a second copy does no harm."
            )

    def _settled(self, error: kafka.KafkaError | None, _message: kafka.Message) -> None:
        if error is None:
            self.delivered += 1
        elif self._failure is None:
            self._failure = self._refusal(error)

    def _refusal(self, error: kafka.KafkaError) -> str:
        return (
            f"a record for {self.topic} at {self._bootstrap_servers} was refused: {error.str()}. "
            f"{self.delivered} records were delivered; correct the cause, then send all again."
        )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise ProduceError(self._failure)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()
        else:
            self._producer.purge()


def publish_records(
    records: Iterable[Record],
    *,
    bootstrap_servers: str,
    topic: str,
    on_progress: Progress | None = None,
) -> int:
    """Sends the records in their order and returns how many were delivered: all of them.

    Raises `ProduceError` when the broker or topic is missing (nothing is sent then) or a delivery fails.
    """
    with Producer(bootstrap_servers, topic, linger_ms=20) as producer:
        producer.send(counted(records, on_progress))
    _LOG.info("%d records delivered to %s", producer.delivered, topic)
    return producer.delivered


def publish_items(items: Iterable[Item], *, bootstrap_servers: str, topic: str, now_ms: int) -> int:
    """Sends catalogue rows, keyed by item, stamped `now_ms`; returns how many. Raises like `publish_records`."""
    rows = (Record(value=item.to_json(), key=item.item_id.encode(), arrival_ms=now_ms) for item in items)
    return publish_records(rows, bootstrap_servers=bootstrap_servers, topic=topic)


def counted(records: Iterable[Record], on_progress: Progress | None) -> Iterator[Record]:
    """Passes the records on, telling how many now and then and at the end."""
    number = 0
    for number, record in enumerate(records, start=1):
        yield record
        if on_progress is not None and number % _PROGRESS_EVERY == 0:
            on_progress(number)
    if on_progress is not None and number % _PROGRESS_EVERY:
        on_progress(number)
