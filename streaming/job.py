"""The stream job: events topic in; tiles, interactions, dead letters and late events out. SQL by `flink_sql`.

    python -m streaming.job --bootstrap-servers 127.0.0.1:9092 --checkpoint-dir var/flink --jars-dir .jars/flink \
        --rest-port 8081

Runs in the foreground in Flink's embedded cluster until it is told to stop (SIGTERM or SIGINT; exit 0) or fails
(exit 1). Started again, it goes on from the newest complete checkpoint. Bad flags end in one sentence and exit 2.
"""

import argparse
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from features import specs
from features.events import FUTURE_SKEW_MS, HORIZON_MS
from features.names import Topics
from features.tiles import FAMILIES
from streaming.flink_checkpoints import (
    TOLERATED_OUTAGE_MS,
    Checkpoint,
    CheckpointError,
    checkpoint_to_restore,
    forget_other_runs,
    record_plan,
)
from streaming.flink_sql import JobSql, compile_job

if TYPE_CHECKING:
    from pyflink.table import StatementSet, TableEnvironment

log = logging.getLogger("millrace.flink")

STATE_TTL_MS = HORIZON_MS + FUTURE_SKEW_MS + max(family.tile_ms for family in FAMILIES) + TOLERATED_OUTAGE_MS
"""Tiles and known event ids are kept while an event that is not too late can still come, and through an outage."""
CHECKPOINT_INTERVAL_MS = 10_000
BUFFER_TIMEOUT_MS = 10
"""How long a network buffer waits to fill. A simpler job of this shape (no contract, two tile families) took 31 ms from
event to tile at p50, and 123 with Flink's default. This job's own: 33 to 38 ms from event to store."""
MANAGED_MEMORY_MB = 384
"""RocksDB's block cache and write buffers, all slots together."""
ROCKSDB = {
    # Most keys are new: a filter says so without a look into the files.
    "state.backend.rocksdb.use-bloom-filter": "true",
    # Whole indexes and filters do not fit into the cache beside the data: each read would load one anew.
    "state.backend.rocksdb.memory.partitioned-index-filters": "true",
    # Most of the memory gathers what is written: larger files, merged less often.
    "state.backend.rocksdb.memory.write-buffer-ratio": "0.75",
    # Unpacking costs more than the disk that packing saves.
    "state.backend.rocksdb.compression.per.level": "NO_COMPRESSION",
}
"""With Flink's defaults half of all processor time went into reading and unpacking indexes (infra/adr/0006)."""
NETWORK_MEMORY_MB = 64
RESTART_ATTEMPTS = 12
"""Failures in a row (about 5 minutes of them) before the process gives up and leaves it to its supervisor."""
POLL_S = 0.5
BROKER_WAIT_S = 10.0
PORT_WAIT_S = 10.0
"""A killed JVM looks dead before its port is free (seen: after 0.05 s and 0.1 s), and a restart can come in between."""
EXIT_FAILED = 1
EXIT_USAGE = 2
_JVM_ENDED = "its JVM has ended by itself, and said why in the log above if it could"


class JobError(RuntimeError):
    """The job cannot start or has failed; one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """One run of the job, checked."""

    bootstrap_servers: str
    topics: Topics
    checkpoint_dir: Path
    """Root of all versions' checkpoints; this run's lie in `<root>/<topics version>`."""
    jars: tuple[Path, ...]
    rest_port: int
    metrics_port: int
    parallelism: int
    checkpoint_interval_ms: int
    log_level: str

    @property
    def version_dir(self) -> Path:
        """Checkpoints of this version of the features."""
        return self.checkpoint_dir.resolve() / self.topics.version

    @property
    def run_dir(self) -> Path:
        """What a run writes besides checkpoints; of no use to the next."""
        return self.version_dir / "run"


def settings(config: JobConfig, restored: Checkpoint | None) -> dict[str, str]:
    """Flink's configuration for the run. Only `execution.state-recovery.*` depends on what is restored."""
    values = {
        "pipeline.name": f"millrace-stream-{config.topics.version}",
        "pipeline.jars": ";".join(path.resolve().as_uri() for path in config.jars),
        "pipeline.object-reuse": "true",
        "parallelism.default": str(config.parallelism),
        "rest.address": "127.0.0.1",
        "rest.bind-address": "127.0.0.1",
        "rest.port": str(config.rest_port),
        "rest.bind-port": str(config.rest_port),
        # How old the figures of `streaming.job_metrics` may be.
        "metrics.fetcher.update-interval": "2 s",
        "io.tmp.dirs": str(config.run_dir / "tmp"),
        "taskmanager.memory.managed.size": f"{MANAGED_MEMORY_MB}m",
        "taskmanager.memory.network.min": f"{NETWORK_MEMORY_MB}m",
        "taskmanager.memory.network.max": f"{NETWORK_MEMORY_MB}m",
        "table.local-time-zone": "UTC",
        # Judge each record once, not once a sink.
        "table.optimizer.reuse-optimize-block-with-digest-enabled": "true",
        "table.exec.state.ttl": f"{STATE_TTL_MS} ms",
        "execution.buffer-timeout.interval": f"{BUFFER_TIMEOUT_MS} ms",
        "state.backend.type": "rocksdb",
        **ROCKSDB,
        "execution.checkpointing.dir": config.version_dir.as_uri(),
        "execution.checkpointing.interval": f"{config.checkpoint_interval_ms} ms",
        # Under a backlog a checkpoint takes long; this leaves time to work between two.
        "execution.checkpointing.min-pause": f"{config.checkpoint_interval_ms // 5} ms",
        "execution.checkpointing.timeout": "10 min",
        "execution.checkpointing.incremental": "true",
        "execution.checkpointing.num-retained": "2",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.tolerable-failed-checkpoints": "3",
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "1 s",
        "restart-strategy.exponential-delay.max-backoff": "30 s",
        "restart-strategy.exponential-delay.reset-backoff-threshold": "10 min",
        "restart-strategy.exponential-delay.attempts-before-reset-backoff": str(RESTART_ATTEMPTS),
    }
    if restored is not None:
        values["execution.state-recovery.path"] = restored.path.as_uri()
        # The run's first checkpoint is whole, so it needs no file of an earlier run; see `forget_other_runs`.
        values["execution.state-recovery.claim-mode"] = "NO_CLAIM"
    return values


def run(config: JobConfig, restored: Checkpoint | None, stopped: threading.Event) -> None:
    """Runs the job until `stopped` is set. Raises `JobError` when it cannot start or fails for good."""
    from streaming.flink_gateway import GatewayProcess, install_launcher
    from streaming.job_metrics import serve_metrics

    gateway = GatewayProcess(work_dir=config.run_dir, log_level=config.log_level)
    install_launcher(gateway)
    end_metrics = serve_metrics(config.rest_port, config.metrics_port)
    try:
        sql = compile_job(config.topics, config.bootstrap_servers)
        record_plan(config.version_dir, sql.plan_hash)
        forget_other_runs(config.version_dir, restored)
        client = _started(lambda: _submit(sql, settings(config, restored)), gateway.is_alive, stopped)
        if client is not None:
            _watch(client, gateway.is_alive, stopped)
    finally:
        end_metrics()
        gateway.stop()


def explain(config: JobConfig) -> str:
    """The optimised plan of the job, as Flink prints it."""
    from streaming.flink_gateway import GatewayProcess, install_launcher

    gateway = GatewayProcess(work_dir=config.run_dir, log_level=config.log_level)
    install_launcher(gateway)
    try:
        sql = compile_job(config.topics, config.bootstrap_servers)
        return str(_statement_set(_environment(settings(config, None)), sql).explain())
    finally:
        gateway.stop()


def _started(submit: Callable[[], Any], jvm_is_alive: Callable[[], bool], stopped: threading.Event) -> Any:
    """Submits the job; None where a stop came first. What Flink says of a failure becomes one sentence."""
    from py4j.protocol import Py4JError
    from pyflink.util.exceptions import JavaException

    try:
        return submit()
    except (Py4JError, JavaException, RuntimeError, OSError) as error:
        if stopped.is_set():
            return None
        reason = last_cause(str(error)) if jvm_is_alive() else _JVM_ENDED
        raise JobError(f"the job did not start: {reason}") from error


def _environment(values: dict[str, str]) -> "TableEnvironment":
    from pyflink.common import Configuration
    from pyflink.table import EnvironmentSettings, TableEnvironment

    configuration = Configuration()
    for key, value in values.items():
        configuration.set_string(key, value)
    streaming = EnvironmentSettings.new_instance().in_streaming_mode()
    return TableEnvironment.create(streaming.with_configuration(configuration).build())


def _statement_set(environment: "TableEnvironment", sql: JobSql) -> "StatementSet":
    for statement in (*sql.functions, *sql.tables, *sql.views):
        environment.execute_sql(statement)
    inserts = environment.create_statement_set()
    for statement in sql.inserts:
        inserts.add_insert_sql(statement)
    return inserts


def _submit(sql: JobSql, values: dict[str, str]) -> Any:
    client = _statement_set(_environment(values), sql).execute().get_job_client()
    assert client is not None  # an insert always has one
    log.info("the job runs as %s", client.get_job_id())
    return client


def _watch(client: Any, jvm_is_alive: Callable[[], bool], stopped: threading.Event) -> None:
    """Returns when told to stop; raises `JobError` when the job or its JVM ends by itself."""
    while not stopped.wait(POLL_S):
        if not jvm_is_alive():
            raise JobError(_JVM_ENDED)
        status = client.get_job_status().result().name
        if status in ("FAILED", "CANCELED", "FINISHED", "SUSPENDED"):
            raise JobError(f"the job is {status}: {_failure(client)}")


def _failure(client: Any) -> str:
    from py4j.protocol import Py4JError

    try:
        client.get_job_execution_result().result()
    except (Py4JError, RuntimeError) as error:
        return last_cause(str(error))
    return "it ended without an error"


def last_cause(trace: str) -> str:
    """The root cause in a Java stack trace, as one line; the first line where no cause is named."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    return causes[-1] if causes else (lines[0] if lines else "no reason was given")


# The command line.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"streaming.job: {message}; see --help.\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="streaming.job", description="Events in, feature tiles out: the Flink job, in the foreground."
    )
    names = Topics(version=specs.version())
    parser.add_argument("--bootstrap-servers", required=True, help="Kafka, as host:port[,host:port…]")
    parser.add_argument("--checkpoint-dir", required=True, type=Path, help="checkpoints, in a folder per version")
    parser.add_argument("--jars-dir", required=True, type=Path, help="where the Kafka connector's jar lies")
    parser.add_argument("--rest-port", type=_port, default=8081, help="Flink's REST interface, on 127.0.0.1")
    parser.add_argument("--metrics-port", type=_port, default=9249, help="Prometheus metrics, on 127.0.0.1")
    parser.add_argument("--parallelism", type=_positive, default=2, help="subtasks an operator")
    parser.add_argument("--events-topic", default=names.events, help="topic of raw events")
    parser.add_argument("--topics-version", default=names.version, help="suffix of the derived topics")
    parser.add_argument(
        "--checkpoint-interval-ms",
        type=_positive,
        default=CHECKPOINT_INTERVAL_MS,
        help="how much is done again after a crash",
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warn", "error"), default="warn", help="of the JVM")
    parser.add_argument("--now-ms", type=_positive, help="the instant a checkpoint's age is judged at (default: now)")
    parser.add_argument("--show", choices=("sql", "plan"), help="write the job's SQL or Flink's plan and exit")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed is a whole number from 1")
    return int(text)


def _port(text: str) -> int:
    port = _positive(text)
    if port > 65_535:
        raise argparse.ArgumentTypeError(f"got {text}, allowed is a port from 1 to 65535")
    return port


def config_of(flags: argparse.Namespace) -> JobConfig:
    """Checks what argparse cannot. Raises `JobError`."""
    jars = tuple(sorted(flags.jars_dir.glob("*.jar")))
    if not jars:
        raise JobError(f"--jars-dir {flags.jars_dir} holds no jar: run `make setup`, which fetches the Kafka connector")
    _addresses(flags.bootstrap_servers)
    if flags.checkpoint_dir.exists() and not flags.checkpoint_dir.is_dir():
        raise JobError(f"--checkpoint-dir {flags.checkpoint_dir} is a file: give a directory")
    return JobConfig(
        bootstrap_servers=flags.bootstrap_servers,
        topics=Topics(version=flags.topics_version, events=flags.events_topic),
        checkpoint_dir=flags.checkpoint_dir,
        jars=jars,
        rest_port=flags.rest_port,
        metrics_port=flags.metrics_port,
        parallelism=flags.parallelism,
        checkpoint_interval_ms=flags.checkpoint_interval_ms,
        log_level=flags.log_level,
    )


def _addresses(bootstrap_servers: str) -> list[tuple[str, int]]:
    pairs = [part.strip().rpartition(":") for part in bootstrap_servers.split(",")]
    if not all(host and port.isdecimal() for host, _, port in pairs):
        raise JobError(f"--bootstrap-servers: got {bootstrap_servers!r}, allowed is host:port, several by commas")
    return [(host, int(port)) for host, _, port in pairs]


def check_surroundings(config: JobConfig) -> None:
    """Raises `JobError` where the REST port stays taken or no broker answers in time."""
    for flag, port in (("--rest-port", config.rest_port), ("--metrics-port", config.metrics_port)):
        if not _in_time(partial(_is_free, port), PORT_WAIT_S):
            raise JobError(f"{flag} {port} is taken: end what uses it or give another")
    addresses = _addresses(config.bootstrap_servers)
    if not _in_time(lambda: any(_connects(address) for address in addresses), BROKER_WAIT_S):
        raise JobError(f"no broker answers on {config.bootstrap_servers}: start Kafka (`make up`) first")


def _in_time(condition: Callable[[], bool], wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Flink does: connections that linger after their server has ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _connects(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError:
        return False
    return True


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, while inside."""
    stopped = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        log.info("stopping on signal %d", number)
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quieten() -> None:
    """Libraries that say much and mean little: Beam at import, py4j of every object once its JVM has ended."""
    for name in ("apache_beam", "pyflink"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        # py4j logs by the root logger too.
        handler.addFilter(lambda record: record.module != "java_gateway")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _quieten()
    flags = _parser().parse_args(arguments)
    try:
        config = config_of(flags)
        sql = compile_job(config.topics, config.bootstrap_servers)
        if flags.show:
            sys.stdout.write(sql.script if flags.show == "sql" else explain(config))
            return 0
        now_ms = flags.now_ms or time.time_ns() // 1_000_000
        restored = checkpoint_to_restore(config.version_dir, sql.plan_hash, now_ms)
        check_surroundings(config)
    except (JobError, CheckpointError) as error:
        sys.stderr.write(f"streaming.job: {error}.\n")
        return EXIT_USAGE
    log.info("starting from %s", restored.path if restored else "the beginning of the events topic")
    try:
        with _stop_signals() as stopped:
            run(config, restored, stopped)
    except JobError as error:
        sys.stderr.write(f"streaming.job: {error}.\n")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
