"""Day tiles and finalised offline features, from the lake; gated before they reach the online store."""

from datetime import timedelta

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset

from infra.airflow import asset, default_args, python_job, spark_job
from infra.airflow_gate import GateOperator

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
`gold/features/*`, one table a Feast view. After the gate the daily views go to the online store. The asset
`offline_features`.

### Owner
Data platform.

### Rerun
Safe at any time: a day tile is an absolute row, and of two rows of a tile the one that counted more events is kept.

### On failure
Read the log of `finalise`. A missing table means that `lake_ingest` has not succeeded yet; a Kafka error means that
the broker is down. `gate`: the log names the view, the expectation and the column; the task's link `Data Docs` shows
the figures, and the online store keeps the values it has (`batch/QUALITY.md`). Online reads go on with the streamed
tiles, which live for four days.
""",
) as dag:
    finalise = SparkSubmitOperator(
        task_id="finalise", **spark_job("offline_features", "--lake", "--bootstrap-servers", "--topics-version")
    )
    gate = GateOperator(task_id="gate", retries=0, suites=("features",))
    materialise = BashOperator(
        task_id="materialise",
        inlets=[LAKE_EVENTS],
        outlets=[OFFLINE_FEATURES],
        **python_job("batch.materialize", "--feature-repo"),
    )
    finalise >> gate >> materialise
