"""Reading a topic from given offsets to its end and on, without a consumer group."""

import logging
from collections.abc import Mapping
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

_log = logging.getLogger(__name__)
METADATA_TIMEOUT_S = 2.0


class TopicTail:
    """One topic's records from `offsets` (partition to next offset) on; a partition without one from its beginning.

    The broker may be away at any time: `poll` then returns nothing, and reading goes on where it stopped when the
    broker is back. Used by one thread.
    """

    def __init__(self, bootstrap_servers: str, topic: str, offsets: Mapping[int, int] | None = None) -> None:
        self.topic = topic
        self._offsets = dict(offsets or {})
        self._assigned = False
        self._down = False
        settings: dict[str, Any] = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "millrace-serving-tail",  # required by the client; nothing is ever committed
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 20,
            "reconnect.backoff.max.ms": 2_000,
            "error_cb": self._on_error,
            "log_level": 0,
        }
        self._consumer = Consumer(settings)

    @property
    def connected(self) -> bool:
        """Whether the topic has been found and a broker answers, as far as this client knows."""
        return self._assigned and not self._down

    def poll(self, timeout_s: float, max_records: int = 5_000) -> list[Message]:
        """The records that have come since the last call; waits up to `timeout_s` when there is none."""
        if not self._assigned and not self._assign():
            return []
        good = []
        for message in self._consumer.consume(max_records, timeout_s):
            if message.error() is None:
                good.append(message)
            else:
                _log.warning("reading %s: %s", self.topic, message.error())
        if good:
            self._down = False
        return good

    def check(self) -> None:
        """Asks the broker whether it is there; for a caller to do now and then."""
        if not self._assigned:
            return
        try:
            self._consumer.get_watermark_offsets(TopicPartition(self.topic, 0), timeout=0.5)
            self._down = False
        except KafkaException:
            self._down = True

    def close(self) -> None:
        """Lets go of the broker."""
        self._consumer.close()

    def _assign(self) -> bool:
        try:
            found = self._consumer.list_topics(self.topic, timeout=METADATA_TIMEOUT_S).topics[self.topic]
        except KafkaException:
            return False
        if found.error is not None or not found.partitions:
            return False
        starts = [TopicPartition(self.topic, p, self._offsets.get(p, OFFSET_BEGINNING)) for p in found.partitions]
        self._consumer.assign(starts)
        self._assigned = True
        return True

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down = True
