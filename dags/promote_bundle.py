"""Packs sources and ranker into one bundle, registers it, and makes it the champion if it may be."""

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset

from infra.airflow import asset, default_args, python_job

RANKER = Asset(**asset("ranker"))
BUNDLE = Asset(**asset("bundle"))

with DAG(
    dag_id="promote_bundle",
    schedule=[RANKER],
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=default_args(timeout_min=20),
    tags=["serving"],
    doc_md="""
### Purpose
One immutable directory with one manifest: what is promoted, served and rolled back as one.

### Inputs
The latest runs of `train_candidates` and `train_ranker` in the workspace (asset `ranker`); the newest report of
`feature_parity`, if there is one.

### Outputs
A directory below the bundles' root, a version in MLflow's registry, and `champion.json`, replaced in one step; the
ranking service loads what it names. The asset `bundle`.

### Owner
Recommendations.

### Rerun
Safe at any time: bundles are never overwritten. To go back to the champion before, run `millrace models rollback`.

### On failure
Read the log of `promote`: a hash that does not fit, or the gate that was missed and by how much, is named there. The
champion stays what it was; `millrace models show challenger` has the verdict, `millrace models promote` overrides it.
""",
) as dag:
    BashOperator(
        task_id="promote",
        inlets=[RANKER],
        outlets=[BUNDLE],
        **python_job("models.promote", "--workspace", "--bundles", "--tracking-uri", "--parity-report"),
    )
