"""Point-in-time training examples, gated by their quality suite."""

from datetime import timedelta

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG, Asset

from infra.airflow import asset, dag_settings, default_args, spark_job
from infra.airflow_gate import GateOperator

OFFLINE_FEATURES = Asset(**asset("offline_features"))
EXAMPLES = Asset(**asset("examples"))

with DAG(
    dag_id="training_examples",
    schedule=dag_settings().training_schedule or [OFFLINE_FEATURES],
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=3),
    default_args=default_args(timeout_min=60),
    tags=["training"],
    doc_md="""
### Purpose
One row an impression: every feature as it was known just before it, the user's recent items, and what followed.

### Inputs
`silver/events`, `silver/items` and `gold/day_tiles/*` (asset `offline_features`).

### Outputs
`gold/examples`, partitioned by `event_date`. The asset `examples`, only after the gate has passed.

### Owner
Recommendations.

### Rerun
Safe at any time: a run replaces the partitions that it computes.

### On failure
`build`: read the Spark log. `gate`: the log names the partition, the expectation and the column; the task's link
`Data Docs` shows the figures. Nothing is trained on a table with a partition in quarantine, and the bundle that serves
stays. Run `build` again once the cause is repaired; `gate` takes the partition out of quarantine (`batch/QUALITY.md`).
""",
) as dag:
    build = SparkSubmitOperator(task_id="build", **spark_job("training_examples", "--lake"))
    gate = GateOperator(task_id="gate", retries=0, suites=("examples",), inlets=[OFFLINE_FEATURES], outlets=[EXAMPLES])
    build >> gate
