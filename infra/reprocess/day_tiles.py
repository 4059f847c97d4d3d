"""Day tiles from the tile topics of one version to those of another with the same definitions.

The stream computes its own tiles anew, but day tiles come from the lake, and batch sends a day again only when its
events have changed.
"""

import json
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from features.names import Topics
from features.tiles import DAY_TILE_MS, FAMILIES
from infra.kafka import end_offsets

BATCH = 10_000
POLL_S = 1.0
_DAY_MARK = str(DAY_TILE_MS).encode()


class DayTileCopy:
    """Copies what has come since the last call. Copying a row again does no harm: rows are absolute."""

    def __init__(self, bootstrap_servers: str, old: Topics, new: Topics) -> None:
        self._targets = {old.tiles(family.name): new.tiles(family.name) for family in FAMILIES}
        common: dict[str, Any] = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
        reading = {"group.id": "millrace-reprocess", "enable.auto.commit": False, "enable.partition.eof": True}
        self._consumer = Consumer({**common, **reading})
        # The partitioner of Spark and Flink: compaction keeps one row a key only within one partition.
        self._producer = Producer({**common, "partitioner": "murmur2_random"})
        self._next: dict[tuple[str, int], int] = {}

    def copy(self) -> int:
        """Copies the day tiles up to the topics' present ends; returns how many. Raises `KafkaException`."""
        ends = end_offsets(self._consumer, self._targets)
        left = {place for place, end in ends.items() if self._next.get(place, 0) < end}
        starts = [TopicPartition(*place, self._next.get(place, OFFSET_BEGINNING)) for place in left]
        self._consumer.assign(starts)
        copied = 0
        while left:
            for message in self._consumer.consume(BATCH, POLL_S):
                copied += self._take(message)
            left = {place for place in left if self._next.get(place, 0) < ends[place]}
        self._producer.flush()
        return copied

    def _take(self, message: Message) -> int:
        """Copies the record where it is a day tile; says how many that were. Notes where to read on."""
        topic, partition, offset, error = message.topic(), message.partition(), message.offset(), message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        assert topic is not None and partition is not None and offset is not None  # of a record or an end
        # At the end the offset is the next record's, whatever compaction has removed before it.
        self._next[topic, partition] = offset + (error is None)
        key, value = message.key(), message.value()
        if error is not None or key is None or value is None or _DAY_MARK not in key:
            return 0
        if json.loads(key)["tile_ms"] != DAY_TILE_MS:
            return 0
        while True:
            try:
                self._producer.produce(self._targets[topic], key=key, value=value)
            except BufferError:
                self._producer.poll(POLL_S)
            else:
                return 1

    def close(self) -> None:
        """Lets go of the broker."""
        self._consumer.close()
