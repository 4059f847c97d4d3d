"""The caller's side of tracing: the current span of its process as W3C metadata. Works without OpenTelemetry, too."""

try:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # the client needs grpcio and protobuf only
    _PROPAGATOR = None
else:
    _PROPAGATOR = TraceContextTextMapPropagator()


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """`traceparent`, and `tracestate` if there is one; empty without OpenTelemetry or without a current span."""
    if _PROPAGATOR is None:
        return ()
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return tuple(carrier.items())
