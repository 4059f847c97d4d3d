"""The Spark session of every job: Delta, UTC, sizes for one small machine.

The master, the driver's memory and the jars are the submitter's to say (`spark-submit --master … --jars …`), so
that moving to a cluster is a change of connection. What a job's result depends on is fixed here.
"""

from pyspark.sql import SparkSession

SESSION_SETTINGS: dict[str, str] = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # Dates are UTC days: event_date must not depend on where the job runs.
    "spark.sql.session.timeZone": "UTC",
    # A wrong cast or an overflow is an error, never a silent null.
    "spark.sql.ansi.enabled": "true",
    # What Feast and pyarrow read as an instant in UTC.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    # Delta's log has few entries here; its default of 50 tasks per read costs seconds.
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.databricks.delta.properties.defaults.checkpointInterval": "20",
}


def open_session(name: str, shuffle_partitions: int = 4) -> SparkSession:
    """The running session, or a new one with the submitter's master, memory and jars.

    `shuffle_partitions` bounds the parallelism of joins and groupings; adaptive execution merges small ones.
    """
    builder = SparkSession.Builder().appName(name).config("spark.sql.shuffle.partitions", str(shuffle_partitions))
    for key, value in SESSION_SETTINGS.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session
