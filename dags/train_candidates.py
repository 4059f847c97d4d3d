"""Trains every candidate source from the lake's events."""

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset

from infra.airflow import asset, dag_settings, default_args, python_job

LAKE_EVENTS = Asset(**asset("lake_events"))
CANDIDATES = Asset(**asset("candidates"))

with DAG(
    dag_id="train_candidates",
    schedule=dag_settings().training_schedule or [LAKE_EVENTS],
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=3),
    default_args=default_args(timeout_min=60),
    tags=["training"],
    doc_md="""
### Purpose
ALS, item-to-item, popular, trending, content, follow and exploration: chosen on validation, reported on test, then
trained on everything.

### Inputs
`silver/events` and `silver/items` (asset `lake_events`).

### Outputs
A run below `candidates` in the workspace, with its report. The asset `candidates`.

### Owner
Recommendations.

### Rerun
Safe at any time: a run writes a directory of its own; the last five are kept.

### On failure
Read the log of `train`: too few events, or a table that `lake_ingest` has not written yet, are named there. The
bundle that serves stays.
""",
) as dag:
    BashOperator(
        task_id="train",
        inlets=[LAKE_EVENTS],
        outlets=[CANDIDATES],
        **python_job("models.train_candidates", "--lake", "--workspace", "--seed"),
    )
