"""Spans on the wire: a real client, the real servicer, the real exporter, and a collector that keeps what it gets."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider

from features.user_state import UserState
from models.bundle import Bundle
from models.sources import Candidates
from serving import ranking_pb2 as pb
from serving import ranking_pb2_grpc, trace_context, tracing
from serving.client import RankingClient, RankingError
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.metrics import Metrics
from serving.stages import STAGES
from serving.tracing import OtlpTracer
from serving.user_read_error import UserReadError
from serving.users import unknown_user
from serving.view import LiveView
from tests.conftest import free_port, wait_for
from tests.observed_service import Collector, collector, observed_service
from tests.serving_bundle import START_MS, write_tiny_bundle

USER = "marked-user-7f3a"
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = SAMPLED[:-1] + "0"


class Users:
    """Nobody is known; for the marked user the store fails with their id in the message."""

    def read(self, user_id: str, instant_ms: int, *_: float) -> UserState:
        if user_id.startswith(USER):
            raise UserReadError(f"the store failed: KeyError: 'user:{user_id}'")
        return unknown_user(user_id, instant_ms)


class Failing:
    """A source that breaks with a user's id in the message."""

    name = "als"

    def candidates(self, *_: object) -> Candidates:
        raise RuntimeError(f"no factors of {USER}")


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> LiveView:
    live = Live(ItemSnapshot().finalise_all(START_MS + 60_000))
    live.switch(Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles"))))
    assert live.view is not None
    return live.view


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "SEND_EVERY_MS", 10)
    monkeypatch.setattr(tracing, "SEND_TIMEOUT_S", 0.3)


def _counted(metrics: Metrics, fate: str) -> float:
    return metrics.registry.get_sample_value("ranking_spans_total", {"fate": fate}) or 0.0


@pytest.fixture
def traced(view: LiveView, quick: None) -> Iterator[tuple[Collector, str, Metrics]]:
    """A service that traces only what its callers trace; the collector and the service's address."""
    metrics = Metrics()
    with collector() as (kept, endpoint):
        tracer = OtlpTracer(endpoint=endpoint, ratio=0, metrics=metrics)
        with observed_service(view, Users(), metrics=metrics, tracer=tracer) as address:
            yield kept, address, metrics
        tracer.close()


def _request_span(kept: Collector, method: str = "Recommend") -> Span:
    """Waits for a request's span; those below it were exported before it or with it."""

    def found() -> list[Span]:
        return [span for span in kept.spans() if span.name.endswith(f"RankingService/{method}")]

    wait_for(found, "a span of the request")
    (span,) = found()
    return span


def _attributes(span: Span) -> dict[str, object]:
    def plain(value: object) -> object:
        kind = value.WhichOneof("value")  # type: ignore[attr-defined]
        got = getattr(value, kind)
        return [plain(each) for each in got.values] if kind == "array_value" else got

    return {pair.key: plain(pair.value) for pair in span.attributes}


def test_a_request_continues_the_callers_trace_through_its_stages(traced: tuple[Collector, str, Metrics]) -> None:
    kept, address, metrics = traced
    with TracerProvider().get_tracer("caller").start_as_current_span("page") as page, RankingClient(address) as client:
        slate = client.recommend("somebody", 5)
    span = _request_span(kept)
    context = page.get_span_context()
    assert span.trace_id == context.trace_id.to_bytes(16, "big")
    assert span.parent_span_id == context.span_id.to_bytes(8, "big")
    assert span.kind == Span.SPAN_KIND_SERVER and span.status.code == Status.STATUS_CODE_UNSET
    said = _attributes(span)
    assert said["millrace.request_id"] == slate.request_id and said["millrace.bundle_id"] == slate.bundle_id
    assert said["millrace.arm"] == "millrace" and said["millrace.items"] == 5 and "millrace.degraded" not in said
    assert said["millrace.candidates_scored"] == slate.candidates_scored > 0
    assert said["rpc.method"] == "Recommend" and said["rpc.grpc.status_code"] == 0
    stages = [other for other in kept.spans() if other is not span]
    assert sorted({stage.name for stage in stages}) == sorted(STAGES)
    assert [stage.name for stage in stages].count("filter") == 2
    for stage in stages:
        assert stage.trace_id == span.trace_id and stage.parent_span_id == span.span_id
        assert span.start_time_unix_nano <= stage.start_time_unix_nano <= stage.end_time_unix_nano
        assert stage.end_time_unix_nano <= span.end_time_unix_nano
    assert _counted(metrics, "sent") == len(kept.spans()) == 1 + len(stages)


def test_each_source_is_an_event_of_the_retrieve_stage(traced: tuple[Collector, str, Metrics], view: LiveView) -> None:
    kept, address, _ = traced
    with grpc.insecure_channel(address) as channel:
        stub = ranking_pb2_grpc.RankingServiceStub(channel)
        stub.Recommend(pb.RecommendRequest(count=5), metadata=(("traceparent", SAMPLED),))
    _request_span(kept)
    (retrieve,) = [span for span in kept.spans() if span.name == "retrieve"]
    events = {event.name for event in retrieve.events}
    assert events == {"source"}
    of_source = {str(said["source"]): said for said in map(_attributes, retrieve.events)}  # type: ignore[arg-type]
    assert set(of_source) >= set(view.bundle.sources)
    assert of_source["popular"]["candidates"] > 0 and of_source["popular"]["outcome"] == "found"  # type: ignore[operator]
    assert of_source["follow"] == {
        "source": "follow",
        "outcome": "empty",
        "candidates": 0,
        "ms": of_source["follow"]["ms"],
    }
    for event in retrieve.events:
        assert retrieve.start_time_unix_nano <= event.time_unix_nano <= retrieve.end_time_unix_nano


def test_a_span_says_why_it_degraded_and_never_for_whom(view: LiveView, quick: None) -> None:
    broken = replace(view, bundle=replace(view.bundle, sources={**view.bundle.sources, "als": Failing()}))
    metrics = Metrics()
    with collector() as (kept, endpoint):
        tracer = OtlpTracer(endpoint=endpoint, ratio=1, metrics=metrics)
        with (
            observed_service(broken, Users(), metrics=metrics, tracer=tracer) as address,
            RankingClient(address) as client,
        ):
            client.recommend(USER, 5, allow_item_ids=["art01", "marked-item-1"])
            with pytest.raises(RankingError):
                client.recommend(f"{USER} with a space", 5)
        tracer.close()
    spans = [span for span in kept.spans() if span.name.endswith("Recommend")]
    first, refused = (_attributes(span) for span in spans)
    assert first["millrace.degraded"] == [
        "hydrate: the store failed: KeyError: 'user:[redacted]'",
        "retrieve: the source als failed: RuntimeError",
    ]
    assert refused["rpc.grpc.status_code"] == 3 and spans[1].status.code == Status.STATUS_CODE_UNSET
    sent = b"".join(request.SerializeToString() for request in kept.requests)
    assert b"hydrate" in sent and USER.encode() not in sent and b"marked" not in sent


@pytest.mark.parametrize(
    ("ratio", "traceparent", "expected"),
    [(0, None, 0), (1, None, 1), (0, SAMPLED, 1), (1, NOT_SAMPLED, 0), (1, "00-nonsense-01", 1)],
)
def test_the_caller_decides_and_the_ratio_otherwise(
    ratio: float, traceparent: str | None, expected: int, view: LiveView, quick: None
) -> None:
    metrics = Metrics()
    with collector() as (kept, endpoint):
        tracer = OtlpTracer(endpoint=endpoint, ratio=ratio, metrics=metrics)
        with (
            observed_service(view, Users(), metrics=metrics, tracer=tracer) as address,
            grpc.insecure_channel(address) as channel,
        ):
            metadata = () if traceparent is None else (("traceparent", traceparent),)
            ranking_pb2_grpc.RankingServiceStub(channel).Recommend(pb.RecommendRequest(count=1), metadata=metadata)
        tracer.close()
    assert len([span for span in kept.spans() if span.name.endswith("Recommend")]) == expected


def test_a_failure_of_the_service_is_an_error_of_the_span(quick: None) -> None:
    metrics = Metrics()
    with collector() as (kept, endpoint):
        tracer = OtlpTracer(endpoint=endpoint, ratio=1, metrics=metrics)
        with (
            observed_service(None, Users(), metrics=metrics, tracer=tracer) as address,
            RankingClient(address) as client,
            pytest.raises(RankingError, match="UNAVAILABLE"),
        ):
            client.rank("u", ["a"], timeout_s=5)
        tracer.close()
    assert kept.spans()
    for span in kept.spans():
        assert span.status.code == Status.STATUS_CODE_ERROR and _attributes(span)["rpc.grpc.status_code"] == 14


def test_an_unreachable_collector_costs_counted_spans_and_nothing_else(view: LiveView, quick: None) -> None:
    metrics = Metrics()
    tracer = OtlpTracer(endpoint=f"127.0.0.1:{free_port()}", ratio=1, metrics=metrics)
    with observed_service(view, Users(), metrics=metrics, tracer=tracer) as address, RankingClient(address) as client:
        assert len(client.recommend("u", 3).items) == 3
        wait_for(lambda: _counted(metrics, "failed"), "spans given up")
        assert len(client.recommend("u", 3).items) == 3
    tracer.close()
    assert _counted(metrics, "failed") == 2 * 9 and _counted(metrics, "sent") == 0


def test_a_collector_that_hangs_fills_the_queue_and_the_rest_is_dropped(
    view: LiveView, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "SEND_TIMEOUT_S", 5.0)
    monkeypatch.setattr(tracing, "MAX_QUEUED_SPANS", 20)
    monkeypatch.setattr(tracing, "BATCH_SPANS", 10)
    metrics = Metrics()
    with collector() as (kept, endpoint):
        kept.answers.clear()
        tracer = OtlpTracer(endpoint=endpoint, ratio=1, metrics=metrics)
        with (
            observed_service(view, Users(), metrics=metrics, tracer=tracer) as address,
            RankingClient(address) as client,
        ):
            for _ in range(6):
                assert len(client.recommend("u", 3).items) == 3
            wait_for(lambda: _counted(metrics, "dropped") == 6 * 9 - 20, "the count of what was dropped")
            kept.answers.set()
        tracer.close()
    assert len(kept.spans()) == _counted(metrics, "sent") == 20 and not _counted(metrics, "failed")


def test_the_client_needs_no_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace_context.trace_metadata() == (), "without a current span"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "opentelemetry.trace.propagation.tracecontext", None)
        importlib.reload(trace_context)
        with TracerProvider().get_tracer("caller").start_as_current_span("page"):
            assert trace_context.trace_metadata() == ()
    importlib.reload(trace_context)
    with TracerProvider().get_tracer("caller").start_as_current_span("page"):
        assert dict(trace_context.trace_metadata())["traceparent"].startswith("00-")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--otlp-endpoint", "http://collector:4317"), "allowed: host:port, such as localhost:4317"),
        (("--otlp-endpoint", "collector"), "allowed: host:port, such as localhost:4317"),
        (("--trace-ratio", "1.5"), "allowed: a number from 0 to 1"),
        (("--trace-ratio", "nan"), "allowed: a number from 0 to 1"),
        (("--slow-request-ms", "0"), "allowed: a whole number from 1"),
    ],
)
def test_wrong_flags_are_refused(flags: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from serving.options import parse_arguments

    with pytest.raises(SystemExit):
        parse_arguments(["--port", "1", "--bundles", ".", "--feature-repo", ".", *flags])
    assert f"argument {flags[0]}: got '{flags[1]}'; {said}" in capsys.readouterr().err
