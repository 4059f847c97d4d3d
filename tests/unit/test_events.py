import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events import (
    FIELDS,
    FUTURE_SKEW_MS,
    HORIZON_MS,
    MAX_EVENT_BYTES,
    ContractError,
    Event,
    EventType,
    is_too_late,
    parse_event,
)

NOW_MS = 1_790_000_000_000


def record(**changes: object) -> dict[str, object]:
    """A valid watch as a JSON object; a change to None takes the field away."""
    fields: dict[str, object] = {
        "event_id": "e1",
        "event_type": "watch",
        "event_time_ms": NOW_MS,
        "user_id": "u1",
        "item_id": "i1",
        "category": "music",
        "creator_id": "c1",
        "watch_ms": 900,
        "duration_ms": 1000,
        "schema_version": 1,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}


def reason(value: bytes) -> str:
    with pytest.raises(ContractError) as refused:
        parse_event(value, NOW_MS)
    return refused.value.reason


ids = st.text(alphabet="abcXYZ019._:@/+=~-", min_size=1, max_size=64)


@given(
    st.builds(
        Event,
        event_id=ids,
        event_type=st.sampled_from([t for t in EventType if t not in (EventType.WATCH, EventType.IMPRESSION)]),
        event_time_ms=st.integers(1, NOW_MS + FUTURE_SKEW_MS),
        user_id=ids,
        item_id=ids,
        category=ids,
        creator_id=ids,
        request_id=st.none() | ids,
        position=st.none() | st.integers(0, 9_999),
        device=st.none() | ids.map(lambda text: text[:32]),
    )
)
def test_an_event_survives_the_wire(event: Event) -> None:
    assert parse_event(event.to_json(), NOW_MS) == event


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"event_id": None}, "missing:event_id"),
        ({"event_type": None}, "missing:event_type"),
        ({"event_type": "purchase"}, "invalid:event_type"),
        ({"user_id": ""}, "invalid:user_id"),
        ({"user_id": "u" * 129}, "invalid:user_id"),
        ({"user_id": "two words"}, "invalid:user_id"),
        ({"item_id": ["i1"]}, "missing:item_id"),
        ({"watch_ms": None}, "missing:watch_ms"),
        ({"watch_ms": -1}, "invalid:watch_ms"),
        ({"watch_ms": 1.5}, "invalid:watch_ms"),
        ({"watch_ms": True}, "invalid:watch_ms"),
        ({"duration_ms": 0}, "invalid:duration_ms"),
        ({"event_time_ms": "yesterday"}, "invalid:event_time_ms"),
        ({"event_time_ms": NOW_MS + FUTURE_SKEW_MS + 1}, "future_event_time"),
        ({"schema_version": 0}, "invalid:schema_version"),
        ({"schema_version": 100}, "invalid:schema_version"),
        ({"event_type": "impression", "watch_ms": None}, "missing:request_id"),
        ({"event_type": "like", "watch_ms": -1}, "invalid:watch_ms"),
    ],
)
def test_the_first_broken_rule_is_the_reason(changes: dict[str, object], expected: str) -> None:
    assert reason(json.dumps(record(**changes)).encode()) == expected


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"null", b"7"])
def test_what_is_no_json_object_is_unparsable(value: bytes) -> None:
    assert reason(value) == "unparsable"


def test_size_is_tried_first() -> None:
    assert reason(b"{" * (MAX_EVENT_BYTES + 1)) == "oversized"


def test_unknown_fields_and_digits_in_strings_are_accepted() -> None:
    event = parse_event(json.dumps(record(watch_ms="900", campaign="spring")).encode(), NOW_MS)
    assert event.watch_ms == 900


@pytest.mark.parametrize("version", [2, 99])
def test_a_newer_version_of_the_generation_flows_through(version: int) -> None:
    event = parse_event(json.dumps(record(schema_version=version, mood="calm", more={"a": [1]})).encode(), NOW_MS)
    assert event.schema_version == version


def test_each_field_of_the_event_has_a_rule() -> None:
    assert [field.name for field in FIELDS] == list(Event.__dataclass_fields__)


def test_lateness_is_a_function_of_the_record_alone() -> None:
    assert not is_too_late(NOW_MS - HORIZON_MS, NOW_MS)
    assert is_too_late(NOW_MS - HORIZON_MS - 1, NOW_MS)
