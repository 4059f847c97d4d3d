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
One row an impression: every feature and the user's recent items as they were when the slate was served, and what
followed. They are those that the ranker read, where the slate logged them, and else computed from the events;
`feature_source` says which, `recomputed_because` why not the first, `feature_ms` as of which instant.

### Inputs
`silver/events`, `silver/items`, `silver/slates` and `gold/day_tiles/*` (asset `offline_features`).

### Outputs
`gold/examples`, partitioned by `event_date`. The asset `examples`, only after the gate has passed. The log says how
many examples have which source and, of 200 slates, how many served values equal the recomputed ones;
`reports/examples_comparison.json` below the stack's folder has that by feature, as `feature_parity` reports it.

### Owner
Recommendations.

### Rerun
Safe at any time: a run replaces the partitions that it computes. For days whose served values are not to be used, the
DAG `backfill` has the parameter `features`; the next run of this DAG takes them again.

### On failure
`build`: read the Spark log. `gate`: the log names the partition, the expectation and the column; the task's link
`Data Docs` shows the figures. Nothing is trained on a table with a partition in quarantine, and the bundle that serves
stays. Run `build` again once the cause is repaired; `gate` takes the partition out of quarantine (`batch/QUALITY.md`).
""",
) as dag:
    build = SparkSubmitOperator(task_id="build", **spark_job("training_examples", "--lake", "--comparison"))
    gate = GateOperator(task_id="gate", retries=0, suites=("examples",), inlets=[OFFLINE_FEATURES], outlets=[EXAMPLES])
    build >> gate
