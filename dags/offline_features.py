"""Day tiles and finalised offline features, from the lake; day tiles also go back to the tile topics."""

from datetime import timedelta

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG, Asset

from infra.airflow import asset, default_args, spark_job

LAKE_EVENTS = Asset(**asset("lake_events"))
OFFLINE_FEATURES = Asset(**asset("offline_features"))

with DAG(
    dag_id="offline_features",
    schedule=[LAKE_EVENTS],
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=2),
    default_args=default_args(timeout_min=45),
    tags=["features"],
    doc_md="""
### Purpose
Counts every past day by the same rule as the stream, and writes the offline side of the Feast views.

### Inputs
`silver/events` (asset `lake_events`).

### Outputs
`gold/day_tiles/*`, the same rows on the tile topics (so that long windows online have no seam), and
`gold/features/*`, one table a Feast view. The asset `offline_features`.

### Owner
Data platform.

### Rerun
Safe at any time: a day tile is an absolute row, and of two rows of a tile the one that counted more events is kept.

### On failure
Read the log of `finalise`. A missing table means that `lake_ingest` has not succeeded yet; a Kafka error means that
the broker is down. Online reads go on with the streamed tiles, which live for four days.
""",
) as dag:
    SparkSubmitOperator(
        task_id="finalise",
        outlets=[OFFLINE_FEATURES],
        **spark_job("offline_features", "--lake", "--bootstrap-servers", "--feature-repo", "--topics-version"),
    )
