"""The Delta tables of the lake: their schemas, creating them, and reading counts and versions without a JVM."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
from deltalake import DeltaTable as DeltaLog
from deltalake import Schema
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import StructType

from features.events import FIELDS, FieldKind
from features.names import LakeTables

TABLES = LakeTables()

_SOURCE = "topic STRING, partition INT, offset BIGINT, arrival_ms BIGINT"
_EVENT = ", ".join(f"{field.name} {'BIGINT' if field.kind is FieldKind.INTEGER else 'STRING'}" for field in FIELDS)
SLATE_COLUMNS = (
    "request_id STRING, user_id STRING, served_at_ms BIGINT, surface STRING, bundle_id STRING, arm STRING, "
    "degraded ARRAY<STRING>, snapshot_instant_ms BIGINT, newest_event_ms BIGINT, "
    "items ARRAY<STRUCT<item_id: STRING, position: INT, score: DOUBLE, propensity: DOUBLE, sources: ARRAY<STRING>, "
    "probabilities: MAP<STRING, DOUBLE>, features: MAP<STRING, DOUBLE>>>, "
    "candidates ARRAY<STRUCT<item_id: STRING, score: DOUBLE, sources: ARRAY<STRING>>>, schema_version INT, "
    "spec_version STRING"
)
ITEM_COLUMNS = (
    "item_id STRING, category STRING, creator_id STRING, language STRING, duration_ms BIGINT, "
    "published_at_ms BIGINT, available BOOLEAN"
)


@dataclass(frozen=True, kw_only=True)
class TableDefinition:
    """One table: its path below the lake's root, its columns and what it is partitioned by."""

    path: str
    columns: str
    partitioned_by: tuple[str, ...] = ()


INGESTED: tuple[TableDefinition, ...] = (
    TableDefinition(path=TABLES.bronze_events, columns=f"value BINARY, key BINARY, {_SOURCE}"),
    TableDefinition(
        path=TABLES.silver_events,
        columns=f"{_EVENT}, event_date DATE, {_SOURCE}",
        partitioned_by=("event_date",),
    ),
    TableDefinition(path=TABLES.too_late_events, columns=f"{_EVENT}, {_SOURCE}"),
    TableDefinition(path=TABLES.dead_letters, columns=f"reason STRING, value BINARY, {_SOURCE}"),
    TableDefinition(path=TABLES.duplicates, columns=f"user_id STRING, record_id STRING, {_SOURCE}"),
    TableDefinition(path=TABLES.items, columns=f"{ITEM_COLUMNS}, {_SOURCE}"),
    TableDefinition(path=TABLES.slates, columns=f"{SLATE_COLUMNS}, value BINARY, {_SOURCE}"),
)
"""`duplicates.record_id` is the event_id, or a slate's request_id."""


def create_tables(lake: Path, definitions: tuple[TableDefinition, ...] = INGESTED) -> None:
    """Creates the tables that are not there yet, and gives the others the columns that they lack, null in old rows."""
    for definition in definitions:
        columns = StructType.fromDDL(definition.columns)
        assert isinstance(columns, StructType)  # a DDL without brackets is always one
        schema = to_arrow_schema(columns)
        partitioned_by = list(definition.partitioned_by)
        table = DeltaLog.create(str(lake / definition.path), schema, mode="ignore", partition_by=partitioned_by)
        held = {field.name for field in table.schema().fields}
        if missing := [field for field in Schema.from_arrow(schema).fields if field.name not in held]:
            table.alter.add_columns(missing)


def read_table(spark: SparkSession, lake: Path, table: str) -> DataFrame:
    """The table's newest version."""
    return spark.read.format("delta").load(str(lake / table))


def row_count(lake: Path, table: str) -> int:
    """Rows by the table's log alone; 0 for a table that does not exist."""
    path = str(lake / table)
    return int(DeltaLog(path).count()) if DeltaLog.is_deltatable(path) else 0


def rows_of_topic(lake: Path, table: str, topic: str) -> int:
    """Rows of the table that came from the topic."""
    topics = DeltaLog(str(lake / table)).to_pyarrow_dataset()
    return int(topics.count_rows(filter=pc.field("topic") == topic))


def table_versions(lake: Path, tables: tuple[str, ...]) -> dict[str, int]:
    """The newest version of each table that exists, by its path below the lake."""
    paths = {table: str(lake / table) for table in tables}
    return {table: DeltaLog(path).version() for table, path in paths.items() if DeltaLog.is_deltatable(path)}
