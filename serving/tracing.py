"""Spans of requests, sent to an OpenTelemetry collector by OTLP over gRPC.

A request's span continues the caller's W3C `traceparent`; below it each stretch of a stage is a span, with an event for
each candidate source. Whether a request is traced is the caller's decision, or a share of those without one. Spans are
made when the request is over, from the record that it kept anyway, and sent in batches by a thread, so a collector that
is slow or away costs a request nothing: spans that cannot be kept or sent are counted (`ranking_spans_total`).

Only imported where a collector is named.
"""

import logging
import uuid
from collections.abc import Sequence

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from serving import ranking_pb2
from serving.logs import SERVER_FAULTS, redacted
from serving.metrics import Metrics
from serving.observation import Metadata, Observation
from serving.stages import RETRIEVE, SourceCall

_log = logging.getLogger(__name__)

SERVICE = ranking_pb2.DESCRIPTOR.services_by_name["RankingService"].full_name
MAX_QUEUED_SPANS = 4_096
"""Spans that wait to be sent or are being sent; beyond, they are dropped and counted."""
BATCH_SPANS = 512
SEND_EVERY_MS = 1_000
SEND_TIMEOUT_S = 2.0
"""Of one batch, tries included; also how long the end of the process may wait for a collector that is away."""
_HEADERS = ("traceparent", "tracestate")


class OtlpTracer:
    """Makes and sends the spans of one process. `start` and the spans' `end` belong to one thread."""

    def __init__(self, *, endpoint: str, ratio: float, metrics: Metrics) -> None:
        """`endpoint` is the `host:port` of a collector that listens without TLS; `ratio` in [0, 1] is the share of
        requests traced among those whose caller has not decided.
        """
        # Its own lines would come with every batch; `_CountedExporter` says when the collector goes and comes.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=SEND_TIMEOUT_S)
        self._processor = _Bounded(_CountedExporter(exporter, endpoint, metrics), metrics)
        resource = Resource.create({SERVICE_NAME: "millrace-ranking", SERVICE_INSTANCE_ID: str(uuid.uuid4())})
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource, shutdown_on_exit=False
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("serving")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, method: str, metadata: Metadata) -> "RequestSpan":
        """Opens the span of a request, as a child of the caller's if there is one."""
        carrier = {name: value for name, value in metadata if name in _HEADERS and isinstance(value, str)}
        # An empty context, not None: nothing that is current in this process is the request's parent.
        context = self._propagator.extract(carrier) if carrier else Context()
        attributes: dict[str, AttributeValue] = {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": method}
        span = self._tracer.start_span(f"{SERVICE}/{method}", context, SpanKind.SERVER, attributes)
        return RequestSpan(self._tracer, span)

    def close(self) -> None:
        """Sends what waits, for little more than `SEND_TIMEOUT_S` at most."""
        self._processor.shutdown()


class RequestSpan:
    """The span of one request, from its arrival to its answer."""

    def __init__(self, tracer: trace.Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self.trace_id = format_trace_id(span.get_span_context().trace_id)
        """32 hexadecimal digits."""

    def end(self, request: Observation, code: str, seconds: float) -> None:
        """Closes it with the stages below it and all that is known of the request, but nothing personal."""
        span = self._span
        if not isinstance(span, SdkSpan):
            return  # not sampled
        begun_ns = span.start_time or 0
        span.set_attributes(_attributes(request))
        span.set_attribute("rpc.grpc.status_code", _number(code))
        if code in SERVER_FAULTS:
            span.set_status(StatusCode.ERROR)
        self._add_stages(request, begun_ns, request.started_s + seconds)
        span.end(begun_ns + round(seconds * 1e9))

    def _add_stages(self, request: Observation, begun_ns: int, ended_s: float) -> None:
        if request.progress is None:
            return

        def at_ns(instant_s: float) -> int:
            # The stages of a request whose caller has gone still run; its span is over.
            return begun_ns + round((min(instant_s, ended_s) - request.started_s) * 1e9)

        parent = set_span_in_context(self._span, Context())
        for block in request.progress.blocks:
            child = self._tracer.start_span(block.stage, parent, start_time=at_ns(block.start_s))
            if block.stage == RETRIEVE:
                for call in request.progress.source_calls:
                    child.add_event("source", _call(call), at_ns(call.end_s))
            child.end(at_ns(block.end_s))


def _attributes(request: Observation) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {}
    if request.request_id:
        found["millrace.request_id"] = request.request_id
    if request.progress is not None and request.progress.degraded:
        personal = request.personal()
        notes = (f"{note.stage}: {note.reason}" for note in request.progress.degraded)
        found["millrace.degraded"] = [redacted(note, personal) for note in notes]
    slate = request.slate
    if slate is not None:
        found["millrace.bundle_id"] = slate.bundle_id
        found["millrace.arm"] = slate.experiment_arm
        found["millrace.candidates_retrieved"] = slate.candidates_retrieved
        found["millrace.candidates_scored"] = slate.candidates_scored
        found["millrace.items"] = len(slate.items)
    return found


def _call(call: SourceCall) -> dict[str, AttributeValue]:
    ms = (call.end_s - call.start_s) * 1000
    return {"source": call.source, "outcome": call.outcome, "candidates": call.candidates, "ms": ms}


def _number(code: str) -> int:
    number: int = grpc.StatusCode[code].value[0]
    return number


class _Bounded(SpanProcessor):
    """Hands spans to the batches while there is room, and counts the others."""

    def __init__(self, exporter: "_CountedExporter", metrics: Metrics) -> None:
        self._exporter = exporter
        self._batches = BatchSpanProcessor(
            exporter,
            max_queue_size=MAX_QUEUED_SPANS,
            schedule_delay_millis=SEND_EVERY_MS,
            max_export_batch_size=BATCH_SPANS,
        )
        self._dropped = metrics.spans.labels("dropped")
        self._taken = 0

    def on_end(self, span: ReadableSpan) -> None:
        """Takes an ended span."""
        # Two counts, each written by one thread, instead of one under a lock.
        if self._taken - self._exporter.finished >= MAX_QUEUED_SPANS:
            self._dropped.inc()
            return
        self._taken += 1
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """Sends what waits."""
        self._exporter.closing = True
        self._batches.shutdown()  # type: ignore[no-untyped-call]


class _CountedExporter(SpanExporter):
    """Counts what was sent and what failed, and logs only when the collector goes and comes."""

    def __init__(self, exporter: SpanExporter, endpoint: str, metrics: Metrics) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._spans = metrics.spans
        self._down = False
        self.finished = 0
        """Spans that were sent or given up."""
        self.closing = False
        """Once set, a collector that is away is not tried again."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends a batch; gives it up after `SEND_TIMEOUT_S`."""
        given_up = self.closing and self._down
        result = SpanExportResult.FAILURE if given_up else self._exporter.export(spans)
        sent = result is SpanExportResult.SUCCESS
        self._spans.labels("sent" if sent else "failed").inc(len(spans))
        self.finished += len(spans)
        if sent == self._down:
            self._down = not sent
            said = "takes spans again" if sent else "takes no spans; they are given up and counted until it does"
            _log.warning("the collector %s %s", self._endpoint, said)
        return result

    def shutdown(self) -> None:
        """Closes the connection."""
        self._exporter.shutdown()
