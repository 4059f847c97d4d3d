"""Airflow on the local stack: its configuration, its secrets, and the commands that the DAGs run.

Imported by the DAGs in Airflow's environment, so it needs the settings, the specs and the standard library alone.
"""

import base64
import json
import secrets
import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from infra.airflow_provider import SCHEME
from infra.alerts import failure_of, tell
from infra.settings import LOOPBACK, ROOT, Settings, environment_python, load_settings, search_path
from infra.spark import driver_conf, driver_memory, jars, job_file, submit_environment
from infra.streams import saved_streams

USER = "millrace"
DAG_IDS = (
    "lake_ingest",
    "offline_features",
    "training_examples",
    "train_candidates",
    "train_ranker",
    "promote_bundle",
)
"""From the broker to the promoted bundle: a triggered `lake_ingest` sets off all the others by their assets."""
WATCH_DAG_IDS = ("feature_parity", "monitor")
"""Beside that chain: they judge what is served."""
UPKEEP_DAG_IDS = ("backfill", "erase_user", "maintenance")
"""Beside that chain: triggered, or on a schedule of their own."""
BACKFILL_STEPS = ("day_tiles", "offline_features", "training_examples", "quality")
"""What `batch/backfill.py` can do."""
EXAMPLE_FEATURES = ("served", "recomputed")
"""What training examples have where there is a choice (`batch.served_examples.Source`)."""
SPARK_CONNECTION = "spark_default"
SPARK_POOL = "spark"
"""One slot: two Spark drivers at a time do not fit beside the rest on a small machine."""

DATA_DOCS_PREFIX = "/data-docs"
"""Where the quality gates' Data Docs are on Airflow's server."""

ASSETS = {
    "lake_events": f"{SCHEME}://lake/silver/events",
    "offline_features": f"{SCHEME}://lake/gold/features",
    "examples": f"{SCHEME}://lake/gold/examples",
    "candidates": f"{SCHEME}://workspace/candidates",
    "ranker": f"{SCHEME}://workspace/ranker",
    "bundle": f"{SCHEME}://bundles/champion",
}
"""What one DAG emits and another waits for: names with URIs that say where the thing is on the stack."""


def passwords_path(settings: Settings) -> Path:
    """Where the generated password of `USER` is kept, readable by its owner alone."""
    return settings.airflow_home / "passwords.json"


def write_secrets(settings: Settings) -> None:
    """Generates the password and the keys once; a second call leaves them as they are."""
    settings.openlineage_dir.mkdir(parents=True, exist_ok=True)
    _write_once(passwords_path(settings), {USER: secrets.token_urlsafe(18)})
    keys = {
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(48),
        "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(48),
    }
    _write_once(_keys_path(settings), keys)


def _keys_path(settings: Settings) -> Path:
    return settings.airflow_home / "keys.json"


def _write_once(path: Path, values: Mapping[str, str]) -> None:
    if path.exists():
        return
    path.touch(mode=0o600)
    path.write_text(json.dumps(values))


def airflow_environment(settings: Settings) -> dict[str, str]:
    """Variables of every Airflow process: its configuration, the stack's settings, and where Spark is.

    `write_secrets` must have run. Task processes inherit them, so a DAG's commands see the same stack.
    """
    spark_home = next((ROOT / ".venv" / "app" / "lib").glob("python3*/site-packages/pyspark"), Path("pyspark"))
    url = settings.airflow_url
    return {
        **settings.environment(),
        **json.loads(_keys_path(settings).read_text()),
        "AIRFLOW_HOME": str(settings.airflow_home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(settings.dags_dir),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "infra" / "airflow_plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": str(settings.airflow_parallelism),
        "AIRFLOW__CORE__MAX_ACTIVE_RUNS_PER_DAG": "1",
        # Tasks report to the API server; its default is port 8080 whatever the server's port is.
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords_path(settings)),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{settings.airflow_home / 'airflow.db'}",
        "AIRFLOW__API__HOST": LOOPBACK,
        "AIRFLOW__API__PORT": str(settings.airflow_port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        # Prompt scheduling: a chain of short tasks waits for these loops between every two of them.
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
        # A task whose process was killed is missed after this long, and tried again; the default is five minutes.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "5",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "10",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__OPENLINEAGE__NAMESPACE": f"{SCHEME}.{settings.stack}",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(_lineage_transport(settings)),
        # A command line may say what no lineage store has to know.
        "AIRFLOW__OPENLINEAGE__DISABLE_SOURCE_CODE": "True",
        f"AIRFLOW_CONN_{SPARK_CONNECTION.upper()}": json.dumps({"conn_type": "spark", "host": settings.spark_master}),
        # SparkSubmitOperator takes `spark-submit` from PATH; this one comes first.
        "PATH": f"{spark_home / 'bin'}:{search_path()}",
        "SPARK_HOME": str(spark_home),
        **submit_environment(),
    }


def _lineage_transport(settings: Settings) -> dict[str, str]:
    if settings.openlineage_url:
        return {"type": "http", "url": settings.openlineage_url}
    return {"type": "file", "log_file_path": str(settings.openlineage_dir / "event")}


# For the DAGs: what a task runs. A DAG file holds names and order, never a path or a flag's value.


@cache
def dag_settings() -> Settings:
    """The settings of the stack whose Airflow imports the DAGs."""
    return load_settings()


def asset(name: str) -> dict[str, str]:
    """Arguments of an `Asset` of `ASSETS`. Raises `KeyError` for another name."""
    return {"name": name, "uri": ASSETS[name]}


def default_args(timeout_min: int, retries: int = 2) -> dict[str, Any]:
    """What every task shares: owner, retries with a growing pause, a limit in minutes on one attempt, and whom to tell
    when the last attempt has failed.
    """
    return {
        "owner": "data-platform",
        "retries": retries,
        "retry_delay": timedelta(seconds=15),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=5),
        "execution_timeout": timedelta(minutes=timeout_min),
        "on_failure_callback": tell_of_failure,
    }


def tell_of_failure(context: Mapping[str, Any]) -> None:
    """Airflow's callback of a task that has failed for good (`infra.alerts`)."""
    tell(failure_of(context), dag_settings().alert_url)


def spark_job(application: str, *flags: str) -> dict[str, Any]:
    """Arguments of a `SparkSubmitOperator` that runs `batch/<application>.py`. See `place` for the flags."""
    return {
        "application": str(job_file(application)),
        "application_args": _arguments(flags),
        "name": f"millrace-{application.replace('_', '-')}",
        "conn_id": SPARK_CONNECTION,
        "jars": jars(),
        "driver_memory": driver_memory(dag_settings()),
        "conf": driver_conf(dag_settings(), application),
        "pool": SPARK_POOL,
    }


def python_job(module: str, *flags: str) -> dict[str, Any]:
    """Arguments of a `BashOperator` that runs `python -m <module>` in the app environment; flags as in `place`."""
    command = [str(environment_python("app")), "-m", module, *_arguments(flags)]
    return {"bash_command": shlex.join(command), "cwd": str(ROOT)}


def quality_gate(*suites: str) -> tuple[dict[str, Any], str]:
    """Arguments of a `BashOperator` that runs the suites' gates, and the address of their Data Docs.

    Each attempt has a page of its own, named by run and attempt. Run ids hold no character that a shell reads
    (`core.allowed_run_id_pattern`).
    """
    site = dag_settings().data_docs_dir / suites[0]
    flags = ["--lake", "--limits", "--docs-url", f"--docs={site}", *(f"--suite={suite}" for suite in suites)]
    command = python_job("batch.quality", *flags)
    command["bash_command"] += " --run-name={{run_id}}.{{ti.try_number}}"
    return command, f"{place('--docs-url')}/{suites[0]}"


def _arguments(flags: Sequence[str]) -> list[str]:
    return [text for flag in flags for text in (flag, place(flag)) if text]


def place(flag: str) -> str:
    """The stack's value of a flag that jobs share. A flag written `--name=value` has its value already: empty.

    Raises `ValueError` for a flag that is not known here.
    """
    if "=" in flag:
        return ""
    settings = dag_settings()
    values = {
        "--bootstrap-servers": settings.bootstrap_servers,
        "--lake": str(settings.lake_dir),
        "--checkpoints": str(settings.spark_checkpoints_dir),
        "--feature-repo": str(settings.feature_repo_dir),
        # Read when the task starts, since a task loads its DAG anew.
        "--topics-version": saved_streams(settings)[0].version,
        "--workspace": str(settings.workspace_dir),
        "--bundles": str(settings.bundles_dir),
        "--tracking-uri": settings.mlflow_uri,
        "--seed": str(settings.seed),
        "--config": settings.ranker_config,
        "--parity-report": str(settings.parity_report),
        "--comparison": str(settings.examples_comparison),
        "--monitor-report": str(settings.monitor_report),
        "--monitor-limits": str(settings.monitor_limits_file),
        "--also": str(settings.workspace_dir),
        "--reports": str(settings.erasures_dir),
        "--retention": str(settings.retention_file),
        "--named-in": str(settings.experiments_file),
        "--limits": str(settings.quality_limits),
        "--docs-url": f"{settings.airflow_url}{DATA_DOCS_PREFIX}",
    }
    if flag not in values:
        raise ValueError(f"got the flag {flag}; allowed: --name=value or one of {', '.join(values)}.")
    return values[flag]
