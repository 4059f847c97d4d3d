"""Where every record went: what was sent, held against the lake, the tiles and the topics, by id where there is one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition
from deltalake import DeltaTable

from features.names import LakeTables, Topics
from features.tiles import DAY_TILE_MS, USER_CATEGORY_TILES
from infra.kafka import partition_spans, topic_spans
from streaming.records import Ledger


def account(ledger: Ledger, lake_dir: Path, bootstrap_servers: str, topics: Topics) -> dict[str, Any]:
    """The report's accounts. `events_lost` is the ids that were sent and are not in the lake; an id that stands there
    without having been sent is in `events_unknown`. Raises `TableNotFoundError` before the first ingest."""
    tables = LakeTables()
    sent = ledger.counted_ids | ledger.too_late_ids
    held = (tables.silver_events, tables.too_late_events)
    stored = [event_id for table in held for event_id in _table(lake_dir, table, ["event_id"])["event_id"].to_pylist()]
    kept = set(stored)
    return {
        "records_sent": ledger.records_sent,
        "events_produced": len(sent),
        "events_in_lake": len(stored),
        "events_in_tiles": count_in_tiles(bootstrap_servers, topics),
        "events_lost": len(sent - kept),
        "events_unknown": len(kept - sent),
        "duplicates_sent": ledger.duplicates_sent,
        "duplicates_removed": len(_table(lake_dir, tables.duplicates, ["offset"])),
        "malformed_sent": ledger.malformed_sent,
        "dead_letters": count_records(bootstrap_servers, topics.dead_letters),
        "dead_letters_in_lake": len(_table(lake_dir, tables.dead_letters, ["offset"])),
        "late_sent": ledger.late_sent,
        "too_late_sent": len(ledger.too_late_ids),
        "too_late": count_records(bootstrap_servers, topics.too_late),
    }


def _table(lake_dir: Path, name: str, columns: list[str]) -> pa.Table:
    return DeltaTable(lake_dir / name).to_pyarrow_table(columns=columns)


def count_records(bootstrap_servers: str, topic: str) -> int:
    """Records of a topic that is never compacted, from its offsets."""
    return sum(end - first for first, end in partition_spans(bootstrap_servers, topic).values())


def count_in_tiles(bootstrap_servers: str, topics: Topics) -> int:
    """Events counted by the streamed user × category tiles: the largest `n` of each tile, summed."""
    largest: dict[bytes, int] = {}
    for key, value in _read_all(bootstrap_servers, topics.tiles(USER_CATEGORY_TILES.name)):
        row = json.loads(value)
        if row["tile_ms"] != DAY_TILE_MS:
            largest[key] = max(row["n"], largest.get(key, 0))
    return sum(largest.values())


def _read_all(bootstrap_servers: str, topic: str) -> Iterator[tuple[bytes, bytes]]:
    config = {"bootstrap.servers": bootstrap_servers, "group.id": "millrace-accounts", "enable.auto.commit": False}
    consumer = Consumer({**config, "auto.offset.reset": "earliest", "enable.partition.eof": False})
    try:
        spans = topic_spans(consumer, [topic])
        consumer.assign([TopicPartition(*place, first) for place, (first, _) in spans.items()])
        unread = {partition: end for (_, partition), (first, end) in spans.items() if end > first}
        while unread:
            for message in consumer.consume(10_000, timeout=5.0):
                key, value = message.key(), message.value()
                if message.error() is None and key is not None and value is not None:
                    yield key, value
            for at in consumer.position([TopicPartition(topic, partition) for partition in unread]):
                if at.offset >= unread[at.partition]:
                    del unread[at.partition]
    finally:
        consumer.close()
