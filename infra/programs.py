"""What the local stack consists of: each program's command, what it waits for, and how it shows that it is ready."""

import hashlib
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import grpc
import httpx
from confluent_kafka import KafkaException
from grpc_health.v1 import health_pb2, health_pb2_grpc

from features import specs
from features.names import LakeTables, Topics
from infra.airflow import SPARK_POOL, airflow_environment
from infra.airflow_client import AirflowClient
from infra.kafka import BrokerConfig, broker_answers, create_topics, format_broker
from infra.ranking import ranking_channel
from infra.settings import PREFIX, ROOT, Settings, environment_python, jars_dir
from infra.streams import Stream
from infra.supervisor import Program
from streaming.writer_config import WriterConfig

PROBE_TIMEOUT_S = 2.0


class StepError(RuntimeError):
    """One sentence: which step failed, what it said last, and its log."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step may use: the settings, where to log, and whether the start was given up meanwhile."""

    settings: Settings
    cancelled: threading.Event
    environment: Mapping[str, str]
    """For processes that a step runs itself."""

    def run(self, step: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Runs a command to its end, its output in the step's log. Raises `StepError`; ends it when cancelled."""
        log = self.settings.logs_dir / f"{step}.log"
        with log.open("ab") as out:
            full = {**self.environment, **(environment or {})}
            process = subprocess.Popen(command, cwd=ROOT, env=full, stdout=out, stderr=out, start_new_session=True)
            while process.poll() is None and not self.cancelled.wait(0.05):
                pass
            if process.poll() is None:
                process.kill()
            code = process.wait()
        if code and not self.cancelled.is_set():
            raise StepError(f"{step} ended with status {code} ({last_line(log)}); see {log}.")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One part of the stack: a preparation, a program, or both, and the steps that must be ready before it."""

    name: str
    after: tuple[str, ...] = ()
    prepare: Callable[[Context], None] | None = None
    program: Callable[[Settings], Program] | None = None
    ready: Callable[[Settings], bool] | None = None
    """Asked again and again once the program runs."""
    ports: tuple[str, ...] = ()
    """Names of the settings of the ports that it listens on."""
    group: str = field(default="")
    """Name under which several programs are started together."""
    role: str = field(default="")
    """Name under which `millrace up` knows a program whose own name carries a version."""
    own_ports: Mapping[str, int] = field(default_factory=dict)
    """What replaces the settings' ports."""

    def settings(self, settings: Settings) -> Settings:
        """The settings as this step's program sees them."""
        return settings.model_copy(update=dict(self.own_ports))

    def answers_to(self, name: str) -> bool:
        """Whether the user means this step by the name."""
        return name in (self.name, self.group, self.role)


def giving_way(command: Sequence[str], niceness: int) -> list[str]:
    """The command at this niceness above our own, and all that it starts with it; 0 leaves it as it is."""
    return ["nice", "-n", str(niceness), *command] if niceness else list(command)


def last_line(log: Path) -> str:
    """The last line of a log that says something, shortened; words when there is none."""
    try:
        lines = log.read_bytes()[-20_000:].decode(errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:300] if said else "it wrote nothing"


# Kafka.


def broker_config(settings: Settings) -> BrokerConfig:
    """The stack's broker."""
    return BrokerConfig(
        data_dir=settings.kafka_dir,
        jars_dir=jars_dir("kafka"),
        port=settings.kafka_port,
        controller_port=settings.kafka_controller_port,
        heap_mb=settings.kafka_heap_mb,
        jvm_args=settings.kafka_jvm_args,
    )


def topics() -> Topics:
    """The stack's topics, as this code's specs define the derived ones before any is rebuilt."""
    return Topics(version=specs.version())


def _kafka(settings: Settings) -> Program:
    return Program(name="kafka", command=broker_config(settings).command, directory=ROOT, stop_wait_s=15)


def _kafka_answers(settings: Settings) -> bool:
    return broker_answers(settings.bootstrap_servers)


def _create_topics(streams: Sequence[Stream], context: Context) -> None:
    servers = context.settings.bootstrap_servers
    try:
        for stream in streams:
            create_topics(servers, Topics(version=stream.version), context.settings.topic_partitions)
    except KafkaException as error:
        raise StepError(f"topics: the broker on {servers} says {error}") from error


# Features: the stream job, the writer, Feast's repository.


def _feature_repo(context: Context) -> None:
    settings = context.settings
    flags = {
        "--dir": str(settings.feature_repo_dir),
        "--store": settings.online_store_url,
        "--offline-root": str(settings.lake_dir / LakeTables.offline_features),
    }
    context.run("feature-repo", _module("serve", "features.repo", flags))


def _flink(stream: Stream, settings: Settings) -> Program:
    names = Topics(version=stream.version)
    flags = {
        "--bootstrap-servers": settings.bootstrap_servers,
        "--events-topic": names.events,
        "--topics-version": names.version,
        "--checkpoint-dir": str(settings.flink_checkpoints_dir),
        "--jars-dir": str(jars_dir("flink")),
        "--rest-port": str(settings.flink_rest_port),
        "--metrics-port": str(settings.flink_metrics_port),
        "--parallelism": str(settings.flink_parallelism),
    }
    command = _module("stream", "streaming.job", flags)
    jvm_args = f"-Xmx{settings.flink_heap_mb}m {settings.flink_jvm_args}"
    return _python(stream.named("flink"), giving_way(command, settings.flink_niceness), JVM_ARGS=jvm_args)


def _flink_runs(settings: Settings) -> bool:
    overview = _get(f"{settings.flink_url}/jobs/overview")
    jobs = overview.json()["jobs"] if overview else []
    return any(job["state"] == "RUNNING" and job["tasks"]["running"] == job["tasks"]["total"] > 0 for job in jobs)


def _writer(stream: Stream, settings: Settings) -> Program:
    flags = {
        "--bootstrap-servers": settings.bootstrap_servers,
        "--feature-repo": str(settings.feature_repo_dir),
        "--topics-version": stream.version,
        # A group of its own: whoever joins makes the others of its group pause.
        "--group": stream.named(WriterConfig.group),
        "--metrics-port": str(settings.writer_metrics_port),
    }
    return _python(stream.named("writer"), _module("serve", "streaming.writer", flags))


def _writer_answers(settings: Settings) -> bool:
    return _get(f"http://127.0.0.1:{settings.writer_metrics_port}/metrics") is not None


# Serving.


def _serving(settings: Settings) -> Program:
    flags = {
        "--port": str(settings.grpc_port),
        "--bundles": str(settings.bundles_dir),
        "--experiments": str(settings.experiments_file),
        "--feature-repo": str(settings.feature_repo_dir),
        "--bootstrap-servers": settings.bootstrap_servers,
        "--metrics-port": str(settings.serving_metrics_port),
        "--request-log": str(settings.request_log_dir),
    }
    given = {
        "--rules": settings.rules_file,
        "--callers": settings.serving_callers,
        "--tls-cert": settings.serving_tls_cert,
        "--tls-key": settings.serving_tls_key,
        "--client-ca": settings.serving_client_ca,
    }
    flags |= {flag: value for flag, value in given.items() if value}
    return _python("serving", _module("serve", "serving.server", flags))


def _serving_answers(settings: Settings) -> bool:
    """Whether the service speaks: it starts with no bundle and says NOT_SERVING until one is promoted.

    Raises `StepError` where its certificate is not trusted here, which waiting does not change.
    """
    with ranking_channel(settings) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
        except grpc.RpcError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error.details()):
                trusted = settings.serving_ca or "one that this machine trusts"
                raise StepError(
                    f"serving: {settings.serving_tls_cert} is not signed by {trusted}; give the CA that signed it as "
                    f"{PREFIX}SERVING_CA."
                ) from error
            return bool(error.code() == grpc.StatusCode.NOT_FOUND)
    return bool(answer.status != health_pb2.HealthCheckResponse.UNKNOWN)


# Airflow.


def _airflow_prepare(context: Context) -> None:
    """Brings the metadata database up to this Airflow's schema, once for each version of the environment."""
    locked = (ROOT / "infra" / "requirements" / "airflow.txt").read_bytes()
    version, stamp = hashlib.sha256(locked).hexdigest(), context.settings.airflow_home / "migrated"
    if stamp.is_file() and stamp.read_text() == version:
        return
    airflow = [str(environment_python("airflow")), "-m", "airflow"]
    context.run("airflow-setup", [*airflow, "db", "migrate"], airflow_environment(context.settings))
    if not context.cancelled.is_set():
        stamp.write_text(version)


def _airflow(name: str, *arguments: str) -> Callable[[Settings], Program]:
    def program(settings: Settings) -> Program:
        command = [str(environment_python("airflow")), "-m", "airflow", *arguments]
        environment = airflow_environment(settings)
        return Program(name=name, command=command, environment=environment, directory=ROOT, stop_wait_s=8)

    return program


def _scheduler(settings: Settings) -> Program:
    # The API server reads the task logs from the disk that it shares with the scheduler.
    program = _airflow("airflow-scheduler", "scheduler", "--skip-serve-logs")(settings)
    return replace(program, command=giving_way(program.command, settings.airflow_niceness))


def _airflow_pool(context: Context) -> None:
    with closing(AirflowClient(context.settings)) as client:
        client.set_pool(SPARK_POOL, 1, "One Spark driver at a time.")


def _airflow_health(part: str) -> Callable[[Settings], bool]:
    def ready(settings: Settings) -> bool:
        health = _get(f"{settings.airflow_url}/api/v2/monitor/health")
        return health is not None and health.json()[part]["status"] == "healthy"

    return ready


# All of it.


def _module(environment_name: str, module: str, flags: Mapping[str, str]) -> list[str]:
    arguments = [text for flag in flags.items() for text in flag]
    return [str(environment_python(environment_name)), "-m", module, *arguments]


def _python(name: str, command: Sequence[str], **environment: str) -> Program:
    unbuffered = {"PYTHONUNBUFFERED": "1", **environment}
    return Program(name=name, command=command, environment=unbuffered, directory=ROOT)


def _get(url: str) -> httpx.Response | None:
    try:
        response = httpx.get(url, timeout=PROBE_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return None
    return response if response.is_success else None


def _mkdirs(context: Context) -> None:
    settings = context.settings
    for path in (settings.lake_dir, settings.bundles_dir, settings.workspace_dir, settings.feature_repo_dir):
        path.mkdir(parents=True, exist_ok=True)


def _prepare_kafka(context: Context) -> None:
    _mkdirs(context)
    format_broker(broker_config(context.settings))


def _stream_steps(stream: Stream) -> tuple[Step, Step]:
    flink = Step(
        name=stream.named("flink"),
        role="flink",
        after=("topics",),
        program=partial(_flink, stream),
        ready=_flink_runs,
        ports=("flink_rest_port", "flink_metrics_port"),
        own_ports=stream.ports,
    )
    writer = Step(
        name=stream.named("writer"),
        role="writer",
        after=("topics", "feature-repo"),
        program=partial(_writer, stream),
        ready=_writer_answers,
        ports=("writer_metrics_port",),
        own_ports=stream.ports,
    )
    return flink, writer


def steps_of(streams: Sequence[Stream]) -> tuple[Step, ...]:
    """The stack with these streams, in the order of starting; stopping goes the other way."""
    return (
        Step(
            name="kafka",
            prepare=_prepare_kafka,
            program=_kafka,
            ready=_kafka_answers,
            ports=("kafka_port", "kafka_controller_port"),
        ),
        Step(name="topics", after=("kafka",), prepare=partial(_create_topics, streams)),
        Step(name="feature-repo", prepare=_feature_repo),
        Step(name="airflow-setup", prepare=_airflow_prepare),
        *(step for stream in streams for step in _stream_steps(stream)),
        *_AIRFLOW_AND_SERVING,
    )


_AIRFLOW_AND_SERVING = (
    Step(
        name="airflow-api",
        after=("airflow-setup",),
        program=_airflow("airflow-api", "api-server"),
        ready=_airflow_health("metadatabase"),
        ports=("airflow_port",),
        group="airflow",
    ),
    Step(name="airflow-pool", after=("airflow-api",), prepare=_airflow_pool, group="airflow"),
    Step(
        name="airflow-scheduler",
        after=("airflow-setup",),
        program=_scheduler,
        ready=_airflow_health("scheduler"),
        group="airflow",
    ),
    Step(
        name="airflow-dag-processor",
        after=("airflow-setup",),
        program=_airflow("airflow-dag-processor", "dag-processor"),
        ready=_airflow_health("dag_processor"),
        group="airflow",
    ),
    Step(
        name="serving",
        after=("topics", "feature-repo"),
        program=_serving,
        ready=_serving_answers,
        ports=("grpc_port", "serving_metrics_port"),
    ),
)

STEPS = steps_of([Stream(version=specs.version())])
"""The stack as it is first started."""

PROGRAM_NAMES = tuple(step.name for step in STEPS if step.program)


def _needs(step: Step, steps: Sequence[Step]) -> tuple[str, ...]:
    """What comes with a step: what it waits for, and the rest of its group, since its parts are of no use alone."""
    return (*step.after, *(other.name for other in steps if step.group and other.group == step.group))


def select(names: Sequence[str] | None, steps: Sequence[Step] = STEPS) -> list[Step]:
    """The steps that start these programs or groups, with all that they wait for; all of them for None.

    Raises `ValueError` for an unknown name.
    """
    by_name = {step.name: step for step in steps}
    known = {name for step in steps if step.program for name in (step.name, step.group, step.role) if name}
    unknown = sorted(set(names or ()) - known)
    if unknown:
        allowed = ", ".join(sorted(known))
        raise ValueError(f"unknown program {', '.join(unknown)}; allowed: {allowed}.")
    wanted: set[str] = set()

    def add(step: Step) -> None:
        if step.name not in wanted:
            wanted.add(step.name)
            for name in _needs(step, steps):
                add(by_name[name])

    for step in steps:
        if names is None or any(step.answers_to(name) for name in names):
            add(step)
    return [step for step in steps if step.name in wanted]
