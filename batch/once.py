"""Counting each record once: which of the records with one key came first, and what the rest are."""

from collections.abc import Sequence
from enum import StrEnum

from pyspark.sql import DataFrame
from pyspark.sql.functions import expr


class Outcome(StrEnum):
    """What became of a record."""

    NEW = "new"
    """The first with its key."""
    KNOWN = "known"
    """The very record that the table holds already: a batch that is run again after a kill."""
    DUPLICATE = "duplicate"
    """A later record with a known key, whatever its payload."""
    TOO_LATE = "too_late"
    """Too late, whatever else it is."""
    DEAD = "dead"
    """Refused: `reason` says why."""


def classify(judged: DataFrame, held: DataFrame, keys: Sequence[str]) -> DataFrame:
    """Adds `outcome` to judged records (`reason`, `too_late`, `partition`, `offset` and the keys; null where refused).

    Records that are too late neither count as first nor as copies. `held` is the table that holds the first record of
    each key. The first in a batch is the one with the lowest
    (offset, partition); a user's records share a partition, so for them it is the order of sending.
    The answer does not change when a part of the batch has been written already.
    """
    names = ", ".join(keys)
    place = "struct(offset, partition)"
    ranked = judged.select("*", expr(f"min({place}) OVER (PARTITION BY {names}, too_late)").alias("_first"))
    known = held.select(*keys, expr(place).alias("_held"))
    joined = ranked.join(known, list(keys), "left")
    outcome = f"""CASE
        WHEN reason IS NOT NULL THEN '{Outcome.DEAD}'
        WHEN too_late THEN '{Outcome.TOO_LATE}'
        WHEN _held = {place} THEN '{Outcome.KNOWN}'
        WHEN _held IS NULL AND _first = {place} THEN '{Outcome.NEW}'
        ELSE '{Outcome.DUPLICATE}' END"""
    return joined.select(*judged.columns, expr(outcome).alias("outcome"))


def absent_from(records: DataFrame, held: DataFrame) -> DataFrame:
    """The records whose (topic, partition, offset) the table does not hold yet."""
    source = ["topic", "partition", "offset"]
    return records.join(held.select(*source), source, "left_anti")
