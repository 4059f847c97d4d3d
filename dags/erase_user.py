"""A user out of online store, lake and training runs, with a report that a scan has confirmed."""

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param

from infra.airflow import SPARK_POOL, default_args, python_job

DIGEST = "--digest={{ params.digest }}"

with DAG(
    dag_id="erase_user",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    default_args=default_args(timeout_min=120),
    tags=["privacy"],
    params={
        "digest": Param(
            type="string",
            pattern="^[0-9a-f]{64}$",
            title="SHA-256 of the user_id",
            description="As `millrace erase USER` sends it, or `printf %s USER | sha256sum` says. "
            "The id itself would stay in Airflow's own tables and logs.",
        )
    },
    doc_md="""
### Purpose
Erases one user for good: nobody takes their records any more, and what is stored of them goes.

### Inputs
The parameter `digest`, the SHA-256 of the user_id.

### Outputs
The digest among the erased of online store and lake; no row of the user in the store (all versions), in any table of
the lake (the slate log is one), its old files and its logs, or in the examples of training runs. `DIGEST.json` and
`DIGEST.md` below the stack's `erasures`: what a scan found (nothing), and until when what cannot be deleted by key
(Flink state, topics) is gone. Aggregates of items stay.

### Owner
Data platform.

### Rerun
Safe at any time: every step does again only what is left. The step `lake` takes the place of a Spark job, since it
removes the files that older versions of the tables need; readers of an older version fail once and are tried again.

### On failure
`door`: the store does not answer; the user is refused as soon as it does. `lake`: read the log, clear the task; a
killed run is taken up where it ended. `report`: its log names the files that still mention the user.
""",
) as dag:
    door = BashOperator(task_id="door", **python_job("batch.erase_door", "--lake", "--feature-repo", DIGEST))
    lake = BashOperator(
        task_id="lake",
        pool=SPARK_POOL,
        **python_job("batch.erase_lake", "--lake", "--checkpoints", "--also", DIGEST),
    )
    report = BashOperator(
        task_id="report",
        **python_job("batch.erase_report", "--lake", "--feature-repo", "--also", "--reports", DIGEST),
    )
    door >> lake >> report
