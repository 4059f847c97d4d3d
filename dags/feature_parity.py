"""Served feature values against point-in-time recomputation, row by row; too many mismatches block promotions."""

from datetime import timedelta

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset

from infra.airflow import asset, default_args, python_job, spark_job

LAKE_EVENTS = Asset(**asset("lake_events"))

with DAG(
    dag_id="feature_parity",
    schedule=[LAKE_EVENTS],
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=2),
    default_args=default_args(timeout_min=45),
    tags=["features", "serving"],
    doc_md="""
### Purpose
Tells whether the ranker is served the features that it is trained on: each value that the slate log says was read is
computed again from the lake, as of the instant at which it was read.

### Inputs
`silver/slates` and `silver/events` (asset `lake_events`): slates of the last 24 hours, 500 of them at most.

### Outputs
`reports/feature_parity.json` below the stack's folder and `gold/feature_parity` in the lake: per feature the rows, the
mismatches, the worst difference and examples. Rows with an arrival in the last second before they were finalised are
told apart and not judged. `promote_bundle` and `millrace models promote` read the report.

### Owner
Recommendations.

### Rerun
Safe at any time. A run within the hour after a report does nothing; remove the report to have a new one now.

### On failure
`compare`: read the log, clear the task; promotions go on by the last report until it is 48 hours old. `gate`: the log
names the features. Look at their examples in the report: user features come from the online writer, the others from
the item snapshot. A wrong Spark side shows in `tests/integration/test_point_in_time.py`. Until a run passes, no bundle
is promoted, except by `millrace models promote ID --force --reason TEXT`.
""",
) as dag:
    compare = SparkSubmitOperator(
        task_id="compare", **spark_job("feature_parity", "--lake", "--parity-report", "--every-min=60")
    )
    gate = BashOperator(task_id="gate", retries=0, **python_job("models.parity_gate", "--parity-report"))
    compare >> gate
