"""Settings of the local stack: the only module that reads the environment.

Every field is set by an environment variable `MILLRACE_<FIELD>`. Processes get what they need as flags; Airflow gets
`Settings.environment()`, so that the DAGs see the same settings. Two stacks run side by side when they differ in
`MILLRACE_STACK` (the folder) and `MILLRACE_PORT_BASE` (every port).
"""

import os
from pathlib import Path
from typing import Any, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "MILLRACE_"
LOOPBACK = "127.0.0.1"
"""Everything listens here: the local stack is for one machine."""


class SettingsError(ValueError):
    """One sentence: which variable, what was got, what is allowed."""


def _port(offset: int) -> Any:
    return Field(default_factory=lambda fields: fields.get("port_base", 0) + offset, ge=1, le=65_535)


def _below_var(*parts: str) -> Any:
    return Field(default_factory=lambda fields: fields["var_dir"].joinpath(*parts) if "var_dir" in fields else Path())


class Settings(BaseSettings):
    """One local stack: where its files are, where it listens and how much it may take."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    stack: str = Field(default="stack", pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    """Name of the stack, which is its folder below `var/`."""
    port_base: int = Field(default=19_000, ge=1_024, le=65_400)
    """Every port is this plus its own offset, unless it is set by itself."""

    kafka_port: int = _port(92)
    """The broker."""
    kafka_controller_port: int = _port(93)
    """The broker's KRaft controller."""
    flink_rest_port: int = _port(81)
    """Flink's REST API and web page."""
    airflow_port: int = _port(80)
    """Airflow's API server and web page."""
    grpc_port: int = _port(51)
    """The ranking service."""
    flink_metrics_port: int = _port(63)
    """Prometheus metrics of the stream job."""
    writer_metrics_port: int = _port(64)
    """Prometheus metrics of the online writer."""
    serving_metrics_port: int = _port(65)
    """Prometheus metrics of the ranking service."""

    var_dir: Path = Field(default_factory=lambda fields: ROOT / "var" / fields.get("stack", "stack"))
    """Holds everything that the stack writes."""
    lake_dir: Path = _below_var("lake")
    """Root of the Delta tables (`features.names.LakeTables`)."""
    bundles_dir: Path = _below_var("bundles")
    """Immutable bundles and `champion.json`."""
    workspace_dir: Path = _below_var("workspace")
    """What training tasks hand to one another."""
    feature_repo_dir: Path = _below_var("feature-repo")
    """Feast's repository: `feature_store.yaml` and its registry."""
    quality_limits: Path = _below_var("quality.toml")
    """What the quality gates allow (`features.quality_limits`); without the file, their defaults."""
    experiments_file: Path = _below_var("experiments.toml")
    """Experiments of the ranking service; none without the file. An example: infra/serving/experiments.toml."""
    dags_dir: Path = ROOT / "dags"
    """The folder that Airflow reads."""
    online_store: str = ""
    """Path of the SQLite file or a `redis://` URL; the default is a file below `var_dir`."""
    rules_file: str = ""
    """What people pin, boost and block in slates (`serving/rules.example.toml`); empty: nothing."""
    ranker_config: str = ""
    """File of the ranker's settings (`models.ranker.config`) that the train_ranker DAG takes; empty: their defaults."""
    tracking_uri: str = ""
    """MLflow's tracking store and registry; the default is a SQLite file below `var_dir`."""

    serving_callers: str = ""
    """The ranking service's callers file (`serving.callers`); empty: everybody on this machine may call."""
    serving_tls_cert: str = ""
    """PEM certificate chain of the ranking service, valid for 127.0.0.1; empty: no TLS."""
    serving_tls_key: str = ""
    """Its PEM key."""
    serving_client_ca: str = ""
    """PEM CAs of which one must have signed a caller's certificate; empty: callers need none."""
    serving_api_key: SecretStr = Field(default=SecretStr(""), exclude=True)
    """What `millrace` sends as `x-api-key`; programs of the stack do not get it."""
    serving_ca: str = ""
    """PEM CA that signed the service's certificate, for `millrace` to check."""
    serving_client_cert: str = ""
    """PEM certificate that `millrace` shows."""
    serving_client_key: str = ""
    """Its PEM key."""

    kafka_heap_mb: int = Field(default=512, ge=256)
    kafka_jvm_args: str = ""
    """More flags for the broker's JVM, by spaces."""
    flink_heap_mb: int = Field(default=1_024, ge=512)
    flink_jvm_args: str = ""
    """More flags for the JVM of the stream job, by spaces."""
    flink_niceness: int = Field(default=15, ge=0, le=19)
    """How far the stream job gives way to the programs beside it: catching up, its dozens of threads would leave the
    online writer, a single one, a third of the processor time that it needs."""
    airflow_niceness: int = Field(default=19, ge=0, le=19)
    """How far Airflow's scheduler, and so every job that it starts, gives way to the rest."""
    spark_driver_mb: int = Field(default=1_024, ge=512)
    spark_jvm_args: str = ""
    """More flags for the JVM of a Spark driver, by spaces."""
    spark_master: str = "local[2]"
    """Where spark-submit sends the jobs, as Spark's `--master` reads it."""
    flink_parallelism: int = Field(default=2, ge=1, le=64)
    topic_partitions: int = Field(default=2, ge=1, le=256)
    airflow_parallelism: int = Field(default=2, ge=1, le=32)
    """Tasks that Airflow runs at a time."""
    ingest_schedule: str = ""
    """Cron line of the lake_ingest DAG, such as `*/5 * * * *`; empty: only when triggered."""
    training_schedule: str = ""
    """Cron line on which training starts, such as `0 3 * * *`; empty: whenever its inputs have changed."""
    maintenance_schedule: str = ""
    """Cron line of the maintenance DAG, such as `0 4 * * *`; empty: only when triggered."""
    alert_url: str = Field(default="", pattern=r"^(https?://.+)?$")
    """Where a failed task is told of, by a POST of JSON; empty: in the task's log only."""
    openlineage_url: str = Field(default="", pattern=r"^(https?://.+)?$")
    """Where Airflow sends its OpenLineage events, such as a Marquez; empty: into files below `openlineage_dir`."""
    start_timeout_s: float = Field(default=240.0, gt=0)
    """How long a program may take to become ready."""
    seed: int = 7
    """Seed of the training tasks."""

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        taken: dict[int, str] = {}
        for name, port in self.ports.items():
            if port in taken:
                raise ValueError(f"{PREFIX}{name.upper()} and {PREFIX}{taken[port].upper()} are both {port}")
            taken[port] = name
        return self

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        for given, needed in (
            ("serving_tls_cert", "serving_tls_key"),
            ("serving_client_ca", "serving_client_cert"),
            ("serving_client_cert", "serving_client_key"),
        ):
            if getattr(self, given) and not getattr(self, needed):
                raise ValueError(f"{PREFIX}{given.upper()} is given without {PREFIX}{needed.upper()}; give both")
        return self

    @property
    def ports(self) -> dict[str, int]:
        """Every port by its field's name."""
        return {name: getattr(self, name) for name in type(self).model_fields if name.endswith("_port")}

    @property
    def bootstrap_servers(self) -> str:
        """What Kafka clients are given."""
        return f"{LOOPBACK}:{self.kafka_port}"

    @property
    def airflow_url(self) -> str:
        """Airflow's web page; its REST API is below `/api/v2`."""
        return f"http://{LOOPBACK}:{self.airflow_port}"

    @property
    def flink_url(self) -> str:
        """Flink's web page and REST API."""
        return f"http://{LOOPBACK}:{self.flink_rest_port}"

    @property
    def grpc_address(self) -> str:
        """What clients of the ranking service dial."""
        return f"{LOOPBACK}:{self.grpc_port}"

    @property
    def online_store_url(self) -> str:
        """`online_store`, or its default."""
        return self.online_store or str(self.var_dir / "online-store.db")

    @property
    def mlflow_uri(self) -> str:
        """`tracking_uri`, or its default."""
        return self.tracking_uri or f"sqlite:///{self.var_dir / 'mlflow.db'}"

    @property
    def logs_dir(self) -> Path:
        """One file a program, rotated."""
        return self.var_dir / "logs"

    @property
    def kafka_dir(self) -> Path:
        """The broker's files."""
        return self.var_dir / "kafka"

    @property
    def airflow_home(self) -> Path:
        """Airflow's metadata, secrets and task logs."""
        return self.var_dir / "airflow"

    @property
    def openlineage_dir(self) -> Path:
        """OpenLineage events of Airflow's runs, one file an event, kept as long as task logs."""
        return self.airflow_home / "logs" / "openlineage"

    @property
    def data_docs_dir(self) -> Path:
        """The quality gates' Data Docs, one site a gate."""
        return self.var_dir / "data_docs"

    @property
    def flink_checkpoints_dir(self) -> Path:
        """The stream job's checkpoints."""
        return self.var_dir / "flink-checkpoints"

    @property
    def spark_checkpoints_dir(self) -> Path:
        """Offsets of the lake ingest; backed up and restored together with the lake."""
        return self.var_dir / "spark-checkpoints"

    @property
    def parity_report(self) -> Path:
        """The newest report of the feature_parity DAG, which promotions read."""
        return self.var_dir / "reports" / "feature_parity.json"

    @property
    def examples_comparison(self) -> Path:
        """Served feature values beside recomputed ones, of the slates of the newest training examples."""
        return self.var_dir / "reports" / "examples_comparison.json"

    @property
    def monitor_report(self) -> Path:
        """The newest report of the monitor DAG."""
        return self.var_dir / "reports" / "monitor.json"

    @property
    def monitor_limits_file(self) -> Path:
        """TOML of `models.monitor_limits`; without it its defaults hold."""
        return self.var_dir / "monitor.toml"

    @property
    def request_log_dir(self) -> Path:
        """What the ranking service remembers of its answers, for a day."""
        return self.var_dir / "request-log"

    @property
    def retention_file(self) -> Path:
        """TOML of `features.retention`; without it its defaults hold."""
        return self.var_dir / "retention.toml"

    @property
    def erasures_dir(self) -> Path:
        """Reports on erased users, by their digests."""
        return self.var_dir / "erasures"

    def environment(self) -> dict[str, str]:
        """The variables that make another process load equal settings."""
        values = self.model_dump(mode="json")
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in values.items() if value != ""}


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with `overrides` winning. Raises `SettingsError` with one sentence."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)}; allowed: {', '.join(sorted(known))}.")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "".join(str(part) for part in first["loc"])
        got = f" (got {first['input']!r})" if field else ""
        where = f"{PREFIX}{field.upper()}: " if field else ""
        raise SettingsError(
            f"{where}{first['msg'].removeprefix('Value error, ')}{got}; correct it and try again."
        ) from None


def inherited_environment() -> dict[str, str]:
    """This process's environment without the settings: what a started program gets beside its own variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


def search_path() -> str:
    """Where this process finds commands such as java."""
    return os.environ.get("PATH", os.defpath)


def environment_python(name: str) -> Path:
    """The interpreter of one of the four environments (`app`, `serve`, `stream`, `airflow`)."""
    return ROOT / ".venv" / name / "bin" / "python"


def jars_dir(name: str) -> Path:
    """Where `infra/poms/<name>` was copied to."""
    return ROOT / ".jars" / name
