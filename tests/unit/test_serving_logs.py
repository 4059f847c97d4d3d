"""Log lines of requests: what they hold, what they never hold, and how many there are."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from features.user_state import UserState
from models.bundle import Bundle
from models.sources import Candidates
from serving import ranking_pb2 as pb
from serving import ranking_pb2_grpc
from serving.answer import Answer
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.logs import BURST_LINES, BURST_S, MAX_KINDS, Bursts, redacted
from serving.metrics import Metrics
from serving.observation import PERSONAL_FIELDS, PLAIN_FIELDS
from serving.users import UserReader, unknown_user
from serving.view import LiveView
from tests.observed_service import captured_log, observed_service
from tests.serving_bundle import START_MS, write_tiny_bundle

MARK = "marked"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
METADATA = (("x-api-key", f"{MARK}-key-91"), ("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01"))


class Telling:
    """A store, source, ranker and slate log that each put all they know of the user into their errors."""

    name = "als"

    def read(self, user_id: str, instant_ms: int, *_: float) -> UserState:
        return unknown_user(user_id, instant_ms)

    def read_user(self, user_id: str, *_: object) -> UserState:
        raise KeyError(f"feature:{user_id}:history", user_id.encode())

    def candidates(self, *_: object) -> Candidates:
        raise RuntimeError(f"no factors of {MARK}-user-7f and {MARK}-item-3")

    @property
    def layout(self) -> object:
        raise ValueError(f"nothing known of {MARK}-user-7f\nnor of {MARK}-item-3")

    def close(self) -> None:
        """Nothing is open."""

    def submit(self, answer: Answer) -> str | None:
        raise ValueError(f"cannot write {answer.query.user_id} with {sorted(answer.query.rules.allow_item_ids)}")


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> LiveView:
    live = Live(ItemSnapshot().finalise_all(START_MS + 60_000))
    live.switch(Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles"))))
    assert live.view is not None
    return live.view


@pytest.fixture
def reader() -> Iterator[UserReader]:
    reader = UserReader(lambda: Telling(), lambda: 0.0)  # type: ignore[arg-type, return-value]
    yield reader
    reader.close()


def _status(call: Callable[[], object]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def _lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def _recommend(address: str, *requests: pb.RecommendRequest) -> list[str]:
    with grpc.insecure_channel(address) as channel:
        stub = ranking_pb2_grpc.RankingServiceStub(channel)
        return [_status(lambda one=one: stub.Recommend(one, metadata=METADATA, timeout=10)) for one in requests]


def test_no_line_names_a_user_an_item_list_or_a_key(view: LiveView, reader: UserReader) -> None:
    broken = replace(view, bundle=replace(view.bundle, ranker=Telling(), sources={"als": Telling()}))  # type: ignore[arg-type, dict-item]
    items = pb.ItemFilter(allow_item_ids=[f"{MARK}-item-{k}" for k in range(5)])
    request = pb.RecommendRequest(user_id=f"{MARK}-user-7f", count=3, filter=items, explain=True)
    bad_user = pb.RecommendRequest(user_id=f"{MARK}\n user", count=3)
    bad_arm = pb.RecommendRequest(experiment_arm=f"{MARK}-in-the-wrong-field")
    with captured_log() as log:
        with observed_service(broken, reader, metrics=Metrics(), slow_ms=0) as address:
            assert _recommend(address, request, bad_user, bad_arm) == ["OK", "INVALID_ARGUMENT", "INVALID_ARGUMENT"]
        with observed_service(view, reader, metrics=Metrics(), slates=Telling()) as address:
            assert _recommend(address, request) == ["UNKNOWN"]
    text = log.getvalue()
    lines = _lines(text)
    said = " ".join(str(line["message"]) for line in lines)
    for expected in "the store failed: KeyError", "the source als failed", "the ranker failed", "request slow":
        assert expected in said
    assert "[redacted]" in text and "Traceback" in text
    assert MARK not in text
    assert [line["reason"] for line in lines if line.get("code") == "INVALID_ARGUMENT"] == ["user_id", "experiment_arm"]


def test_lines_within_a_request_carry_its_ids(view: LiveView) -> None:
    broken = replace(view, bundle=replace(view.bundle, sources={"als": Telling()}))  # type: ignore[dict-item]
    request = pb.RecommendRequest(user_id="u", count=3)
    with (
        captured_log() as log,
        observed_service(broken, Telling(), metrics=Metrics(), slow_ms=0) as address,
        grpc.insecure_channel(address) as channel,
    ):
        slate = ranking_pb2_grpc.RankingServiceStub(channel).Recommend(request, metadata=METADATA)
    inside = [line for line in _lines(log.getvalue()) if str(line["logger"]).startswith("serving.")]
    assert {line["logger"] for line in inside} == {"serving.retrieve", "serving.logs"}
    assert {line["request_id"] for line in inside} == {slate.request_id}
    assert {line["trace_id"] for line in inside} == {TRACE_ID}


@pytest.mark.parametrize(
    ("slow_ms", "expected"), [(0, ("warning", "request slow")), (60_000, ("debug", "request answered"))]
)
def test_a_slow_request_has_a_line_and_any_other_one_at_debug(
    slow_ms: float, expected: tuple[str, str], view: LiveView
) -> None:
    with captured_log() as log, observed_service(view, Telling(), metrics=Metrics(), slow_ms=slow_ms) as address:
        _recommend(address, pb.RecommendRequest(user_id="u", count=3))
    (line,) = [line for line in _lines(log.getvalue()) if line["logger"] == "serving.logs"]
    assert (line["level"], line["message"]) == expected
    assert line["code"] == "OK" and line["items"] == 3 and line["arm"] == "millrace" and line["degraded"] == []
    assert line["bundle_id"] == view.bundle.bundle_id and set(line["stage_ms"]) >= {"hydrate", "score"}  # type: ignore[call-overload]


def test_a_failed_request_has_a_line_with_its_code(view: LiveView) -> None:
    with captured_log() as log, observed_service(None, Telling(), metrics=Metrics()) as address:
        assert _recommend(address, pb.RecommendRequest(user_id="u")) == ["UNAVAILABLE"]
    (line,) = [line for line in _lines(log.getvalue()) if line["logger"] == "serving.logs"]
    assert line["level"] == "warning" and line["code"] == "UNAVAILABLE"
    assert line["reason"] == "no bundle has been promoted yet; train and promote one, then try again"


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("user user-00042 of x", ["user-00042"], "user [redacted] of x"),
        ("key:user-00042:7", ["user-00042"], "key:[redacted]:7"),
        ("KeyError: 'a\\nb'", ["a\nb"], "KeyError: '[redacted]'"),
        ("the user u is unusual", ["u"], "the user [redacted] is unusual"),
        ("user-0004 and user-00042", ["user-0004", "user-00042"], "[redacted] and [redacted]"),
        ("a.b+c", [".b+"], "a.b+c"),
        ("nothing", [], "nothing"),
        ("", ["x"], ""),
    ],
)
def test_redaction(text: str, values: list[str], expected: str) -> None:
    assert redacted(text, values) == expected


def test_bursts_are_held_back_and_counted() -> None:
    bursts, lines = Bursts(), BURST_LINES + 7

    def passed(created: float, message: str = "failed", level: int = logging.WARNING) -> logging.LogRecord | None:
        record = logging.LogRecord("one", level, __file__, 1, message, None, None)
        record.created = created
        return record if bursts.filter(record) else None

    assert sum(passed(100.0) is not None for _ in range(lines)) == BURST_LINES
    assert passed(100.0, "another") is not None, "one message must not silence another"
    assert all(passed(100.0, "debug", logging.DEBUG) for _ in range(lines))
    later = passed(100.0 + BURST_S)
    assert later is not None and later.suppressed == 7  # type: ignore[attr-defined]
    following = passed(100.0 + BURST_S)
    assert following is not None and not hasattr(following, "suppressed")
    assert all(passed(100.0, f"{k}") for k in range(2 * MAX_KINDS)), "what is remembered is bounded"


def test_every_text_field_of_a_request_is_either_personal_or_plain() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods:
        for name in _text_fields(method.input_type):
            assert (name in PERSONAL_FIELDS) != (name in PLAIN_FIELDS), (
                f"{method.input_type.name}.{name} is in neither or both of serving.observation's PERSONAL_FIELDS and "
                "PLAIN_FIELDS; name it in one."
            )


def _text_fields(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _text_fields(field.message_type)
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            yield field.name
