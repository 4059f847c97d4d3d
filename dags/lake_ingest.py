"""Kafka → Delta: the lake's bronze and silver tables, gated by the quality suites of events, items and slates."""

from datetime import timedelta

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import DAG, Asset

from infra.airflow import asset, dag_settings, default_args, spark_job
from infra.airflow_gate import GateOperator

LAKE_EVENTS = Asset(**asset("lake_events"))

with DAG(
    dag_id="lake_ingest",
    schedule=dag_settings().ingest_schedule or None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=default_args(timeout_min=20),
    tags=["lake"],
    doc_md="""
### Purpose
Brings the lake up to the broker: every record once in bronze; valid events once each, the catalogue and the served
slates in silver; what breaks the contract, and later copies, in tables of their own.

### Inputs
The topics `millrace.events`, `millrace.items` and `millrace.slates`, from the offsets in the Spark checkpoints.

### Outputs
`bronze/*` and `silver/*` below the lake's root. The asset `lake_events`, only after the gate has passed.

### Owner
Data platform.

### Rerun
Safe at any time: a run takes what came since the last one, and a rerun without new records adds no row. Checkpoints
and tables belong together: restore both from the same backup, or neither.

### On failure
`ingest`: the broker does not answer, or offsets are gone that the checkpoint needs (the run fails rather than skip
them). Read the task's log, bring the broker back, clear the task. `gate`: the log names the partition, the
expectation and the column; the task's link `Data Docs` shows the figures. The partition is in quarantine: its rows
stay, no DAG downstream starts, and a job that is started by hand refuses to read the table. Repair it, or say in the
stack's `quality.toml` that the day is as it should be; then clear `gate`, which takes it out of quarantine
(`batch/QUALITY.md`).
""",
) as dag:
    ingest = SparkSubmitOperator(
        task_id="ingest", **spark_job("lake_ingest", "--bootstrap-servers", "--lake", "--checkpoints", "--feature-repo")
    )
    gate = GateOperator(task_id="gate", retries=0, suites=("events", "items", "slates"), outlets=[LAKE_EVENTS])
    ingest >> gate
