"""Records of the topics that arrived before an erasure: deleted when it is time and everybody has read them."""

from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from features.erasure import TOPIC_DAYS
from features.names import MS_PER_DAY, Topics
from infra.kafka import ANSWER_S, topic_spans

Places = Mapping[tuple[str, int], int]
"""An offset of each (topic, partition)."""


def due_ms(erasures: Mapping[str, int], now_ms: int) -> int | None:
    """The newest erasure whose records are due: what arrived before it may go. None when none is."""
    due = [at_ms for at_ms in erasures.values() if at_ms + TOPIC_DAYS * MS_PER_DAY <= now_ms]
    return max(due, default=None)


def kept_topics(topics: Topics) -> tuple[str, ...]:
    """The topics that keep everything: facts, and each record's outcome. Tile topics drop old records by themselves."""
    derived = (topics.interactions, topics.duplicates, topics.too_late, topics.dead_letters)
    return (topics.events, topics.slates, *derived)


def records_to_delete(
    bootstrap_servers: str, names: Sequence[str], before_ms: int, read: Places
) -> dict[tuple[str, int], int]:
    """The offset before which each partition's records may go: those older than the instant that have been read.

    A partition of which nobody has read anything keeps everything. Raises `KafkaException`.
    """
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "millrace-maintenance", "log_level": 0})
    try:
        known = consumer.list_topics(timeout=ANSWER_S).topics
        spans = topic_spans(consumer, [name for name in names if name in known])
        asked = [TopicPartition(*place, before_ms) for place in spans]
        found = consumer.offsets_for_times(asked, timeout=ANSWER_S) if asked else []
    finally:
        consumer.close()
    first_later = {(place.topic, place.partition): place.offset for place in found}
    cuts = {}
    for place, (first, end) in spans.items():
        offset = first_later[place]
        cut = min(end if offset < 0 else offset, read.get(place, 0))  # below 0: no record is that new
        if cut > first:
            cuts[place] = cut
    return cuts


def delete_before(bootstrap_servers: str, cuts: Places) -> None:
    """Deletes the records before these offsets. Raises `KafkaException`."""
    if not cuts:
        return
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    wanted = [TopicPartition(*place, offset) for place, offset in cuts.items()]
    for future in admin.delete_records(wanted, request_timeout=ANSWER_S).values():
        future.result(timeout=ANSWER_S)
