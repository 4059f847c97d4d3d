"""What every job asks of Spark, on a few rows: `infra.class_archives` runs it to see which classes that takes."""

import sys
from pathlib import Path

from pyspark.sql.functions import expr

from batch.session import open_session


def main(work: Path) -> None:
    """Reads and writes below `work`."""
    spark = open_session("session")
    rows = spark.range(1_000).selectExpr("id", "CAST(id % 7 AS STRING) AS key", "to_json(struct(id)) AS value")
    table = str(work / "table")
    rows.write.format("delta").save(table)
    held = spark.read.format("delta").load(table).selectExpr("*", "from_json(value, 'id BIGINT') AS parsed")
    held.groupBy("key").agg(expr("max(parsed.id)")).collect()
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
