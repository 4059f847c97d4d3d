"""Airflow on the local stack: its configuration, its secrets, and the commands that the DAGs run.

Imported by the DAGs in Airflow's environment, so it needs the settings and the standard library alone.
"""

import base64
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from infra.settings import LOOPBACK, ROOT, Settings, environment_python, jars_dir, search_path

USER = "millrace"
SPARK_CONNECTION = "spark_default"
SPARK_POOL = "spark"
"""One slot: two Spark drivers at a time do not fit beside the rest on a small machine."""


def passwords_path(settings: Settings) -> Path:
    """Where the generated password of `USER` is kept, readable by its owner alone."""
    return settings.airflow_home / "passwords.json"


def write_secrets(settings: Settings) -> None:
    """Generates the password and the keys once; a second call leaves them as they are."""
    settings.airflow_home.mkdir(parents=True, exist_ok=True)
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


def airflow_environment(settings: Settings, dags_dir: Path = ROOT / "dags") -> dict[str, str]:
    """Variables of every Airflow process: its configuration, the stack's settings, and where Spark is.

    `write_secrets` must have run. Task processes inherit them, so a DAG's commands see the same stack.
    """
    spark_home = next((ROOT / ".venv" / "app" / "lib").glob("python3*/site-packages/pyspark"), Path("pyspark"))
    url = settings.airflow_url
    return {
        **settings.environment(),
        **json.loads(_keys_path(settings).read_text()),
        "AIRFLOW_HOME": str(settings.airflow_home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags_dir),
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
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        f"AIRFLOW_CONN_{SPARK_CONNECTION.upper()}": json.dumps({"conn_type": "spark", "host": settings.spark_master}),
        # SparkSubmitOperator takes `spark-submit` from PATH; this one comes first.
        "PATH": f"{spark_home / 'bin'}:{search_path()}",
        "SPARK_HOME": str(spark_home),
        "PYSPARK_PYTHON": str(environment_python("app")),
        "PYSPARK_DRIVER_PYTHON": str(environment_python("app")),
        "SPARK_LOCAL_IP": LOOPBACK,
    }


def spark_jars() -> str:
    """The Spark connectors, separated by commas as `--jars` takes them."""
    return ",".join(str(path) for path in sorted(jars_dir("spark").glob("*.jar")))
