"""Every request of the ranking service seen from outside: counted once by its outcome, traced, and logged.

The interceptor stands before all others, so that what they refuse is seen, too.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Protocol

import grpc

from serving import ranking_pb2
from serving.logs import log_request
from serving.metrics import Metrics
from serving.observation import Metadata, Observation, enter

METHODS_OF = f"/{ranking_pb2.DESCRIPTOR.services_by_name['RankingService'].full_name}/"

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Answer = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class Span(Protocol):
    """The span of a request under way."""

    trace_id: str
    """32 hexadecimal digits."""

    def end(self, request: Observation, code: str, seconds: float) -> None:
        """Closes it with all that is known of the request by now."""
        ...


class Tracer(Protocol):
    """Where spans come from (`serving.tracing.OtlpTracer`)."""

    def start(self, method: str, metadata: Metadata) -> Span:
        """Opens the span of a request, as a child of the caller's if there is one."""
        ...


class ObservedRequests(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpcio has no types
    """Counts, traces and logs every request of `RankingService`; health and reflection pass unchanged."""

    def __init__(self, *, metrics: Metrics, slow_ms: float, tracer: Tracer | None = None) -> None:
        """Requests that take `slow_ms` are logged although they succeed."""
        self._metrics = metrics
        self._slow_ms = slow_ms
        self._tracer = tracer

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        """The method's handler, observed."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None or not details.method.startswith(METHODS_OF):
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._observed(details.method.removeprefix(METHODS_OF), handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _observed(self, method: str, answer: Answer) -> Answer:
        async def observed_answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            seen = Observation(
                method=method, started_s=perf_counter(), request=request, metadata=context.invocation_metadata() or ()
            )
            span = None if self._tracer is None else self._tracer.start(method, seen.metadata)
            seen.trace_id = _callers_trace_id(seen.metadata) if span is None else span.trace_id
            enter(seen)
            code = "OK"
            try:
                return await answer(request, context)
            except BaseException as error:
                code = _code(error, context)
                raise
            finally:
                # In the loop's next turn, once gRPC has the answer: counting takes a tenth of a millisecond.
                seconds = perf_counter() - seen.started_s
                asyncio.get_running_loop().call_soon(self._ended, seen, span, code, context, seconds)

        return observed_answer

    def _ended(
        self, request: Observation, span: Span | None, code: str, context: grpc.aio.ServicerContext, seconds: float
    ) -> None:
        self._metrics.observe(request, code, seconds)
        if span is not None:
            span.end(request, code, seconds)
        log_request(request, code, "" if code == "OK" else str(context.details() or ""), seconds, self._slow_ms)


def _code(error: BaseException, context: grpc.aio.ServicerContext) -> str:
    """The status that the caller gets for an exception of the handler."""
    if isinstance(error, grpc.aio.AbortError):
        return str(context.code().name)
    if isinstance(error, asyncio.CancelledError):
        left_s = context.time_remaining()
        return "DEADLINE_EXCEEDED" if left_s is not None and left_s <= 0 else "CANCELLED"
    return "UNKNOWN"


def _callers_trace_id(metadata: Metadata) -> str:
    """The trace id of a well-formed W3C `traceparent`; empty without one."""
    for name, value in metadata:
        found = _TRACEPARENT.fullmatch(value) if name == "traceparent" and isinstance(value, str) else None
        if found is not None:
            return found[1]
    return ""
