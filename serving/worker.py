"""A worker: one of the processes that answer requests at a service's port.

`serving.processes` starts it with the service's own flags: `python -m serving.worker --parent PID FLAGS`. It starts
with whatever is there. Without a bundle it waits for `champion.json` with health NOT_SERVING and answers UNAVAILABLE;
without the store, Kafka or the keeper it answers from memory and says so. SIGTERM drains: health turns NOT_SERVING,
requests under way are answered, queued slates go to the scribe (`serving.scribe`).
"""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from features.backends import Backend, open_backend
from features.repo import store_location
from serving import ranking_pb2, ranking_pb2_grpc
from serving.admission import AdmissionConfig
from serving.bundles import BundleWatcher
from serving.decoding import UndecodableRequests
from serving.door import Door
from serving.explain import Explainer
from serving.feedback import Feedback
from serving.follower import Follower
from serving.gauges import Gauges
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.logs import log_as_json
from serving.metrics import Metrics
from serving.observed_requests import ObservedRequests
from serving.options import ServerConfig, parse_arguments
from serving.pipeline import Pipeline, PipelineConfig
from serving.processes import CANNOT_START, StartError, end_with_parent
from serving.request_log import RequestLogReader
from serving.rule_index import unknown_names
from serving.rules import RulesError
from serving.rules_watch import RulesWatcher
from serving.service import RankingServicer
from serving.shadow import ShadowScorer
from serving.slate_log import SlateLog
from serving.snapshot_files import SnapshotReader
from serving.topic_tail import TopicTail
from serving.transport import SERVER_OPTIONS
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
COLLECT_EVERY = 20_000
"""New objects after which the garbage collector looks at them: those of some dozens of requests."""


class Worker:
    """All parts of a worker and their order of starting and stopping."""

    def __init__(self, config: ServerConfig, clock_ms: Callable[[], int]) -> None:
        self._config = config
        self._clock_ms = clock_ms
        self._metrics = Metrics()
        self._rules = _watched_rules(config.rules, self._metrics.use_rules)
        self._live = Live(ItemSnapshot().finalise_all(clock_ms()))
        kafka, requests, settings = config.bootstrap_servers, config.request_log, pipeline_config(config)
        self._users = UserReader(
            self._open_store,
            perf_counter,
            on_circuit=self._metrics.guard.enter_circuit_state,
            on_retry=self._metrics.guard.store_retries.inc,
        )
        self._users.open_ahead()
        self._door = Door(self._open_store)
        self._slates = self._slate_log() if config.logs_slates else None
        self._follower = Follower(
            live=self._live,
            snapshots=SnapshotReader(config.snapshot_dir, perf_counter),
            items=None if kafka is None else TopicTail(kafka, config.topics.items),
            clock_ms=clock_ms,
            monotonic_s=perf_counter,
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
            admission=AdmissionConfig(max_in_flight=config.max_in_flight, workers=config.workers),
            explainer=None if requests is None else self._explainer(requests),
            feedback=None if kafka is None else self._feedback(kafka, clock_ms),
            admitted=self._door.admitted,
            after=(lambda: None) if self._slates is None else self._slates.go_on,
        )
        self._gauges = Gauges(
            metrics=self._metrics,
            live=self._live,
            watcher=self._watcher,
            follower=self._follower,
            slates=self._slates,
            clock_ms=clock_ms,
        )
        self._tracer = _tracer(config, self._metrics)
        self._gate = config.access.gate(self._metrics.guard, perf_counter, clock_ms)
        self._health = health.aio.HealthServicer()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Raises `StartError` when another start would not help."""
        server = await self._started()
        loop = asyncio.get_running_loop()
        for signal_ in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_, self._stopping.set)
        self._door.start()
        self._follower.start()
        self._watcher.start()
        self._rules.start()
        await self._observe()
        await self._drain(server)

    async def _started(self) -> grpc.aio.Server:
        config = self._config
        # The parent sees to it that only its own workers share the port.
        options = (("grpc.so_reuseport", 1), *SERVER_OPTIONS)
        observed = ObservedRequests(metrics=self._metrics, slow_ms=config.slow_request_ms, tracer=self._tracer)
        server = grpc.aio.server(options=options, interceptors=(observed, self._gate, UndecodableRequests()))
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(self._servicer, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            config.access.add_port(server, f"{config.host}:{config.port}")
        except RuntimeError as error:
            raise StartError(f"port {config.port} of {config.host} cannot be used ({error}).") from error
        await server.start()
        _log.info("listening on %s:%d", config.host, config.port)
        return server

    async def _observe(self) -> None:
        """Turns health to SERVING with the first bundle and keeps the gauges, until it is time to stop."""
        serving = False
        while not self._stopping.is_set():
            if not serving and self._live.view is not None and self._follower.settled:
                serving = True
                _keep_what_is_there()
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
        self._follower.stop()
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

    def _slate_log(self) -> SlateLog:
        return SlateLog(
            self._config.scribe_address,
            self._metrics.slate_log,
            kafka=self._config.bootstrap_servers is not None,
            requests=self._config.request_log is not None,
            full_share=self._config.full_features_share,
        )

    def _explainer(self, request_log: Path) -> Explainer:
        return Explainer(RequestLogReader(request_log), lambda: self._live.view, self._config.bundles)

    def _feedback(self, kafka: str, clock_ms: Callable[[], int]) -> Feedback:
        return Feedback(kafka, self._config.topics.events, self._metrics, clock_ms, self._door.refuses)

    def _open_store(self) -> Backend:
        return open_backend(store_location(self._config.feature_repo))


def _keep_what_is_there() -> None:
    """Has the garbage collector forget all objects so far, each of which it would look at in a full collection (70 ms),
    and look for cycles seldom: requests leave none.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)


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


def pipeline_config(config: ServerConfig) -> PipelineConfig:
    """The stages' limits."""
    most = config.max_candidates
    return PipelineConfig(max_candidates=most, min_candidates=min(most, PipelineConfig.min_candidates))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves; returns the process's exit status."""
    config = parse_arguments(arguments)
    end_with_parent(config.parent)
    if config.core is not None:
        os.sched_setaffinity(0, {config.core})
    log_as_json(config.log_level)

    async def serve() -> None:
        await Worker(config, clock_ms=lambda: time.time_ns() // 1_000_000).run()

    try:
        uvloop.run(serve())
    except StartError as error:
        sys.stderr.write(f"serving.server: {error}\n")
        return CANNOT_START
    return 0


if __name__ == "__main__":
    sys.exit(main())
