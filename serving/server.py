"""The ranking service's process: `python -m serving.server --port P --bundles DIR …`.

It starts with whatever is there. Without a bundle it waits for `champion.json` with health NOT_SERVING and answers
UNAVAILABLE; without the store or Kafka it answers from memory and says so. SIGTERM drains: health turns
NOT_SERVING, requests under way are answered, queued slates are sent.
"""

import argparse
import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from features import specs
from features.backends import Backend, open_backend
from features.names import Topics
from features.repo import store_location
from serving import ranking_pb2, ranking_pb2_grpc
from serving.bundles import BundleWatcher
from serving.decoding import UndecodableRequests
from serving.door import Door
from serving.gauges import Gauges
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.logs import log_as_json
from serving.metrics import Metrics
from serving.observed_requests import ObservedRequests
from serving.pipeline import Pipeline, PipelineConfig
from serving.rule_index import unknown_names
from serving.rules import RulesError
from serving.rules_watch import RulesWatcher
from serving.service import RankingServicer
from serving.shadow import ShadowScorer
from serving.slate_log import SlateLog
from serving.upkeep import Upkeep
from serving.users import UserReader

if TYPE_CHECKING:
    from serving.tracing import OtlpTracer

_log = logging.getLogger(__name__)

SERVICE = ranking_pb2.DESCRIPTOR.services_by_name["RankingService"].full_name
DRAIN_S = 10.0
"""How long requests under way may take once nothing new is accepted."""
QUIET_S, LAME_DUCK_S = 0.25, 3.0
"""After SIGTERM requests are still answered until none has come for the first, at most for the second: callers that
watch health have gone by then, and gRPC cancels what it has received but not yet handed over when it stops."""
OBSERVE_EVERY_S = 1.0
MAX_MESSAGE_BYTES = 8 * 1024 * 1024


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
    host: str = "127.0.0.1"
    max_in_flight: int = 32
    workers: int = 2
    """Threads that run the pipeline: one a core."""
    ranker_threads: int = 1
    otlp_endpoint: str | None = None
    """`host:port` of an OpenTelemetry collector; None: no traces."""
    trace_ratio: float = 0.05
    """Share of requests that are traced, among those whose caller has not decided."""
    slow_request_ms: int = 100
    """Requests that take so long are logged."""
    experiments: Path | None = None
    """Of `serving.experiments_file`; need not exist yet. None: no experiments and no challenger in the shadow."""


class StartError(RuntimeError):
    """Why the service cannot start, in one sentence."""


class Server:
    """All parts of the service and their order of starting and stopping."""

    def __init__(self, config: ServerConfig, clock_ms: Callable[[], int]) -> None:
        self._config = config
        self._metrics = Metrics()
        self._rules = _watched_rules(config.rules, self._metrics.use_rules)
        self._live = Live(ItemSnapshot().finalise_all(clock_ms()))
        kafka, settings = config.bootstrap_servers, PipelineConfig()
        self._users = UserReader(self._open_store, perf_counter)
        self._users.open_ahead()
        self._door = Door(self._open_store)
        self._slates = None if kafka is None else SlateLog(kafka, config.topics.slates, self._metrics)
        self._upkeep = Upkeep(
            live=self._live,
            open_store=lambda version: open_backend(store_location(config.feature_repo), version),
            bootstrap_servers=kafka,
            topics=config.topics,
            clock_ms=clock_ms,
        )
        self._watcher = BundleWatcher(
            live=self._live,
            bundles_dir=config.bundles,
            threads=config.ranker_threads,
            on_switch=self._metrics.use_bundle,
            experiments_file=config.experiments,
            clock_ms=clock_ms,
            rerank=settings.rerank,
        )
        self._shadow = ShadowScorer(self._metrics, busy=lambda: self._servicer.quiet_s() == 0.0)
        pipeline = Pipeline(
            users=self._users,
            slates=self._slates,
            config=settings,
            clock_ms=clock_ms,
            rules=lambda: self._rules.rules,
            shadow=self._shadow,
        )
        self._servicer = RankingServicer(
            pipeline=pipeline,
            view=lambda: self._live.view,
            metrics=self._metrics,
            max_in_flight=config.max_in_flight,
            workers=config.workers,
            admitted=self._door.admitted,
        )
        self._gauges = Gauges(
            metrics=self._metrics,
            live=self._live,
            watcher=self._watcher,
            upkeep=self._upkeep,
            slates=self._slates,
            clock_ms=clock_ms,
        )
        self._tracer = _tracer(config, self._metrics)
        self._health = health.aio.HealthServicer()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Raises `StartError` when a port is taken."""
        server = await self._started()
        loop = asyncio.get_running_loop()
        for signal_ in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_, self._stopping.set)
        self._door.start()
        self._upkeep.start()
        self._watcher.start()
        self._rules.start()
        await self._observe()
        await self._drain(server)

    async def _started(self) -> grpc.aio.Server:
        config = self._config
        # Without this a second server would share the port silently and take half of the requests.
        options = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES))
        observed = ObservedRequests(metrics=self._metrics, slow_ms=config.slow_request_ms, tracer=self._tracer)
        server = grpc.aio.server(options=options, interceptors=(observed, UndecodableRequests()))
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(self._servicer, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            server.add_insecure_port(f"{config.host}:{config.port}")
        except RuntimeError as error:
            raise StartError(f"port {config.port} of {config.host} is taken; give another --port.") from error
        try:
            if config.metrics_port is not None:
                self._metrics.serve(config.metrics_port)
        except OSError as error:
            raise StartError(f"port {config.metrics_port} is taken ({error}); give another --metrics-port.") from error
        await server.start()
        _log.info("listening on %s:%d", config.host, config.port)
        return server

    async def _observe(self) -> None:
        """Turns health to SERVING with the first bundle and keeps the gauges, until it is time to stop."""
        serving = False
        while not self._stopping.is_set():
            if not serving and self._live.view is not None:
                serving = True
                await self._set_health(health_pb2.HealthCheckResponse.SERVING)
            self._gauges.refresh()
            self._count_rules()
            try:
                await asyncio.wait_for(self._stopping.wait(), OBSERVE_EVERY_S if serving else 0.1)
            except TimeoutError:
                continue

    def _count_rules(self) -> None:
        self._metrics.rules_refused.set(self._rules.refused)
        if (view := self._live.view) is not None:
            self._metrics.rules_unknown_names.set(unknown_names(self._rules.rules, view.item_table))

    async def _drain(self, server: grpc.aio.Server) -> None:
        _log.info("draining for at most %.0f s", DRAIN_S)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        until_s = perf_counter() + LAME_DUCK_S
        while perf_counter() < until_s and self._servicer.quiet_s() < QUIET_S:
            await asyncio.sleep(QUIET_S / 5)
        await server.stop(DRAIN_S)
        self._watcher.stop()
        self._rules.stop()
        self._upkeep.stop()
        self._servicer.close()
        self._shadow.close()
        if self._slates is not None:
            self._slates.close()
        self._users.close()
        self._door.stop()
        if self._tracer is not None:
            self._tracer.close()
        _log.info("stopped")

    async def _set_health(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    def _open_store(self) -> Backend:
        return open_backend(store_location(self._config.feature_repo))


def _watched_rules(file: Path | None, on_switch: Callable[[str], None]) -> RulesWatcher:
    try:
        return RulesWatcher(file, on_switch)
    except RulesError as error:
        raise StartError(f"{error} The service does not start without the rules that it is given.") from error


def _tracer(config: ServerConfig, metrics: Metrics) -> "OtlpTracer | None":
    if config.otlp_endpoint is None:
        return None
    # Here, since OpenTelemetry is not needed without a collector.
    from serving.tracing import OtlpTracer

    return OtlpTracer(endpoint=config.otlp_endpoint, ratio=config.trace_ratio, metrics=metrics)


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


def parse_arguments(arguments: Sequence[str] | None) -> tuple[ServerConfig, str]:
    """The configuration and the log level. A wrong flag ends the process with one sentence and status 2."""
    parser = _Parser(prog="serving.server", description="Serves the promoted bundle over gRPC.", allow_abbrev=False)
    parser.add_argument("--port", type=_port, required=True, help="gRPC port")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--bundles", type=_directory, required=True, help="directory of bundles and champion.json")
    parser.add_argument("--feature-repo", type=_directory, required=True, help="directory of feature_store.yaml")
    parser.add_argument("--bootstrap-servers", help="Kafka; absent: no live item features, no slates logged")
    parser.add_argument("--rules", type=Path, help="rules file, read again when it changes (default: no rules)")
    parser.add_argument("--metrics-port", type=_port, help="Prometheus port on 127.0.0.1 (default: none)")
    parser.add_argument("--items-topic", default=Topics.items, help="catalogue topic (default: %(default)s)")
    parser.add_argument("--slates-topic", default=Topics.slates, help="where slates go (default: %(default)s)")
    parser.add_argument("--topics-version", default=specs.version(), help="suffix of the derived topics")
    parser.add_argument("--max-in-flight", type=_positive, default=32, help="requests at once; more are shed")
    parser.add_argument("--workers", type=_positive, default=2, help="pipeline threads (default: %(default)s)")
    parser.add_argument("--ranker-threads", type=_positive, default=1, help="ONNX Runtime threads a request")
    parser.add_argument(
        "--otlp-endpoint", type=_address, help="HOST:PORT of an OTLP/gRPC collector (default: no traces)"
    )
    parser.add_argument("--trace-ratio", type=_share, default=0.05, help="share traced if the caller has not decided")
    parser.add_argument("--slow-request-ms", type=_positive, default=100, help="slower requests are logged")
    parser.add_argument("--experiments", type=Path, help="TOML of experiments and challenger; may come later")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    got = parser.parse_args(arguments)
    topics = Topics(version=got.topics_version, items=got.items_topic, slates=got.slates_topic)
    config = ServerConfig(
        port=got.port,
        host=got.host,
        bundles=got.bundles,
        feature_repo=got.feature_repo,
        bootstrap_servers=got.bootstrap_servers or None,
        metrics_port=got.metrics_port,
        topics=topics,
        rules=got.rules,
        max_in_flight=got.max_in_flight,
        workers=got.workers,
        ranker_threads=got.ranker_threads,
        otlp_endpoint=got.otlp_endpoint,
        trace_ratio=got.trace_ratio,
        slow_request_ms=got.slow_request_ms,
        experiments=got.experiments,
    )
    return config, got.log_level


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the service; returns the process's exit status."""
    config, log_level = parse_arguments(arguments)
    log_as_json(log_level)

    async def serve() -> None:
        await Server(config, clock_ms=lambda: time.time_ns() // 1_000_000).run()

    try:
        asyncio.run(serve())
    except StartError as error:
        sys.stderr.write(f"serving.server: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
