"""What a rebuild reads besides the events topic: the lake, for what the topic does not hold any more."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import psutil
import pyarrow.compute as pc
from deltalake import DeltaTable

from features.events import FUTURE_SKEW_MS
from features.names import MS_PER_HOUR, LakeTables, Topics
from features.tiles import FAMILIES, STREAMED_RETENTION_MS
from infra.kafka import partition_spans
from infra.processes import end, with_descendants
from infra.programs import last_line
from infra.reprocess import ReprocessError, Source
from infra.settings import Settings
from infra.spark import submit_command
from infra.supervisor import log_path

KEPT_MS = STREAMED_RETENTION_MS + FUTURE_SKEW_MS + max(family.tile_ms for family in FAMILIES)
"""Every event of a tile that the stream's tiles are read for has arrived in this time: older days are the lake's."""
POLL_S = 0.5


def check_source(settings: Settings, source: Source, topics: Topics, now_ms: int) -> dict[int, int]:
    """The first offset that each partition of the events topic still holds, where the source has all before it.

    Raises `ReprocessError` where it has not, and `KafkaException`.
    """
    spans = partition_spans(settings.bootstrap_servers, topics.events)
    first = {partition: begin for partition, (begin, _) in spans.items()}
    if source is Source.LAKE:
        check_lake(settings.lake_dir, topics.events, first, now_ms)
    elif any(first.values()):
        cut = ", ".join(
            f"partition {partition} at offset {begin}" for partition, begin in sorted(first.items()) if begin
        )
        raise ReprocessError(f"{topics.events} has lost its oldest events, it begins in {cut}: take --source lake.")
    return first


def check_lake(lake: Path, topic: str, first: Mapping[int, int], now_ms: int) -> None:
    """Raises `ReprocessError` unless the lake has every record before these offsets, and all of them are old."""
    bronze = str(lake / LakeTables.bronze_events)
    if not DeltaTable.is_deltatable(bronze):
        raise ReprocessError(f"{lake} has no events: run the lake_ingest DAG first.")
    reached, newest_ms = dict.fromkeys(first, 0), dict.fromkeys(first, 0)
    rows = (
        DeltaTable(bronze)
        .to_pyarrow_dataset()
        .to_batches(columns=["partition", "offset", "arrival_ms"], filter=pc.field("topic") == topic)
    )
    for partition_R, offset_R, arrival_R in (map(np.asarray, batch.columns) for batch in rows):
        for partition, begin in first.items():
            of_R = partition_R == partition
            reached[partition] = max(reached[partition], int(offset_R[of_R].max(initial=-1)) + 1)
            gone_R = of_R & (offset_R < begin)
            newest_ms[partition] = max(newest_ms[partition], int(arrival_R[gone_R].max(initial=0)))
    for partition, begin in first.items():
        place = f"partition {partition} of {topic} begins at offset {begin} now"
        if reached[partition] < begin:
            raise ReprocessError(
                f"{place}, and the lake has read it up to {reached[partition]}: mend lake_ingest first."
            )
        if newest_ms[partition] > now_ms - KEPT_MS:
            raise ReprocessError(
                f"{place}, so some of its last {KEPT_MS // MS_PER_HOUR} hours, of which the stream counts its own "
                "tiles, is gone: give the topic a longer retention.ms, and rebuild when it has held that long."
            )


def send_from_lake(
    settings: Settings, topics: Topics, before: Mapping[int, int], say: Callable[[str], None], check: Callable[[], None]
) -> None:
    """Runs `batch/resend.py` to its end; `check` is called meanwhile and may raise. Raises `ReprocessError`."""
    log = log_path(settings.logs_dir, "resend")
    flags = {
        "--lake": str(settings.lake_dir),
        "--bootstrap-servers": settings.bootstrap_servers,
        "--topics-version": topics.version,
        "--before": ",".join(f"{partition}:{offset}" for partition, offset in sorted(before.items())),
    }
    command = submit_command(settings, "resend", *(word for flag in flags.items() for word in flag))
    say(f"day tiles and older interactions are sent from {settings.lake_dir} (see {log})")
    with log.open("ab") as out:
        job = psutil.Popen(command, stdout=out, stderr=out)
        try:
            while job.poll() is None:
                check()
                time.sleep(POLL_S)
        finally:
            end(with_descendants([job]), patience_s=0.0)
    if job.returncode:
        raise ReprocessError(f"the lake was not sent: {last_line(log)} (see {log})")
