"""Trains, calibrates and exports the multitask ranker."""

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset

from infra.airflow import asset, dag_settings, default_args, python_job

EXAMPLES = Asset(**asset("examples"))
CANDIDATES = Asset(**asset("candidates"))
RANKER = Asset(**asset("ranker"))
CONFIG = ["--config"] if dag_settings().ranker_config else []

with DAG(
    dag_id="train_ranker",
    schedule=[EXAMPLES, CANDIDATES],
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=4),
    default_args=default_args(timeout_min=120),
    tags=["training"],
    doc_md="""
### Purpose
The multitask ranker: heads for click, completion, like, share, hide and watch fraction, split by time, calibrated,
exported to ONNX.

### Inputs
`gold/examples` (asset `examples`) and the latest run of `train_candidates` (asset `candidates`). It starts when both
have changed since its last run. `MILLRACE_RANKER_CONFIG` names a file of settings, such as `{"mixture": "ple"}`.

### Outputs
A run below `ranker` in the workspace, with its report. The asset `ranker`.

### Owner
Recommendations.

### Rerun
Safe at any time: a run writes a directory of its own. The same lake and seed give the same losses.

### On failure
Read the log of `train`: it stops at the first loss that is not finite and says at which step. The bundle that
serves stays.
""",
) as dag:
    BashOperator(
        task_id="train",
        inlets=[EXAMPLES, CANDIDATES],
        outlets=[RANKER],
        **python_job("models.train_ranker", "--lake", "--workspace", "--seed", *CONFIG),
    )
