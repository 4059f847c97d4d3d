"""The register of refused partitions: what a quality gate has shut, and those who read a shut table find out.

Rows are judged where they stand and stay there: the lake's accounts, and what tells a second copy of an event from the
first, need them. The register holds what is shut *now*: with each judgement a gate replaces, in one commit, its suite's
rows of the partitions that it has judged, so a partition that was repaired leaves it, and Delta's history of the
register says what was shut before.
"""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from features.names import LakeTables

TABLES = LakeTables()
ALL = "all"
"""Partition of a failure that concerns the table as a whole."""
SUITE_TABLES: dict[str, str] = {
    "events": TABLES.silver_events,
    "items": TABLES.items,
    "slates": TABLES.slates,
    "features": TABLES.offline_features,
    "examples": TABLES.examples,
}
"""The table that each suite judges, below the lake's root."""
_SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("table_version", pa.int64()),
        ("judged_at_ms", pa.int64()),
        ("partition", pa.string()),
        ("expectation", pa.string()),
        ("column", pa.string()),
        ("observed", pa.string()),
    ]
)


class QuarantineError(RuntimeError):
    """Somebody wants to read what a gate has shut."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One expectation that one partition does not meet."""

    partition: str
    """An event date, or `ALL`."""
    expectation: str
    column: str
    observed: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What one run of a gate has found."""

    suite: str
    table_version: int
    judged_at_ms: int
    partitions: Collection[str]
    """All whose rows it has read, and all that were shut; other refusals of the suite are another run's, and stay."""
    failures: Collection[Failure]


@retry(
    retry=retry_if_exception_type(CommitFailedError),
    stop=stop_after_attempt(20),
    wait=wait_random_exponential(multiplier=0.05, max=2),
    reraise=True,
)
def register(lake: Path, judgement: Judgement) -> None:
    """Makes the failures the suite's refusals of the judged partitions, in one commit.

    Runs of one gate over other days may end at the same time, as parts of a backfill do: whoever commits second reads
    again what the first has written. Raises `CommitFailedError` when that does not end.
    """
    path = str(lake / TABLES.quarantine)
    stamp = {each: getattr(judgement, each) for each in ("suite", "table_version", "judged_at_ms")}
    failed = pa.Table.from_pylist([{**stamp, **asdict(failure)} for failure in judgement.failures], schema=_SCHEMA)
    if not DeltaTable.is_deltatable(path):
        if not failed:
            return
        DeltaTable.create(path, _SCHEMA, mode="ignore", partition_by=["suite"])
    table = DeltaTable(path)
    held = table.to_pyarrow_dataset().to_table(filter=pc.field("suite") == judgement.suite)
    judged = {*judgement.partitions, *(failure.partition for failure in judgement.failures), ALL}
    others = held.filter(~pc.field("partition").isin(sorted(judged)))
    if failed or len(others) < len(held):
        rows = pa.concat_tables([failed, others.select(_SCHEMA.names).cast(_SCHEMA)])
        mine = f"suite = '{judgement.suite}'"
        if rows:
            write_deltalake(table, rows, mode="overwrite", predicate=mine)
        else:
            table.delete(mine)


def held_partitions(lake: Path, suite: str) -> dict[str, list[str]]:
    """The partitions that the suite's gate has shut, each with the expectations that it failed."""
    path = str(lake / TABLES.quarantine)
    if not DeltaTable.is_deltatable(path):
        return {}
    held: dict[str, list[str]] = {}
    rows = DeltaTable(path).to_pyarrow_dataset().to_table(filter=pc.field("suite") == suite)
    for row in rows.select(["partition", "expectation", "column"]).to_pylist():
        held.setdefault(row["partition"], []).append(f"{row['expectation']}({row['column']})")
    return {partition: sorted(set(held[partition])) for partition in sorted(held)}


def refuse_held(lake: Path, tables: Iterable[str]) -> None:
    """Raises `QuarantineError` when a gate has shut a partition of one of these tables.

    For every job that reads them, so that a schedule or a person cannot start it past a shut gate.
    """
    wanted = set(tables)
    for suite, table in SUITE_TABLES.items():
        held = held_partitions(lake, suite) if table in wanted else {}
        if held:
            said = "; ".join(f"{partition}: {', '.join(failed)}" for partition, failed in held.items())
            raise QuarantineError(
                f"{table} is in quarantine ({said}). Repair these partitions, or say in the limits' file that they are "
                f"as they should be, then run `python -m batch.quality --suite {suite}` again."
            )
