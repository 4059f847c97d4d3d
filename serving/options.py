"""The command line of the ranking service, read alike by its parent, its keeper, its workers and their scribes."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NoReturn

from features import specs
from features.names import Topics
from serving.access import AccessConfig, AccessError, access_config, add_access_flags

_MEMORY = Path("/dev/shm")  # noqa: S108 - what is made there is for this user alone


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the command line says."""

    port: int
    bundles: Path
    feature_repo: Path
    bootstrap_servers: str | None
    """None: no Kafka; the catalogue and the item features stay as bundle and store have them, slates are not logged."""
    metrics_port: int | None
    topics: Topics
    rules: Path | None = None
    """What people pin, boost and block (`serving.rules`); None: nothing."""
    experiments: Path | None = None
    """Of `serving.experiments_file`; need not exist yet. None: no experiments and no challenger in the shadow."""
    request_log: Path | None = None
    """Directory of the request log, which the workers of one machine share; None: none is kept."""
    full_features_share: float = 0.05
    """Of the requests, how many are logged with the features of every candidate; explained ones are in any case."""
    host: str = "127.0.0.1"
    processes: int = 1
    """Worker processes that share the port; 0 is one a core."""
    pin: bool = False
    """Whether each of them stays on a core of its own."""
    max_in_flight: int = 32
    workers: int = 2
    """Threads of each worker process that run the pipeline."""
    ranker_threads: int = 1
    max_candidates: int = 300
    otlp_endpoint: str | None = None
    """`host:port` of an OpenTelemetry collector; None: no traces."""
    trace_ratio: float = 0.05
    """Share of requests that are traced, among those whose caller has not decided."""
    slow_request_ms: int = 100
    """Requests that take so long are logged."""
    access: AccessConfig = field(default_factory=AccessConfig)
    log_level: str = "info"
    parent: int | None = None
    """The process that started this one and with which it ends; None for the first."""
    core: int | None = None
    """On which a worker stays; None: on any."""
    number: int = 0
    """Of a worker and of its scribe, from 0."""

    @property
    def logs_slates(self) -> bool:
        """Whether there is anything that served slates go to, and so scribes."""
        return self.bootstrap_servers is not None or self.request_log is not None

    @property
    def shared_dir(self) -> Path:
        """Where the service's processes share the item snapshot and their metrics: in memory where there is such a
        file system. The port names it, since only one service at a time holds the port.
        """
        return (_MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir())) / f"millrace-serving-{self.port}"

    @property
    def snapshot_dir(self) -> Path:
        """Where the keeper publishes the item snapshot (`serving.snapshot_files`)."""
        return self.shared_dir / "snapshot"

    @property
    def metrics_dir(self) -> Path:
        """Where workers and scribes count and the parent adds up (prometheus_client's multiprocess mode)."""
        return self.shared_dir / "metrics"

    @property
    def scribe_address(self) -> Path:
        """The socket at which the scribe listens to the worker of the same number."""
        return self.shared_dir / f"scribe-{self.number}.sock"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message}. See --help.\n")
        raise SystemExit(2)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a port from 1 to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number from 1")
    return int(text)


def _processes(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number from 1, or 0 for one a core")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a number from 0 to 1")
    return share


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: host:port, such as localhost:4317")
    return text


def _directory(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, which is a file; allowed: a directory")
    return path


def parse_arguments(arguments: Sequence[str] | None) -> ServerConfig:
    """The configuration. A wrong flag ends the process with one sentence and status 2."""
    parser = _Parser(prog="serving.server", description="Serves the promoted bundle over gRPC.", allow_abbrev=False)
    parser.add_argument("--port", type=_port, required=True, help="gRPC port")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--bundles", type=_directory, required=True, help="directory of bundles and champion.json")
    parser.add_argument("--feature-repo", type=_directory, required=True, help="directory of feature_store.yaml")
    parser.add_argument("--bootstrap-servers", help="Kafka; absent: no live item features, no slates logged")
    parser.add_argument("--rules", type=Path, help="rules file, read again when it changes (default: no rules)")
    parser.add_argument("--experiments", type=Path, help="TOML of experiments and challenger; may come later")
    parser.add_argument("--metrics-port", type=_port, help="Prometheus port on 127.0.0.1 (default: none)")
    parser.add_argument("--items-topic", default=Topics.items, help="catalogue topic (default: %(default)s)")
    parser.add_argument("--slates-topic", default=Topics.slates, help="where slates go (default: %(default)s)")
    parser.add_argument("--events-topic", default=Topics.events, help="where Feedback goes (default: %(default)s)")
    parser.add_argument("--request-log", type=_directory, help="directory of the last day's requests (default: none)")
    parser.add_argument("--full-features-share", type=_share, default=0.05, help="share of requests logged in full")
    parser.add_argument("--topics-version", default=specs.version(), help="suffix of the derived topics")
    parser.add_argument(
        "--processes", type=_processes, default=1, help="worker processes, 0 for one a core (default: %(default)s)"
    )
    parser.add_argument("--pin", action="store_true", help="a core to each worker process: faster on a machine alone")
    parser.add_argument("--max-in-flight", type=_positive, default=32, help="requests at once a process; more are shed")
    parser.add_argument(
        "--workers", type=_positive, default=2, help="pipeline threads of a process (default: %(default)s)"
    )
    parser.add_argument("--ranker-threads", type=_positive, default=1, help="ONNX Runtime threads a request")
    parser.add_argument(
        "--max-candidates", type=_positive, default=300, help="candidates scored at most (default: %(default)s)"
    )
    parser.add_argument(
        "--otlp-endpoint", type=_address, help="HOST:PORT of an OTLP/gRPC collector (default: no traces)"
    )
    parser.add_argument("--trace-ratio", type=_share, default=0.05, help="share traced if the caller has not decided")
    parser.add_argument("--slow-request-ms", type=_positive, default=100, help="slower requests are logged")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    add_access_flags(parser)
    parser.add_argument("--parent", type=_positive, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    got = parser.parse_args(arguments)
    try:
        access = access_config(got)
    except AccessError as error:
        parser.error(str(error))
    own = {each.name for each in fields(ServerConfig)}
    values = {name: value for name, value in vars(got).items() if name in own}
    values["bootstrap_servers"] = got.bootstrap_servers or None
    names = {"events": got.events_topic, "items": got.items_topic, "slates": got.slates_topic}
    topics = Topics(version=got.topics_version, **names)
    return ServerConfig(**{**values, "access": access, "topics": topics})
