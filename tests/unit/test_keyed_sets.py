"""The rules of history, seen, hidden and followed, apart from any store; and the wire form of an interaction."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.events import FIELDS, EventType
from features.id_hashes import hashes_of
from features.keyed_sets import (
    DECISIONS_MAX,
    Decision,
    DecisionKind,
    InteractionError,
    StoredHistory,
    columns_of,
    decision_of,
    encode_interaction,
    in_history,
    latest_seen,
    newest_seen,
    parse_interaction,
    standing,
)
from features.user_state import SEEN_MAX, Interaction

IDS = st.text("abAB.:~+/=@-", min_size=1, max_size=8)
INTERACTIONS = st.builds(
    Interaction,
    event_id=IDS,
    event_type=st.sampled_from(EventType),
    event_time_ms=st.integers(1, 2**53),
    user_id=IDS,
    item_id=IDS,
    category=IDS,
    creator_id=IDS,
    watch_ms=st.none() | st.integers(0, 2**31),
    duration_ms=st.none() | st.integers(1, 2**31),
)


def interaction(event_type: EventType = EventType.CLICK, **fields: Any) -> Interaction:
    values = {"event_id": "e", "event_time_ms": 5, "user_id": "u", "item_id": "i", "category": "c", "creator_id": "k"}
    return Interaction(event_type=event_type, **{**values, **fields})


@given(INTERACTIONS)
def test_wire_form_is_read_back(row: Interaction) -> None:
    assert parse_interaction(json.dumps(asdict(row)).encode()) == row


def wire(row: Interaction) -> bytes:
    """The row as the stream job spells it: without spaces and absent fields."""
    names = [field.name for field in FIELDS if getattr(row, field.name, None) is not None]
    return json.dumps({name: getattr(row, name) for name in names}, separators=(",", ":")).encode()


@given(INTERACTIONS)
def test_the_stream_jobs_spelling_is_read_back(row: Interaction) -> None:
    assert parse_interaction(wire(row)) == row


def test_the_stream_jobs_spelling_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.keyed_sets._parsed_as_json", lambda _: pytest.fail("read as JSON"))
    watch = interaction(EventType.WATCH, watch_ms=0, duration_ms=10)
    assert parse_interaction(wire(watch)) == watch
    assert parse_interaction(wire(interaction())) == interaction()


def test_ids_beyond_the_contract_are_read_and_kept() -> None:
    row = interaction(event_id='q"\\', item_id="\u00e9\n", category="")
    assert parse_interaction(wire(row)) == row
    assert StoredHistory("u", encode_interaction(row)) == (row,)


@given(st.lists(INTERACTIONS, max_size=5))
def test_history_entries_are_read_back_but_for_the_user(rows: list[Interaction]) -> None:
    entries = ",".join(encode_interaction(row) for row in rows)
    own = tuple(Interaction(**{**asdict(row), "user_id": "ada"}) for row in rows)
    assert StoredHistory("ada", entries) == own
    assert all(hash(got) == hash(expected) for got, expected in zip(StoredHistory("ada", entries), own, strict=True))


@given(st.lists(INTERACTIONS, max_size=5))
def test_what_weighs_events_is_the_same_of_entries_and_of_interactions(rows: list[Interaction]) -> None:
    stored = StoredHistory("ada", ",".join(encode_interaction(row) for row in rows))
    assert len(stored) == len(rows)
    for got_N, expected_N in zip(stored.columns, columns_of(rows), strict=True):
        assert got_N.dtype == expected_N.dtype
        np.testing.assert_array_equal(got_N, expected_N)


def test_entries_with_an_escaped_id_have_the_columns_of_their_interactions() -> None:
    row = interaction(item_id='q"')
    stored = StoredHistory("u", ",".join([encode_interaction(row), encode_interaction(interaction())]))
    np.testing.assert_array_equal(stored.columns.item_hash_N, hashes_of(['q"', "i"]))


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ('["e","dance",5,"i","c","k",null,null]', KeyError),
        ('["e","click","i","c","k",null,null]', TypeError),
        ('["e","click",5,"i","c"]', TypeError),
        ('["e","click",5,"i","c","k",null,null', ValueError),
        ('["e","click",5,"i","c","k",null,null],["e"]', TypeError),
        ("[]", TypeError),
    ],
)
def test_entries_that_are_none_are_refused(entries: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        StoredHistory("u", entries)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"user_id": None}, "needed: event_id, user_id"),
        ({"item_id": 5}, "needed: event_id, user_id"),
        ({"event_time_ms": None}, "needed: event_id, user_id"),
        ({"event_time_ms": "5"}, "allowed: integers"),
        ({"watch_ms": 1.5}, "allowed: integers"),
        ({"watch_ms": True}, "allowed: integers"),
        ({"event_type": "stare"}, "known event_type"),
    ],
)
def test_record_that_is_no_interaction_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InteractionError, match=words):
        parse_interaction(json.dumps({**asdict(interaction()), **change}).encode())


@pytest.mark.parametrize(
    "value",
    [wire(interaction()) * 2, wire(interaction()).replace(b":5,", b":05,"), b"[]", wire(interaction()) + b"\xff"],
)
def test_record_that_is_no_json_object_is_refused(value: bytes) -> None:
    with pytest.raises(InteractionError, match="allowed: a"):
        parse_interaction(value)


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"7", b"\xff"])
def test_value_that_is_no_object_is_refused(value: bytes) -> None:
    with pytest.raises(InteractionError, match="allowed:"):
        parse_interaction(value)


def test_unknown_fields_flow_through() -> None:
    assert parse_interaction(json.dumps({**asdict(interaction()), "mood": 1}).encode()) == interaction()


def test_impressions_alone_stay_out_of_the_history() -> None:
    assert {kind for kind in EventType if not in_history(interaction(kind))} == {EventType.IMPRESSION}


@pytest.mark.parametrize(
    ("event_type", "kind", "target", "stands"),
    [
        (EventType.HIDE, DecisionKind.HIDDEN, "i", True),
        (EventType.UNHIDE, DecisionKind.HIDDEN, "i", False),
        (EventType.FOLLOW, DecisionKind.FOLLOWED, "k", True),
        (EventType.UNFOLLOW, DecisionKind.FOLLOWED, "k", False),
    ],
)
def test_decisions(event_type: EventType, kind: DecisionKind, target: str, stands: bool) -> None:
    assert decision_of(interaction(event_type)) == Decision(kind, target, 5, "e", stands)


def test_likes_decide_nothing() -> None:
    assert decision_of(interaction(EventType.LIKE)) is None


@given(st.permutations([("u", "i", 3), ("u", "i", 9), ("u", "j", 1), ("v", "i", 2), ("u", "i", 9)]))
def test_latest_seen_is_the_same_in_any_order(rows: list[tuple[str, str, int]]) -> None:
    batch = [interaction(user_id=user_id, item_id=item_id, event_time_ms=time) for user_id, item_id, time in rows]
    assert latest_seen(batch) == {("u", "i"): 9, ("u", "j"): 1, ("v", "i"): 2}


def test_newest_seen_is_cut_by_time_then_item() -> None:
    seen = {f"i{n:05}": 7 for n in range(SEEN_MAX + 2)} | {"old": 6, "new": 8}
    kept = newest_seen(seen)
    assert len(kept) == SEEN_MAX
    assert set(seen) - set(kept) == {"old", "i00000", "i00001", "i00002"}
    assert newest_seen({"a": 1}) == {"a": 1}


def test_standing_is_bounded_by_the_newest_decisions() -> None:
    made = [Decision(DecisionKind.HIDDEN, f"i{n}", n, "e", n % 2 == 0) for n in range(DECISIONS_MAX + 10)]
    made.append(Decision(DecisionKind.FOLLOWED, "k", 1, "e", True))
    hidden = standing(made, DecisionKind.HIDDEN)
    assert hidden == {f"i{n}" for n in range(10, DECISIONS_MAX + 10, 2)}
    assert standing(made, DecisionKind.FOLLOWED) == {"k"}
