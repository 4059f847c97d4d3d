"""What anybody would write for the day tiles: one GROUP BY a family over the days, written to Delta. To compare with.

    spark-submit … tests/bench/plain_day_tiles.py LAKE OUT FIRST_DAY LAST_DAY

No topic gets the rows, no day is replaced in place, and a rerun writes everything again.
"""

import sys

from pyspark.sql.functions import expr

from batch.session import open_session
from features.names import LakeTables
from features.tiles import DAY_TILE_MS, FAMILIES, column_sql

lake, out, first, last = sys.argv[1:]
spark = open_session("plain_day_tiles", 32)
events = spark.read.format("delta").load(f"{lake}/{LakeTables().silver_events}")
days = events.where(f"event_date BETWEEN DATE'{first}' AND DATE'{last}'")
for family in FAMILIES:
    start = expr(f"event_time_ms - event_time_ms % {DAY_TILE_MS}").alias("tile_start_ms")
    columns = [expr(column_sql(column)).alias(column.name) for column in family.columns]
    newest = expr("max(event_time_ms)").alias("max_event_time_ms")
    tiles = days.groupBy(*family.key_fields, "event_date", start).agg(expr("count(*)").alias("n"), newest, *columns)
    tiles.write.format("delta").mode("overwrite").partitionBy("event_date").save(f"{out}/{family.name}")
