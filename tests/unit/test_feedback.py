"""Feedback where no broker answers: what breaks the contract is told apart from what may be sent again."""

import asyncio
from collections.abc import Iterator
from time import perf_counter

import grpc
import pytest

from features.events import EventType, parse_event
from serving import ranking_pb2 as pb
from serving.call_error import CallError
from serving.feedback import Feedback, event_json
from serving.metrics import Metrics
from serving.query import RequestError, check_feedback

NOW_MS = 1_760_000_000_000
NO_BROKER = "127.0.0.1:1"


def _event(event_type: EventType = EventType.CLICK, **changed: object) -> pb.UserEvent:
    fields = {
        "event_id": "e1",
        "event_type": event_type,
        "event_time_ms": NOW_MS - 1,
        "user_id": "u",
        "item_id": "i",
        "category": "cats",
        "creator_id": "c",
        **changed,
    }
    return pb.UserEvent(**{name: value for name, value in fields.items() if value is not None})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def feedback(metrics: Metrics) -> Iterator[Feedback]:
    made = Feedback(NO_BROKER, "events", metrics, lambda: NOW_MS)
    yield made
    made.close()


def _take(feedback: Feedback, *events: pb.UserEvent, timeout_s: float = 0.2) -> pb.FeedbackResponse:
    return asyncio.run(feedback.take(pb.FeedbackRequest(events=events), timeout_s))


def test_a_whole_event_reads_as_the_contract_does() -> None:
    impression = _event(EventType.IMPRESSION, request_id="r", position=0, device="tv")
    read = parse_event(event_json(impression), NOW_MS)
    assert (read.event_type, read.request_id, read.position, read.device) == (EventType.IMPRESSION, "r", 0, "tv")
    watch = parse_event(event_json(_event(EventType.WATCH, watch_ms=0, duration_ms=5)), NOW_MS)
    assert (watch.watch_ms, watch.duration_ms, watch.request_id, watch.position) == (0, 5, None, None)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"event_id": ""}, "missing:event_id"),
        ({"event_type": "stare"}, "invalid:event_type"),
        ({"event_time_ms": None}, "invalid:event_time_ms"),
        ({"event_time_ms": NOW_MS + 10**6}, "future_event_time"),
        ({"event_type": "impression", "request_id": "r"}, "missing:position"),
        ({"event_type": "watch", "watch_ms": 1}, "missing:duration_ms"),
        ({"user_id": "a b"}, "invalid:user_id"),
        ({"device": "x" * 33}, "invalid:device"),
    ],
)
def test_what_breaks_the_contract_is_refused_for_good(
    feedback: Feedback, metrics: Metrics, changed: dict[str, object], reason: str
) -> None:
    answer = _take(feedback, _event(**changed))  # type: ignore[arg-type]
    assert answer.accepted == 0 and [(r.index, r.retry) for r in answer.refused] == [(0, False)]
    assert answer.refused[0].reason.startswith(f"{reason}: got ") and "; allowed: " in answer.refused[0].reason
    assert metrics.feedback_events.labels("refused")._value.get() == 1


def test_without_a_broker_the_call_ends_in_time_and_says_that_nothing_was_taken(
    feedback: Feedback, metrics: Metrics
) -> None:
    started_s = perf_counter()
    with pytest.raises(CallError, match="Kafka took none of the events: Kafka did not acknowledge it in time") as error:
        _take(feedback, _event(event_id=""), _event(), timeout_s=0.3)
    assert error.value.code is grpc.StatusCode.UNAVAILABLE
    assert perf_counter() - started_s < 5
    assert metrics.feedback_events.labels("unacknowledged")._value.get() == 1


def test_the_event_loop_goes_on_while_a_call_waits_for_kafka(feedback: Feedback) -> None:
    async def run() -> int:
        waiting = asyncio.ensure_future(feedback.take(pb.FeedbackRequest(events=[_event()]), 0.3))
        turns = 0
        while not waiting.done():
            turns += 1
            await asyncio.sleep(0)
        with pytest.raises(CallError):
            await waiting
        return turns

    assert asyncio.run(run()) > 100


def test_five_hundred_at_most_and_none_at_all(feedback: Feedback) -> None:
    assert _take(feedback) == pb.FeedbackResponse()
    check_feedback(pb.FeedbackRequest(events=[_event()] * 500))
    with pytest.raises(RequestError, match="events: got '501 events'; allowed: at most 500"):
        check_feedback(pb.FeedbackRequest(events=[_event()] * 501))


def test_nothing_is_taken_of_an_erased_user(metrics: Metrics) -> None:
    made = Feedback(NO_BROKER, "events", metrics, lambda: NOW_MS, erased=lambda user_id: user_id == "gone")
    try:
        answer = _take(made, _event(EventType.LIKE, user_id="gone"))
    finally:
        made.close()
    assert answer.accepted == 0 and "was erased" in answer.refused[0].reason and not answer.refused[0].retry
