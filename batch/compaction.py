"""Small files of the lake's tables made into larger ones. No row changes; readers of older versions lose nothing."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable

SMALL_FILES = 32
"""A partition is compacted when it has more files than this below `TARGET_BYTES`: an ingest every five minutes leaves
so many in three hours."""
TARGET_BYTES = 128 * 1024 * 1024


def compact_tables(lake: Path, tables: Iterable[str], small_files: int = SMALL_FILES) -> dict[str, int]:
    """Compacts what has too many small files; says how many files each has fewer. A repetition does nothing."""
    removed = {table: compact(lake / table, small_files) for table in tables}
    return {table: files for table, files in removed.items() if files}


def compact(table: Path, small_files: int = SMALL_FILES) -> int:
    """One table, which may be absent. Returns by how many files it has shrunk."""
    if not DeltaTable.is_deltatable(str(table)):
        return 0
    delta = DeltaTable(str(table))
    before = len(delta.file_uris())
    for partition in _crowded(delta, small_files):
        delta.optimize.compact(partition_filters=partition or None, target_size=TARGET_BYTES)
    return before - len(delta.file_uris())


def is_crowded(table: Path, small_files: int = SMALL_FILES) -> bool:
    """Whether `compact` would do anything."""
    return DeltaTable.is_deltatable(str(table)) and bool(_crowded(DeltaTable(str(table)), small_files))


def _crowded(delta: DeltaTable, small_files: int) -> list[list[tuple[str, str, str]]]:
    """The partitions with too many small files, as filters; `[]` is a table without partitions."""
    columns = delta.metadata().partition_columns
    files = pa.table(delta.get_add_actions(flatten=True)).to_pylist()
    small = Counter(
        tuple(str(file[f"partition.{column}"]) for column in columns)
        for file in files
        if file["size_bytes"] < TARGET_BYTES
    )
    return [
        [(column, "=", value) for column, value in zip(columns, values, strict=True)]
        for values, count in sorted(small.items())
        if count > small_files
    ]
