"""The ranking service's pipeline, servicer and interceptors on a real port in this process, and an OTLP collector."""

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from serving import ranking_pb2_grpc
from serving.admission import AdmissionConfig
from serving.decoding import UndecodableRequests
from serving.gate import Gate
from serving.logs import Bursts, JsonFormatter
from serving.metrics import Metrics
from serving.observed_requests import ObservedRequests, Tracer
from serving.pipeline import Pipeline, PipelineConfig, Slates, Users
from serving.service import RankingServicer
from serving.transport import SERVER_OPTIONS
from serving.view import LiveView


@contextmanager
def observed_service(
    view: LiveView | Callable[[], LiveView | None] | None,
    users: Users,
    *,
    metrics: Metrics,
    tracer: Tracer | None = None,
    slow_ms: float = 60_000,
    slates: Slates | None = None,
    max_in_flight: int = 8,
    gate: Gate | None = None,
    credentials: grpc.ServerCredentials | None = None,
    clock_ms: Callable[[], int] = lambda: 1_760_000_060_000,
) -> Iterator[str]:
    """Serves the view, or what `view` gives at each request, on a free port whose address it gives until leaving."""
    servicer = RankingServicer(
        pipeline=Pipeline(users=users, slates=slates, config=PipelineConfig(), clock_ms=clock_ms),
        view=view if callable(view) else lambda: view,
        metrics=metrics,
        # Never busy: the machine that runs the tests may be.
        admission=AdmissionConfig(max_in_flight=max_in_flight, workers=1, target_wait_ms=1e6, limit_wait_ms=1e7),
    )
    observed = ObservedRequests(metrics=metrics, slow_ms=slow_ms, tracer=tracer)
    loop, ports, stopping = asyncio.new_event_loop(), [], asyncio.Event()
    ready = Event()

    async def serve() -> None:
        interceptors = (observed, UndecodableRequests()) if gate is None else (observed, gate, UndecodableRequests())
        server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(servicer, server)
        if credentials is None:
            ports.append(server.add_insecure_port("127.0.0.1:0"))
        else:
            ports.append(server.add_secure_port("localhost:0", credentials))
        await server.start()
        ready.set()
        await stopping.wait()
        await server.stop(1)

    thread = Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield f"{'127.0.0.1' if credentials is None else 'localhost'}:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        servicer.close()
        loop.close()


@dataclass
class Collector(otlp_grpc.TraceServiceServicer):
    """Keeps what is exported to it. While `answers` is cleared it takes calls and hangs."""

    requests: list[otlp.ExportTraceServiceRequest] = field(default_factory=list)
    answers: Event = field(default_factory=Event)

    def Export(  # noqa: N802 - gRPC's name
        self, request: otlp.ExportTraceServiceRequest, _: grpc.ServicerContext
    ) -> otlp.ExportTraceServiceResponse:
        self.answers.wait(10)
        self.requests.append(request)
        return otlp.ExportTraceServiceResponse()

    def spans(self) -> list[Span]:
        return [
            span for request in self.requests for r in request.resource_spans for s in r.scope_spans for span in s.spans
        ]


@contextmanager
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector on a free port, and its address."""
    kept = Collector()
    kept.answers.set()
    server = grpc.server(ThreadPoolExecutor(2))
    otlp_grpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield kept, f"127.0.0.1:{port}"
    finally:
        kept.answers.set()
        server.stop(0).wait()


@contextmanager
def captured_log() -> Iterator[io.StringIO]:
    """Everything that this process logs, down to debug, as the service writes it."""
    text, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(Bursts())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield text
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
