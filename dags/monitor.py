"""What is served, judged against what was before: drift, calibration, freshness, coverage, guardrails, roll-back."""

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset

from infra.airflow import asset, default_args, python_job

LAKE_EVENTS = Asset(**asset("lake_events"))

with DAG(
    dag_id="monitor",
    schedule=[LAKE_EVENTS],
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=1),
    default_args=default_args(timeout_min=20),
    tags=["serving"],
    doc_md="""
### Purpose
Sees that what users get has become worse, tells it, and goes back to an earlier bundle when the champion is why.

### Inputs
`silver/slates`, `silver/events` (asset `lake_events`) and `gold/examples`: the last 24 hours against the week before
them; the champion since its promotion against the bundle before it. Limits: `monitor.toml` in the stack's folder;
`models/monitor_limits.py` documents each with its default.

### Outputs
`reports/monitor.json` below the stack's folder: drift of features, labels and scores (PSI, rates), calibration of
clicks, answers that lacked an event, the sources' shares of the slots, guardrails with intervals over users, alerts.
A broken guardrail switches `champion.json` to the newest earlier champion that was never rolled back from, with the
reason; not within 24 hours of a roll-back, and not when the champion came by one.

### Owner
Recommendations.

### Rerun
Safe at any time: what was rolled back stays so, and a rerun judges the champion that is there.

### On failure
`watch`: read the log, clear the task; the service goes on with the champion. `gate`: it fails when there is an alert,
and its log has each with its figures. A roll-back is undone by `millrace models rollback ID` with the id that it left;
`automatic_rollback = false` in `monitor.toml` leaves the switch to people.
""",
) as dag:
    watch = BashOperator(
        task_id="watch",
        **python_job(
            "models.monitor",
            "--lake",
            "--workspace",
            "--bundles",
            "--tracking-uri",
            "--monitor-limits",
            "--monitor-report",
        ),
    )
    gate = BashOperator(task_id="gate", retries=0, **python_job("models.monitor_alerts", "--monitor-report"))
    watch >> gate
