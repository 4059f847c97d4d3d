"""Days that are over, made anew: any step of the factory, any range of days, in parts that may run side by side."""

import json
from datetime import timedelta

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Param

from infra.airflow import BACKFILL_STEPS, EXAMPLE_FEATURES, default_args, python_job, spark_job

DAY = r"^\d{4}-\d{2}-\d{2}$"

with DAG(
    dag_id="backfill",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=24),
    default_args=default_args(timeout_min=240),
    tags=["lake", "features", "training"],
    params={
        "step": Param("day_tiles", type="string", enum=list(BACKFILL_STEPS), title="Step"),
        "start": Param(type="string", format="date", pattern=DAY, title="First day", description="UTC"),
        "end": Param(type="string", format="date", pattern=DAY, title="Last day", description="UTC; it must be over"),
        "days_a_job": Param(
            7, type="integer", minimum=1, maximum=366, title="Days a job", description="Jobs share the Spark pool."
        ),
        "features": Param(
            EXAMPLE_FEATURES[0],
            type="string",
            enum=list(EXAMPLE_FEATURES),
            title="Features of training examples",
            description="recomputed: leaves aside what the slates logged.",
        ),
    },
    doc_md="""
### Purpose
Makes past days anew after a changed definition, a mended lake or a failure that nobody saw: day tiles, offline features
(tiles and the Feast views' files), training examples, or the quality gates over them.

### Inputs
`silver/events`, `silver/items` and, for examples, `silver/slates`; the parameters `step`, `start`, `end` (both days
included), `days_a_job` and `features`.

### Outputs
Those of the step's own DAG, for these days alone: each day's partition is replaced in one commit. No asset: whoever
waits for the next daily run goes on to wait for it.

### Owner
Data platform.

### Rerun
Safe at any time: on the same lake a rerun changes nothing. The range is cut into parts that share no day; as many run
side by side as the pool `spark` has slots.

### On failure
`plan`: the parameters; one sentence says what is allowed (a day in the future or not over, a first day after the last,
an unknown step). `fill`: the log of the mapped part; the other parts go on, and clearing the failed one is enough. A
day without events is no failure: it is named in the job's report, its examples go, its tiles stay.
""",
) as dag:
    plan = BashOperator(
        task_id="plan",
        retries=1,
        output_processor=json.loads,
        **python_job(
            "batch.backfill_plan",
            *(
                f"--{name.replace('_', '-')}={{{{ params.{name} }}}}"
                for name in ("step", "start", "end", "days_a_job", "features")
            ),
            "--lake",
            "--bootstrap-servers",
            "--topics-version",
        ),
    )
    job = spark_job("backfill")
    job.pop("application_args")
    SparkSubmitOperator.partial(task_id="fill", **job).expand(application_args=plan.output)
