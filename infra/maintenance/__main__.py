"""`python -m infra.maintenance [--retention FILE] [--dry-run true]`: the stack's files and topics, by its settings."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from features.backends import Backend, StoreUnavailableError, open_backend
from features.clock import wall_clock_ms
from features.names import Topics
from features.retention import Retention, RetentionError
from infra.maintenance.files import old_checkpoints, old_logs, remove, size
from infra.maintenance.topics import delete_before, due_ms, kept_topics, records_to_delete
from infra.settings import Settings, SettingsError, load_settings
from infra.streams import saved_streams


def clean(settings: Settings, retention: Retention, now_ms: int, *, dry_run: bool) -> dict[str, Any]:
    """Removes what is past its time, or with `dry_run` only says what that is. Raises `KafkaException`."""
    found = {
        "checkpoints": list(old_checkpoints(settings.flink_checkpoints_dir, retention, now_ms)),
        "logs": list(old_logs(settings, retention, now_ms)),
    }
    bytes_removed = sum(size(path) for paths in found.values() for path in paths)
    if not dry_run:
        for path in (path for paths in found.values() for path in paths):
            remove(path)
    cuts = _cut_topics(settings, now_ms, dry_run=dry_run)
    return {
        "dry_run": dry_run,
        **{f"{name}_removed": [str(path) for path in paths] for name, paths in found.items()},
        "bytes_removed": 0 if dry_run else bytes_removed,
        "topics_cut": {f"{topic}/{partition}": offset for (topic, partition), offset in cuts.items()},
    }


def _cut_topics(settings: Settings, now_ms: int, *, dry_run: bool) -> dict[tuple[str, int], int]:
    location = settings.online_store_url
    if "://" not in location and not Path(location).exists():
        return {}
    cuts: dict[tuple[str, int], int] = {}
    for stream in saved_streams(settings):
        topics = Topics(version=stream.version)
        with open_backend(location, stream.version) as store:
            before_ms = due_ms(store.erasures(), now_ms)
            if before_ms is None:
                return {}
            read = {**_read_by_lake(settings, topics), **_read_by_writer(store, topics)}
        cuts |= records_to_delete(settings.bootstrap_servers, kept_topics(topics), before_ms, read)
    if not dry_run:
        delete_before(settings.bootstrap_servers, cuts)
    return cuts


def _read_by_lake(settings: Settings, topics: Topics) -> dict[tuple[str, int], int]:
    from batch.kafka_source import checkpointed_offsets

    readers = {topics.events: "bronze_events", topics.slates: "slates"}
    return {
        (topic, partition): offset
        for topic, name in readers.items()
        for partition, offset in checkpointed_offsets(settings.spark_checkpoints_dir / name).get(topic, {}).items()
    }


def _read_by_writer(store: Backend, topics: Topics) -> dict[tuple[str, int], int]:
    derived = set(kept_topics(topics)) - {topics.events, topics.slates}
    return {(topic, partition): offset for topic in derived for partition, offset in store.offsets(topic).items()}


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m infra.maintenance", description=__doc__)
    parser.add_argument("--retention", type=Path, help="TOML of features.retention; absent: its defaults")
    parser.add_argument("--dry-run", choices=("true", "false"), default="false", type=str.lower)
    given = parser.parse_args(arguments)
    try:
        retention = Retention.read(given.retention)
        report = clean(load_settings(), retention, wall_clock_ms(), dry_run=given.dry_run == "true")
    except (KafkaException, RetentionError, SettingsError, StoreUnavailableError) as error:
        sys.stderr.write(f"maintenance: {error}\n")
        return 1
    sys.stdout.write(json.dumps(report, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
