"""What is past its time goes: by the retention table, from lake, bundles, training runs, checkpoints, logs, topics."""

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param

from infra.airflow import SPARK_POOL, dag_settings, default_args, python_job

DRY_RUN = "--dry-run={{ params.dry_run }}"

with DAG(
    dag_id="maintenance",
    schedule=dag_settings().maintenance_schedule or None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
    default_args=default_args(timeout_min=120),
    tags=["lake", "serving"],
    params={
        "dry_run": Param(
            False, type="boolean", title="Dry run", description="Say what would be removed, and remove nothing."
        )
    },
    doc_md="""
### Purpose
Keeps what is stored within its bounds: retention by table, small files compacted, old files vacuumed, and bundles,
training runs, checkpoints and logs removed that nobody can ask for again.

### Inputs
The retention table: `features/retention.py` documents each default; `retention.toml` in the stack's folder overrides
it. The parameter `dry_run`.

### Outputs
One report a task, as JSON in its log: what was removed, bytes before and after. Never removed: the champion, the
champions before it that a roll-back may reach, the challenger, whatever an alias of the registry or the experiments
name, the newest checkpoint of each version. Records of the topics go when an erasure is due.

### Owner
Data platform.

### Rerun
Safe at any time: a second run finds nothing to do. The task `lake` takes the place of a Spark job.

### On failure
`bundles`: a promotion was under way, or registry and `champion.json` cannot be read: then nothing is removed. `lake`,
`files`: read the log, clear the task; what was removed before it failed was past its time. A task that is not run for
days costs disk space, and no data.
""",
) as dag:
    BashOperator(task_id="lake", pool=SPARK_POOL, **python_job("batch.maintain", "--lake", "--retention", DRY_RUN))
    BashOperator(
        task_id="bundles",
        **python_job(
            "models.clean_up", "--bundles", "--workspace", "--tracking-uri", "--retention", "--named-in", DRY_RUN
        ),
    )
    BashOperator(task_id="files", **python_job("infra.maintenance", "--retention", DRY_RUN))
