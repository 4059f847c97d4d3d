"""Which lakes may stand in for events that Kafka has removed."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from features.names import LakeTables
from infra.reprocess import ReprocessError
from infra.reprocess.source import KEPT_MS, check_lake

TOPIC, NOW_MS = "events", 1_800_000_000_000
OLD_MS = NOW_MS - KEPT_MS - 1


def lake_of(tmp_path: Path, *rows: tuple[str, int, int, int]) -> Path:
    """Bronze rows of topic, partition, offset and arrival."""
    columns = zip(("topic", "partition", "offset", "arrival_ms"), zip(*rows, strict=True), strict=True)
    types = {"partition": pa.int32()}
    table = pa.table({name: pa.array(list(values), types.get(name)) for name, values in columns})
    write_deltalake(str(tmp_path / LakeTables.bronze_events), table)
    return tmp_path


def test_lake_that_has_read_all_that_is_gone_and_gone_long_ago(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, (TOPIC, 0, 0, OLD_MS), (TOPIC, 0, 1, OLD_MS), (TOPIC, 0, 2, NOW_MS), (TOPIC, 1, 0, NOW_MS))
    check_lake(lake, TOPIC, {0: 2, 1: 0}, NOW_MS)


def test_no_lake(tmp_path: Path) -> None:
    with pytest.raises(ReprocessError, match="run the lake_ingest DAG first"):
        check_lake(tmp_path, TOPIC, {0: 0}, NOW_MS)


def test_lake_that_has_not_read_what_is_gone(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, (TOPIC, 0, 0, OLD_MS), (TOPIC, 1, 9, OLD_MS), ("another", 0, 9, OLD_MS))
    with pytest.raises(ReprocessError, match="begins at offset 2 now, and the lake has read it up to 1"):
        check_lake(lake, TOPIC, {0: 2, 1: 3}, NOW_MS)


def test_what_is_gone_was_still_needed(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, (TOPIC, 0, 0, OLD_MS), (TOPIC, 0, 1, OLD_MS + 2), (TOPIC, 0, 2, NOW_MS))
    with pytest.raises(ReprocessError, match=r"begins at offset 2 now, so some of its last 96 hours.*longer retention"):
        check_lake(lake, TOPIC, {0: 2}, NOW_MS)
