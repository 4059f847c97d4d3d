"""Kafka as a streaming source that never skips: offsets are compared with the broker before Spark starts."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from pyspark.sql import DataFrame, SparkSession
from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

from features.events import ID_PATTERN

_TIMEOUT_S = 15.0


class DataLossError(RuntimeError):
    """The broker no longer holds, or never held, records that the lake has still to read."""


class CheckpointError(RuntimeError):
    """A checkpoint and its table do not belong together."""


def read_topic(spark: SparkSession, bootstrap_servers: str, topic: str, max_records: int) -> DataFrame:
    """The topic as a stream of `value, key, topic, partition, offset, arrival_ms`, at most `max_records` a batch."""
    stream = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", bootstrap_servers)
        .option("subscribe", topic)
        .option("startingOffsets", "earliest")
        .option("failOnDataLoss", "true")
        .option("maxOffsetsPerTrigger", str(max_records))
        .load()
    )
    return stream.selectExpr("value", "key", "topic", "partition", "offset", "unix_millis(timestamp) AS arrival_ms")


def unless_refused(records: DataFrame, digests: Collection[str]) -> DataFrame:
    """Records of Kafka without those of erased users, as `batch.erase_lake` finds them: by the key, by the `user_id` of
    the payload or, where it has none, by any mention.
    """
    if not digests:
        return records
    quoted = ", ".join(f"'{digest}'" for digest in sorted(digests))
    erased = f"IN ({quoted})"
    text = "CASE WHEN is_valid_utf8(value) THEN CAST(value AS STRING) ELSE '' END"
    own = f"get_json_object({text}, '$.user_id')"
    mentioned = f"exists(regexp_extract_all({text}, r'{ID_PATTERN}', 0), id -> sha2(id, 256) {erased})"
    by_payload = f"CASE WHEN {own} IS NULL THEN {mentioned} ELSE sha2({own}, 256) {erased} END"
    return records.where(f"NOT coalesce(sha2(key, 256) {erased}, false) AND NOT {by_payload}")


def checkpointed_offsets(checkpoint: Path) -> dict[str, dict[int, int]]:
    """The next offset of each topic and partition as Spark's checkpoint has planned them; empty before a first run.

    A planned batch may not be committed yet, but a rerun reads exactly it, from the offsets of the batch before;
    so the newest *committed* batch says what is still needed.
    """
    committed = _newest_batch(checkpoint / "commits")
    if committed is None:
        return {}
    lines = (checkpoint / "offsets" / str(committed)).read_text().splitlines()
    source = json.loads(lines[2])  # version, metadata, then one line a source
    return {topic: {int(part): int(offset) for part, offset in parts.items()} for topic, parts in source.items()}


def _newest_batch(folder: Path) -> int | None:
    batches = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]
    return max(batches, default=None)


def topics_behind(bootstrap_servers: str, topics: Mapping[str, Path]) -> list[str]:
    """The topics that hold records which their readers have not committed yet.

    `topics` maps each topic to the checkpoint of its reader. Raises `DataLossError` with the offsets, and
    `ConnectionError` when the broker does not answer or a topic does not exist.
    """
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "millrace-lake-check", "log_level": 0})
    try:
        checkpointed = {topic: checkpointed_offsets(path).get(topic, {}) for topic, path in topics.items()}
        return [topic for topic, read in checkpointed.items() if _has_more(consumer, bootstrap_servers, topic, read)]
    except KafkaException as error:
        reason = f"no answer from the broker at {bootstrap_servers}: {error}. Start it, then run again."
        raise ConnectionError(reason) from error
    finally:
        consumer.close()


def _is_moving(error: BaseException) -> bool:
    """Whether the partition is without a leader for the moment, as after its topic was made."""
    moving = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
    return isinstance(error, KafkaException) and error.args[0].code() in moving


@retry(retry=retry_if_exception(_is_moving), stop=stop_after_delay(_TIMEOUT_S), wait=wait_fixed(0.2), reraise=True)
def _span(consumer: Consumer, place: TopicPartition) -> tuple[int, int]:
    """The first offset of the partition, and the one that its next record will have."""
    return consumer.get_watermark_offsets(place, timeout=_TIMEOUT_S)


def _has_more(consumer: Consumer, bootstrap_servers: str, topic: str, read: dict[int, int]) -> bool:
    known = consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
    if known.error is not None:
        raise ConnectionError(f"topic {topic} on {bootstrap_servers}: {known.error}. Create it, then run again.")
    lost = [f"partition {part}: next offset {read[part]}, gone" for part in sorted(read.keys() - known.partitions)]
    more = False
    for partition in sorted(known.partitions):
        first, end = _span(consumer, TopicPartition(topic, partition))
        needed = read.get(partition, first)
        more |= needed < end
        if not first <= needed <= end:
            lost.append(f"partition {partition}: next offset {needed}, the broker has [{first}, {end})")
    if lost:
        raise DataLossError(
            f"records of {topic} were lost before the lake had read them: {'; '.join(lost)}. "
            "Restore the topic, or accept the loss by restoring lake and checkpoints to match it."
        )
    return more


def check_together(checkpoint: Path, table: str, rows: int, *, emptied: bool = False) -> None:
    """Refuses a table without its checkpoint, which would be read twice, and a checkpoint without its table.

    `emptied` says of a table without rows that it has had some: they were erased, or past their time.
    """
    read = sum(offset for parts in checkpointed_offsets(checkpoint).values() for offset in parts.values())
    if rows and _newest_batch(checkpoint / "offsets") is None:
        raise CheckpointError(
            f"table {table} has {rows} rows but {checkpoint} has no checkpoint: reading again would double them. "
            "Restore table and checkpoint together, or remove both."
        )
    if read and not rows and not emptied:
        raise CheckpointError(
            f"{checkpoint} has read records but table {table} is empty: they would be missing. "
            "Restore table and checkpoint together, or remove both."
        )
