"""History, seen, hidden and followed by their definition: a user's events sorted, and plain loops."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Protocol

from features.backends import Backend
from features.events import EventType
from features.user_state import Interaction

HISTORY = 100


class Happened(Protocol):
    """What the sets need of an event; `features.events.Event` and `features.user_state.Interaction` have it."""

    event_id: str
    event_type: EventType
    event_time_ms: int
    user_id: str
    item_id: str
    creator_id: str


def assert_sets_are_those_of(store: Backend, user_ids: Iterable[str], events: Sequence[Happened], at_ms: int) -> None:
    """Compares the sets of these users; at most 1,000 items and decisions each, so that nothing is cut."""
    for user_id in user_ids:
        own = [event for event in events if event.user_id == user_id]
        newest = sorted(own, key=lambda event: (event.event_time_ms, event.event_id), reverse=True)
        state = store.read_user(user_id, at_ms)
        kept = [_fields(event) for event in newest if event.event_type is not EventType.IMPRESSION]
        assert [_fields(row) for row in state.history] == kept[:HISTORY]
        assert set(state.seen) == {event.item_id for event in own}
        assert state.hidden == _standing(newest, EventType.HIDE, EventType.UNHIDE, "item_id")
        assert state.followed == _standing(newest, EventType.FOLLOW, EventType.UNFOLLOW, "creator_id")


def _fields(event: Happened) -> list[object]:
    return [getattr(event, field.name) for field in fields(Interaction)]


def _standing(newest: Sequence[Happened], act: EventType, undoing: EventType, field: str) -> set[str]:
    """Targets whose newest decision is the act."""
    decided: dict[str, EventType] = {}
    for event in newest:
        if event.event_type in (act, undoing):
            decided.setdefault(getattr(event, field), event.event_type)
    return {target for target, last in decided.items() if last is act}
