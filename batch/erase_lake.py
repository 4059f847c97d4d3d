"""A user out of the lake: their rows in every table, the files that held them, and what Delta's log quotes of them.

`python -m batch.erase_lake --lake DIR --checkpoints DIR --digest SHA256 [--also DIR …] [--report FILE]`
Nobody else may write the lake meanwhile, since old files go at once: it runs in the pool of the Spark jobs. A rerun
finishes what a killed run has begun.
"""

import argparse
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from batch.command import fail, write_report
from batch.delta_log import log_files, redact_log
from batch.user_traces import files_that_mention, ids_with_digest, mentions, texts, whole_id
from features.erasure import ErasureError, checked_digest
from features.names import LakeTables

TABLES = LakeTables()
OF_EVENTS = (
    TABLES.silver_events,
    TABLES.too_late_events,
    TABLES.duplicates,
    TABLES.dead_letters,
    TABLES.bronze_events,
)
"""Where each record of the events topic stands twice, in bronze, which comes last, and in one of the others."""
PLACES_A_DELETE = 1_000
USER_ID = "user_id"
QUOTES = "observed"
"""Column of the quarantine in which a gate quotes the values that it refused."""
Place = tuple[str, int, int]
"""Topic, partition and offset of a record."""


def erase_from_lake(
    lake: Path, checkpoints: Path, digest: str, also: Iterable[Path] = (), docs: Path | None = None
) -> dict[str, object]:
    """Erases whoever has the digest; says how many rows of which table went. Safe at any time, and again.

    `also` are directories of plain Parquet files with a column `user_id`, such as a training run's examples; `docs`
    holds the pages of the quality gates, of which those that quote the user go: the next judgement writes new ones.
    Aggregates of items stay: settled day tiles are not counted again (`batch.day_tiles`).
    """
    tables, roots = _delta_tables(lake), (lake, *also)
    users = _users(lake, tables, roots, digest)
    removed: dict[str, int] = defaultdict(int)
    for user_id in sorted(users):
        for table, rows in _erase_events(lake, user_id).items():
            removed[table] += rows
        for table in tables:
            if table not in OF_EVENTS:
                removed[table] += _erase_rows(lake / table, user_id)
        for root in roots:
            removed["plain files"] += sum(_erase_from_file(file, user_id) for file in _plain_parquet(root))
    pages = files_that_mention([docs], digest) if docs is not None else []
    for page in pages:
        page.unlink()
    removed["pages of quality gates"] = len(pages)
    if removed.get(TABLES.bronze_events):
        _forget_silver_reader_if_behind(lake, checkpoints)
    for table in tables:
        _forget_old_files(lake / table, users)
    return {"rows_removed": {table: rows for table, rows in sorted(removed.items()) if rows}, "tables": len(tables)}


def _delta_tables(lake: Path) -> list[str]:
    return sorted(log.parent.relative_to(lake).as_posix() for log in lake.rglob("_delta_log") if log.is_dir())


def _plain_parquet(root: Path) -> list[Path]:
    """Parquet files that belong to no Delta table."""
    delta = [log.parent for log in root.rglob("_delta_log")]
    return [file for file in sorted(root.rglob("*.parquet")) if not any(file.is_relative_to(table) for table in delta)]


def _users(lake: Path, tables: list[str], roots: tuple[Path, ...], digest: str) -> set[str]:
    """The id with the digest, as the lake knows it; none when nothing is left."""

    def said() -> Iterator[bytes]:
        for table in tables:
            for column in (USER_ID, "key", "value", QUOTES):
                for value in _distinct(lake / table, column):
                    yield value.encode() if isinstance(value, str) else value
            for file in log_files(lake / table):
                yield from texts(file)
        for file in (file for root in roots for file in _plain_parquet(root)):
            if USER_ID in pq.read_schema(file).names:
                column = pq.read_table(file, columns=[USER_ID])[USER_ID]
                yield from (value.encode() for value in pc.unique(column).to_pylist() if value)

    return ids_with_digest(said(), digest)


def _distinct(table: Path, column: str) -> Iterator[bytes | str]:
    """A column's values, once a batch; of payloads only those of dead letters and the like, which no column repeats."""
    dataset = DeltaTable(str(table)).to_pyarrow_dataset()
    if column not in dataset.schema.names or (column == "value" and table.name not in ("dead_letters", "quarantine")):
        return
    for batch in dataset.to_batches(columns=[column]):
        yield from (value for value in pc.unique(batch.column(0)).to_pylist() if value is not None)


# The tables of the events topic: one record is one place in all of them.


def _erase_events(lake: Path, user_id: str) -> dict[str, int]:
    present = [table for table in OF_EVENTS if DeltaTable.is_deltatable(str(lake / table))]
    places: set[Place] = set()
    for table in present:
        places |= set(_places(lake / table, user_id))
    return {table: _delete_places(lake / table, places) for table in present}


def _places(table: Path, user_id: str) -> Iterator[Place]:
    """The user's records: by the column, by Kafka's key, or by what the payload says."""
    dataset = DeltaTable(str(table)).to_pyarrow_dataset()
    columns = [name for name in (USER_ID, "key", "value") if name in dataset.schema.names]
    if USER_ID in columns:
        columns = [USER_ID]
    for batch in dataset.to_batches(columns=[*columns, "topic", "partition", "offset"]):
        for row in _candidates(batch, columns, user_id).to_pylist():
            own = row.get(USER_ID) == user_id or row.get("key") == user_id.encode()
            if own or mentions(row.get("value") or b"", user_id):
                yield row["topic"], row["partition"], row["offset"]


def _candidates(batch: pa.RecordBatch, columns: list[str], user_id: str) -> pa.RecordBatch:
    """Rows that hold the id's bytes in one of the columns, or an escape that may hide it."""
    masks = [pc.match_substring(_searchable(batch[name]), user_id) for name in columns]
    if "value" in columns:
        masks.append(pc.match_substring(_searchable(batch["value"]), "\\"))
    mask = masks[0]
    for other in masks[1:]:
        mask = pc.or_kleene(mask, other)
    return batch.filter(pc.fill_null(mask, False))


def _searchable(column: pa.Array) -> pa.Array:
    """Arrow searches neither views of bytes nor, in one call, texts and bytes."""
    return column.cast(pa.large_binary())


def _delete_places(table: Path, places: set[Place]) -> int:
    by_partition: dict[tuple[str, int], list[int]] = defaultdict(list)
    for topic, partition, offset in sorted(places):
        by_partition[topic, partition].append(offset)
    delta, removed = DeltaTable(str(table)), 0
    for (topic, partition), offsets in by_partition.items():
        for first in range(0, len(offsets), PLACES_A_DELETE):
            of = ", ".join(map(str, offsets[first : first + PLACES_A_DELETE]))
            done = delta.delete(f'topic = \'{topic}\' AND "partition" = {partition} AND "offset" IN ({of})')
            removed += int(done["num_deleted_rows"] or 0)
    return removed


def _forget_silver_reader_if_behind(lake: Path, checkpoints: Path) -> None:
    """Lets silver judge bronze from its beginning where it has not read all of it: files that it was about to read
    are gone. What silver and its side tables hold already they recognise, so nothing is counted twice.
    """
    rows = {
        table: DeltaTable(str(lake / table)).count()
        for table in OF_EVENTS
        if table != TABLES.dead_letters and DeltaTable.is_deltatable(str(lake / table))
    }
    bronze = rows.pop(TABLES.bronze_events)
    topics = set(_distinct(lake / TABLES.bronze_events, "topic"))
    letters = DeltaTable(str(lake / TABLES.dead_letters)).to_pyarrow_dataset()
    dead = letters.count_rows(filter=ds.field("topic").isin(sorted(topics)))
    if bronze != sum(rows.values()) + dead:
        shutil.rmtree(checkpoints / "silver_events", ignore_errors=True)


# Every other table.


def _erase_rows(table: Path, user_id: str) -> int:
    delta = DeltaTable(str(table))
    names = delta.schema().to_arrow().names
    if USER_ID in names:
        return int(delta.delete(f"{USER_ID} = '{user_id}'")["num_deleted_rows"] or 0)
    if QUOTES not in names:
        return 0
    rows = pa.table(delta.to_pyarrow_table())
    kept = [not _row_mentions(row, user_id) for row in rows.to_pylist()]
    if not all(kept):
        write_deltalake(delta, rows.filter(pa.array(kept)), mode="overwrite")
    return kept.count(False)


def _row_mentions(row: dict[str, object], user_id: str) -> bool:
    found = whole_id(user_id).search
    return any(found(value.encode()) for value in row.values() if isinstance(value, str))


def _erase_from_file(file: Path, user_id: str) -> int:
    """Replaces the file at once by one without the user."""
    if USER_ID not in pq.read_schema(file).names:
        return 0
    rows = pq.read_table(file)
    kept = rows.filter(pc.fill_null(pc.not_equal(rows[USER_ID], user_id), True))
    if removed := len(rows) - len(kept):
        unfinished = file.with_name(f".{file.name}.unfinished")
        pq.write_table(kept, unfinished)
        unfinished.replace(file)
    return removed


def _forget_old_files(table: Path, users: set[str]) -> None:
    """Removes the files that the newest version does not need, whatever their age, and the users from the log."""
    DeltaTable(str(table)).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    for user_id in users:
        redact_log(table, user_id)


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m batch.erase_lake", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True, help="of lake_ingest")
    parser.add_argument("--digest", required=True, help="SHA-256 of the user_id, in hexadecimal digits")
    parser.add_argument("--also", type=Path, action="append", default=[], help="directory with Parquet files by user")
    parser.add_argument("--docs", type=Path, help="Data Docs of the quality gates; default: LAKE/../data_docs")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args(arguments)
    try:
        digest = checked_digest(given.digest)
        lake = given.lake.resolve()
        docs = given.docs or lake.parent / "data_docs"
        write_report(erase_from_lake(lake, given.checkpoints, digest, given.also, docs), given.report)
    except ErasureError as error:
        return fail("erase_lake", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
