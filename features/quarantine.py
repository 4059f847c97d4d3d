"""The register of refused partitions: what a quality gate has shut, and those who read a shut table find out.

Rows are judged where they stand and stay there: the lake's accounts, and what tells a second copy of an event from the
first, need them. The register holds what is shut *now*: a gate replaces its suite's rows in one commit with each
judgement, so a partition that was repaired leaves it, and Delta's history of the register says what was shut before.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake

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


def replace_failures(lake: Path, suite: str, table_version: int, judged_at_ms: int, failures: list[Failure]) -> None:
    """Makes these the suite's refusals, in one commit; none at all opens the gate.

    Each suite has a partition of its own, so gates that run at a time do not meet.
    """
    path = str(lake / TABLES.quarantine)
    stamp = {"suite": suite, "table_version": table_version, "judged_at_ms": judged_at_ms}
    rows = pa.Table.from_pylist([{**stamp, **asdict(failure)} for failure in failures], schema=_SCHEMA)
    mine = f"suite = '{suite}'"
    if not DeltaTable.is_deltatable(path):
        if failures:
            write_deltalake(path, rows, partition_by=["suite"], mode="append")
    elif failures:
        write_deltalake(path, rows, mode="overwrite", predicate=mine)
    elif held_partitions(lake, suite):
        DeltaTable(path).delete(mine)


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
