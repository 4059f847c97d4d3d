"""What one user's interactions leave behind: history, seen, hidden and followed, as rules that every store follows.

Each set is a map from a key to the greatest value seen, cut to the `MAX` greatest, so the order in which
interactions come, and how often, does not matter:

| set | key | value, compared in this order | kept |
|---|---|---|---|
| history | (event_time_ms, event_id) | the interaction itself | `HISTORY_MAX` |
| seen | item_id | event_time_ms, then item_id | `SEEN_MAX` |
| hidden, followed | item_id, creator_id | (event_time_ms, event_id) of the last decision | `DECISIONS_MAX` each |

A cut never has to be undone: the least kept value only grows, and a key cut once stays below it until a greater
value of its own arrives.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, NamedTuple, overload

import numpy as np
import orjson

from features.events import ID_PATTERN, TYPE_CODE, EventType
from features.id_hashes import EventColumns, TimesById, event_columns, hashes_of
from features.user_state import SEEN_MAX, Interaction

DECISIONS_MAX = 1_000
"""Most recent decisions kept of each kind, undoings included: an undoing must outlive the late arrival of its act."""


class DecisionKind(StrEnum):
    """A decision that stands until it is undone."""

    HIDDEN = "hidden"
    FOLLOWED = "followed"


_DECISIONS: dict[EventType, tuple[DecisionKind, bool]] = {
    EventType.HIDE: (DecisionKind.HIDDEN, True),
    EventType.UNHIDE: (DecisionKind.HIDDEN, False),
    EventType.FOLLOW: (DecisionKind.FOLLOWED, True),
    EventType.UNFOLLOW: (DecisionKind.FOLLOWED, False),
}


class Decision(NamedTuple):
    """The latest decision on one item or creator. Of two, the one with the greater (event_time_ms, event_id) holds."""

    kind: DecisionKind
    target: str
    event_time_ms: int
    event_id: str
    stands: bool


class InteractionError(ValueError):
    """A record of the interactions topic that is not one."""


_TEXTS = ("event_id", "user_id", "item_id", "category", "creator_id")
_NUMBERS = ("event_time_ms", "watch_ms", "duration_ms")
_TYPES: Mapping[str, EventType] = {event_type.value: event_type for event_type in EventType}


def parse_interaction(value: bytes) -> Interaction:
    """Reads one record's value. Raises `InteractionError` when a field is absent or of another type.

    A record in the stream job's own spelling is matched whole, which checks it too; any other is read as JSON.
    """
    match = _WIRE(value.decode("latin-1"))  # cannot fail; what matches is ASCII
    if match is None:
        return _parsed_as_json(value)
    event_id, event_type, time_ms, user_id, item_id, category, creator_id, watch_ms, duration_ms = match.groups()[:9]
    watch = None if watch_ms is None else int(watch_ms)
    duration = None if duration_ms is None else int(duration_ms)
    return _made(user_id, event_id, event_type, int(time_ms), item_id, category, creator_id, watch, duration)


_INTEGER = r"(0|[1-9][0-9]{0,17})"
_WIRE = re.compile(
    rf'\{{"event_id":"({ID_PATTERN})","event_type":"({"|".join(_TYPES)})","event_time_ms":{_INTEGER},'
    rf'"user_id":"({ID_PATTERN})","item_id":"({ID_PATTERN})","category":"({ID_PATTERN})",'
    rf'"creator_id":"({ID_PATTERN})"(?:,"watch_ms":{_INTEGER})?(?:,"duration_ms":{_INTEGER})?'
    rf'(?:,"partition":{_INTEGER},"offset":{_INTEGER})?\}}'
).fullmatch


def _parsed_as_json(value: bytes) -> Interaction:
    try:
        record = orjson.loads(value)
    except ValueError as error:
        raise InteractionError(f"interaction: got {value[:80]!r}; allowed: a JSON object.") from error
    if not isinstance(record, dict) or record.get("event_type") not in _TYPES:
        raise InteractionError(f"interaction: got {value[:200]!r}; allowed: an object with a known event_type.")
    texts = [record.get(name) for name in _TEXTS]
    numbers = [record.get(name) for name in _NUMBERS]
    if not all(type(text) is str for text in texts) or numbers[0] is None:
        raise InteractionError(f"interaction: got {value[:200]!r}; needed: {', '.join(_TEXTS)}, event_time_ms.")
    if not all(number is None or type(number) is int for number in numbers):
        raise InteractionError(f"interaction: got {numbers!r}; allowed: integers for {', '.join(_NUMBERS)}.")
    fields: dict[str, Any] = dict(zip((*_TEXTS, *_NUMBERS), (*texts, *numbers), strict=True))
    return Interaction(event_type=_TYPES[record["event_type"]], **fields)


def in_history(interaction: Interaction) -> bool:
    """Whether the interaction enters the history: everything that is not an impression."""
    return interaction.event_type is not EventType.IMPRESSION


def decision_of(interaction: Interaction) -> Decision | None:
    """The decision that the interaction makes, if it is one."""
    found = _DECISIONS.get(interaction.event_type)
    if found is None:
        return None
    kind, stands = found
    target = interaction.item_id if kind is DecisionKind.HIDDEN else interaction.creator_id
    return Decision(kind, target, interaction.event_time_ms, interaction.event_id, stands)


def latest_seen(interactions: Iterable[Interaction]) -> dict[tuple[str, str], int]:
    """The latest event time of each (user_id, item_id) in a batch, so that a store writes each once."""
    latest: dict[tuple[str, str], int] = {}
    for interaction in interactions:
        key = (interaction.user_id, interaction.item_id)
        if interaction.event_time_ms > latest.get(key, -1):
            latest[key] = interaction.event_time_ms
    return latest


def latest(seen: Mapping[str, int]) -> int:
    """The latest of the event times; 0 for none."""
    if isinstance(seen, TimesById):
        return int(seen.time_ms_N.max(initial=0))
    return max(seen.values(), default=0)


def newest_seen(seen: Mapping[str, int]) -> Mapping[str, int]:
    """At most `SEEN_MAX` items, by (event time, item_id)."""
    if len(seen) <= SEEN_MAX:
        return seen
    newest = sorted(seen.items(), key=lambda pair: (pair[1], pair[0]), reverse=True)
    return dict(newest[:SEEN_MAX])


def standing(decisions: Iterable[Decision], kind: DecisionKind) -> frozenset[str]:
    """The targets of the decisions of one kind that have not been undone, among the newest `DECISIONS_MAX`."""
    of_kind = [decision for decision in decisions if decision.kind is kind]
    if len(of_kind) > DECISIONS_MAX:
        of_kind = sorted(of_kind, key=lambda decision: decision[2:4], reverse=True)[:DECISIONS_MAX]
    return frozenset(decision.target for decision in of_kind if decision.stands)


def encode_interaction(interaction: Interaction) -> str:
    """The interaction without its user, as a JSON list: a store's history entry."""
    watch_ms, duration_ms = interaction.watch_ms, interaction.duration_ms
    return (
        f"[{_quoted(interaction.event_id)},{_quoted(interaction.event_type)},{interaction.event_time_ms},"
        f"{_quoted(interaction.item_id)},{_quoted(interaction.category)},{_quoted(interaction.creator_id)},"
        f"{'null' if watch_ms is None else watch_ms},{'null' if duration_ms is None else duration_ms}]"
    )


class StoredHistory(Sequence[Interaction]):
    """A history as a store has it: entries of `encode_interaction` joined by commas, newest first, at most
    `HISTORY_MAX`. What weighs the events is there at once, the interactions themselves are made when asked for.
    """

    def __init__(self, user_id: str, joined: str) -> None:
        """Raises `ValueError` or `KeyError` for entries that are none."""
        self._user_id = user_id
        self._joined = joined
        read = event_columns(joined)
        self.columns = columns_of(self[:]) if read is None else read

    @cached_property
    def _entries(self) -> list[Any]:
        entries: list[Any] = orjson.loads(f"[{self._joined}]")
        return entries

    @overload
    def __getitem__(self, at: int) -> Interaction: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Interaction, ...]: ...
    def __getitem__(self, at: int | slice) -> Interaction | tuple[Interaction, ...]:
        if isinstance(at, slice):
            return tuple([_made(self._user_id, *entry) for entry in self._entries[at]])
        return _made(self._user_id, *self._entries[at])

    def __len__(self) -> int:
        return len(self.columns.time_ms_N)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self[:] == tuple(other)


def columns_of(history: Sequence[Interaction]) -> EventColumns:
    """What weighs the events of a history."""
    if isinstance(history, StoredHistory):
        return history.columns
    return EventColumns(
        item_hash_N=hashes_of([each.item_id for each in history]),
        type_code_N=np.array([TYPE_CODE[each.event_type] for each in history], np.int8),
        time_ms_N=np.array([each.event_time_ms for each in history], np.int64),
    )


def _made(
    user_id: str,
    event_id: str,
    event_type: str,
    event_time_ms: int,
    item_id: str,
    category: str,
    creator_id: str,
    watch_ms: int | None,
    duration_ms: int | None,
) -> Interaction:
    # A frozen dataclass's constructor costs four times as much as filling the instance.
    interaction = Interaction.__new__(Interaction)
    fields = interaction.__dict__
    fields["event_id"] = event_id
    fields["event_type"] = _TYPES[event_type]
    fields["event_time_ms"] = event_time_ms
    fields["user_id"] = user_id
    fields["item_id"] = item_id
    fields["category"] = category
    fields["creator_id"] = creator_id
    fields["watch_ms"] = watch_ms
    fields["duration_ms"] = duration_ms
    return interaction
