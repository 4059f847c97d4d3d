"""What each micro-batch of the lake ingest does with its records. Every write is keyed, so a batch may run twice.

A batch that was killed between two writes is planned again by the checkpoint with the same records; whatever of
it the tables hold already is recognised by its key or its offset and left alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from delta.tables import DeltaTable
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import expr

from batch.contract_sql import read_contract
from batch.lake import ITEM_COLUMNS, SLATE_COLUMNS, TABLES, read_table
from batch.once import Outcome, absent_from, classify

Stage = Callable[[DataFrame, int], None]

_UNPARSABLE = "unparsable"
_CORRUPT = "_corrupt"
_OPTIONS = f"map('columnNameOfCorruptRecord', '{_CORRUPT}', 'allowSingleQuotes', 'false')"
_TEXT = "CASE WHEN is_valid_utf8(value) THEN CAST(value AS STRING) END"


def events_stage(spark: SparkSession, lake: Path) -> Stage:
    """Bronze records → silver events once each, too late ones, duplicates and dead letters."""

    def run(records: DataFrame, _batch_id: int) -> None:
        # Only dead letters need their bytes again: the others are not carried through the shuffle.
        judged = read_contract(records).drop("key")
        judged = judged.withColumn("value", expr("CASE WHEN reason IS NOT NULL THEN value END"))
        keys = ("user_id", "event_id")
        _write_once(spark, lake, TABLES.silver_events, judged, keys, "event_id")

    return run


def slates_stage(spark: SparkSession, lake: Path) -> Stage:
    """Records of the slates topic → one row a request_id, duplicates and dead letters."""

    def run(records: DataFrame, _batch_id: int) -> None:
        judged = read_slates(records).withColumn("too_late", expr("false"))
        _write_once(spark, lake, TABLES.slates, judged, ("request_id",), "request_id")

    return run


def items_stage(spark: SparkSession, lake: Path) -> Stage:
    """Records of the catalogue topic → the latest row per item_id, and dead letters."""

    def run(records: DataFrame, _batch_id: int) -> None:
        judged = read_items(records)
        latest = "row_number() OVER (PARTITION BY item_id ORDER BY offset DESC) = 1"
        newest = judged.where("reason IS NULL").select("*", expr(latest).alias("_newest")).where("_newest")
        items = DeltaTable.forPath(spark, str(lake / TABLES.items))
        (
            items.alias("held")
            .merge(newest.drop("_newest", "reason", "value", "key").alias("new"), "held.item_id = new.item_id")
            .whenMatchedUpdateAll("new.offset > held.offset")
            .whenNotMatchedInsertAll()
            .execute()
        )
        _append_absent(spark, lake, TABLES.dead_letters, judged.where("reason IS NOT NULL"))

    return run


def read_slates(records: DataFrame) -> DataFrame:
    """Slate records as columns, with `reason` where one is not a slate."""
    required = ("request_id", "user_id", "served_at_ms", "items")
    parsed = records.select(
        "*", expr(f"from_json({_TEXT}, '{SLATE_COLUMNS}, {_CORRUPT} STRING', {_OPTIONS})").alias("_slate")
    )
    missing = " ".join(f"WHEN _slate.{name} IS NULL THEN 'missing:{name}'" for name in required)
    reason = f"CASE WHEN _slate IS NULL OR _slate.{_CORRUPT} IS NOT NULL THEN '{_UNPARSABLE}' {missing} END"
    columns = [column.split()[0] for column in _top_level(SLATE_COLUMNS)]
    judged = parsed.select("*", expr(reason).alias("reason"))
    fields = (expr(f"CASE WHEN reason IS NULL THEN _slate.{name} END").alias(name) for name in columns)
    return judged.select(*records.columns, "reason", *fields)


def _top_level(columns: str) -> list[str]:
    """Splits a list of columns at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(columns):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(columns[start:at].strip())
            start = at + 1
    return [*parts, columns[start:].strip()]


def read_items(records: DataFrame) -> DataFrame:
    """Catalogue records as columns under the rules of `features.items.parse_item`, with `reason` where refused."""
    parsed = records.select("*", expr(f"try_parse_json({_TEXT})").alias("_item"))
    rules = [f"WHEN _item IS NULL OR NOT schema_of_variant(_item) LIKE 'OBJECT%' THEN '{_UNPARSABLE}'"]
    fields = []
    for column in _top_level(ITEM_COLUMNS):
        name, sql_type = column.split()
        got = f"variant_get(_item, '$.{name}')"
        wrong = f"coalesce(schema_of_variant({got}), 'VOID') != '{sql_type}'"
        if name == "available":  # absent means available
            wrong = f"{got} IS NOT NULL AND {wrong}"
        rules.append(f"WHEN {wrong} THEN 'invalid:{name}'")
        default = ", true" if name == "available" else ""
        typed = f"coalesce(try_variant_get(_item, '$.{name}', '{sql_type}'){default})"
        fields.append(expr(f"CASE WHEN reason IS NULL THEN {typed} END").alias(name))
    judged = parsed.select("*", expr(f"CASE {' '.join(rules)} END").alias("reason"))
    return judged.select(*records.columns, "reason", *fields)


def _write_once(
    spark: SparkSession, lake: Path, table: str, judged: DataFrame, keys: Sequence[str], record_id: str
) -> None:
    """Appends the new records to the table, the others to theirs."""
    held = read_table(spark, lake, table)
    classified = classify(judged, held, keys).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        counts = {row["outcome"]: row["count"] for row in classified.groupBy("outcome").count().collect()}
        if counts.get(Outcome.NEW):
            new = classified.where(f"outcome = '{Outcome.NEW}'").select(*held.columns)
            if "event_date" in held.columns:
                new = new.repartition("event_date")
            _append(new, lake / table)
        if counts.get(Outcome.DUPLICATE):
            later = classified.where(f"outcome = '{Outcome.DUPLICATE}'").withColumn("record_id", expr(record_id))
            _append_absent(spark, lake, TABLES.duplicates, later)
        if counts.get(Outcome.TOO_LATE):
            _append_absent(spark, lake, TABLES.too_late_events, classified.where(f"outcome = '{Outcome.TOO_LATE}'"))
        if counts.get(Outcome.DEAD):
            _append_absent(spark, lake, TABLES.dead_letters, classified.where(f"outcome = '{Outcome.DEAD}'"))
    finally:
        classified.unpersist()


def _append_absent(spark: SparkSession, lake: Path, table: str, records: DataFrame) -> None:
    """Appends the records that the table does not hold yet, by their place in Kafka."""
    known = read_table(spark, lake, table)
    new = absent_from(records, known).select(*known.columns)
    if not new.isEmpty():
        _append(new, lake / table)


def _append(rows: DataFrame, path: Path) -> None:
    rows.write.format("delta").mode("append").save(str(path))
