"""The event contract: what a user event is, what each type requires, and why a record is refused.

The rules are data, so that Python, Flink SQL and Spark SQL refuse the same records for the same reason.
Every engine reads a field as text (a JSON string's content, or an integer's literal) and matches that text: an integer
is `INTEGER_PATTERN`, an identifier is `ID_PATTERN`; a number with a fraction or an exponent is neither. The first
broken rule, in the order of
`RULES`, is the record's reason.
"""

import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum

from features.names import MS_PER_DAY, MS_PER_MINUTE

SCHEMA_VERSION = 1
"""What our own events say. Versions of one generation (1 to 99, then each hundred) only add optional fields, so a
reader takes every version of its generation and leaves out the fields that it does not know; a change that is not
compatible starts the next generation, whose events older readers refuse (`features.contract_versions`)."""
GENERATION_SIZE = 100
HORIZON_MS = 2 * MS_PER_DAY
"""An event is too late if and only if arrival_ms - event_time_ms exceeds this."""
FUTURE_SKEW_MS = 5 * MS_PER_MINUTE
"""How far a client's clock may run ahead of the broker's before the event is refused."""
MAX_EVENT_BYTES = 16 * 1024
MAX_EVENT_ID_BYTES = 64
MAX_ID_BYTES = 128
MAX_POSITION = 9_999
MAX_WATCH_MS = MS_PER_DAY
EVENT_TIME_BITS = 42
"""Event times are below 2**42 ms (the year 2109), so that a time and a small value fit in one 64-bit integer."""
COMPLETION_PERCENT = 90
"""A watch of at least this share of the item's duration is a completion."""

ID_PATTERN = r"[A-Za-z0-9._:@/+=~-]+"
INTEGER_PATTERN = r"(0|-?[1-9][0-9]{0,17})"


class EventType(StrEnum):
    """What a user did. An undoing is a type of its own, so every count only grows."""

    IMPRESSION = "impression"
    CLICK = "click"
    WATCH = "watch"
    LIKE = "like"
    UNLIKE = "unlike"
    SHARE = "share"
    FOLLOW = "follow"
    UNFOLLOW = "unfollow"
    HIDE = "hide"
    UNHIDE = "unhide"


EVENT_TYPES: tuple[EventType, ...] = tuple(EventType)
"""The order of event type codes."""
TYPE_CODE: dict[EventType, int] = {event_type: code for code, event_type in enumerate(EVENT_TYPES)}


class FieldKind(StrEnum):
    """How a field's text is read."""

    ID = "id"
    INTEGER = "integer"
    EVENT_TYPE = "event_type"


ALL_TYPES = frozenset(EventType)


@dataclass(frozen=True, kw_only=True)
class EventField:
    """One field of an event.

    `required_for` lists the types that must carry it; elsewhere it may be absent or null, but if present it
    must still be valid. `max_bytes` bounds identifiers (ASCII, so bytes are characters); `minimum` and
    `maximum` are inclusive bounds of integers.
    """

    name: str
    kind: FieldKind
    required_for: frozenset[EventType] = ALL_TYPES
    max_bytes: int = MAX_ID_BYTES
    minimum: int = 0
    maximum: int = 10**17


_IMPRESSION = frozenset({EventType.IMPRESSION})
_WATCH = frozenset({EventType.WATCH})
_NONE: frozenset[EventType] = frozenset()

FIELDS: tuple[EventField, ...] = (
    EventField(name="event_id", kind=FieldKind.ID, max_bytes=MAX_EVENT_ID_BYTES),
    EventField(name="event_type", kind=FieldKind.EVENT_TYPE),
    EventField(name="event_time_ms", kind=FieldKind.INTEGER, minimum=1, maximum=2**EVENT_TIME_BITS - 1),
    EventField(name="user_id", kind=FieldKind.ID),
    EventField(name="item_id", kind=FieldKind.ID),
    EventField(name="category", kind=FieldKind.ID),
    EventField(name="creator_id", kind=FieldKind.ID),
    EventField(name="request_id", kind=FieldKind.ID, required_for=_IMPRESSION),
    EventField(name="position", kind=FieldKind.INTEGER, required_for=_IMPRESSION, maximum=MAX_POSITION),
    EventField(name="watch_ms", kind=FieldKind.INTEGER, required_for=_WATCH, maximum=MAX_WATCH_MS),
    EventField(name="duration_ms", kind=FieldKind.INTEGER, required_for=_WATCH, minimum=1, maximum=MAX_WATCH_MS),
    EventField(name="device", kind=FieldKind.ID, required_for=_NONE, max_bytes=32),
    EventField(
        name="schema_version",
        kind=FieldKind.INTEGER,
        minimum=max(1, SCHEMA_VERSION - SCHEMA_VERSION % GENERATION_SIZE),
        maximum=SCHEMA_VERSION - SCHEMA_VERSION % GENERATION_SIZE + GENERATION_SIZE - 1,
    ),
)

INTERACTION_FIELDS = (
    "event_id",
    "event_type",
    "event_time_ms",
    "user_id",
    "item_id",
    "category",
    "creator_id",
    "watch_ms",
    "duration_ms",
)
"""What the interactions topic carries of an event, in the order of `FIELDS`: `features.user_state.Interaction`."""


class Reason(StrEnum):
    """Why a record is a dead letter, in the order in which the rules are tried.

    `MISSING` and `INVALID` are followed by `:` and the field's name (`missing:user_id`).
    """

    OVERSIZED = "oversized"
    UNPARSABLE = "unparsable"
    MISSING = "missing"
    INVALID = "invalid"
    FUTURE = "future_event_time"


@dataclass(frozen=True, kw_only=True)
class Event:
    """A valid event. Times are milliseconds UTC; ids are opaque ASCII strings."""

    event_id: str
    event_type: EventType
    event_time_ms: int
    user_id: str
    item_id: str
    category: str
    creator_id: str
    request_id: str | None = None
    position: int | None = None
    watch_ms: int | None = None
    duration_ms: int | None = None
    device: str | None = None
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        """The event as it stands on the wire: JSON without absent fields."""
        present = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(present, separators=(",", ":")).encode()


class ContractError(ValueError):
    """A record that breaks the event contract; `reason` is what the dead-letter topic says of it."""

    def __init__(self, reason: str, got: str, allowed: str) -> None:
        super().__init__(f"{reason}: got {got}; allowed: {allowed}. Correct the record and send it again.")
        self.reason = reason


def parse_event(value: bytes, arrival_ms: int) -> Event:
    """Reads one record's value under the contract.

    Raises `ContractError` with the first broken rule. Says nothing about lateness: see `is_too_late`.
    """
    if len(value) > MAX_EVENT_BYTES:
        raise ContractError(Reason.OVERSIZED, f"{len(value)} bytes", f"at most {MAX_EVENT_BYTES}")
    texts = _texts(value)
    event_type = _event_type(texts)
    fields = {field.name: _field_value(field, texts.get(field.name), event_type) for field in FIELDS}
    event = Event(**fields)  # type: ignore[arg-type]  # each field's type is what its kind parses to
    if event.event_time_ms - arrival_ms > FUTURE_SKEW_MS:
        ahead = event.event_time_ms - arrival_ms
        raise ContractError(Reason.FUTURE, f"{ahead} ms after arrival", f"at most {FUTURE_SKEW_MS} ms")
    return event


def is_too_late(event_time_ms: int, arrival_ms: int) -> bool:
    """Whether the event goes to the too-late topic: a function of the record alone."""
    return arrival_ms - event_time_ms > HORIZON_MS


def _texts(value: bytes) -> dict[str, str]:
    try:
        record = json.loads(
            value.decode(), parse_constant=_refuse_constant, parse_int=_integer_text, parse_float=_no_integer_text
        )
    except (ValueError, RecursionError) as error:
        raise ContractError(Reason.UNPARSABLE, repr(value[:80]), "a JSON object") from error
    if not isinstance(record, dict):
        raise ContractError(Reason.UNPARSABLE, type(record).__name__, "a JSON object")
    return {name: text for name, text in ((name, _text(got)) for name, got in record.items()) if text is not None}


def _refuse_constant(name: str) -> None:
    """JSON (RFC 8259) has no NaN and no infinities; Python's reader would let them pass."""
    raise ValueError(f"got {name}")


def _integer_text(literal: str) -> str:
    return "0" if literal == "-0" else literal


def _no_integer_text(literal: str) -> str:
    """A text that no pattern matches."""
    return f"the number {literal}"


def _text(got: object) -> str | None:
    if got is None or isinstance(got, (dict, list)):
        return None
    if isinstance(got, str):
        return got
    return json.dumps(got)


def _event_type(texts: dict[str, str]) -> EventType:
    allowed = ", ".join(EventType)
    got = texts.get("event_type")
    if got is None:
        raise ContractError(f"{Reason.MISSING}:event_type", "no event_type", allowed)
    if got not in ALL_TYPES:
        raise ContractError(f"{Reason.INVALID}:event_type", repr(got), allowed)
    return EventType(got)


def _field_value(field: EventField, text: str | None, event_type: EventType) -> str | int | EventType | None:
    if text is None:
        if event_type in field.required_for:
            raise ContractError(f"{Reason.MISSING}:{field.name}", "nothing", f"a value, for {event_type} events")
        return None
    if field.kind is FieldKind.EVENT_TYPE:
        return event_type
    reason = f"{Reason.INVALID}:{field.name}"
    if field.kind is FieldKind.ID:
        if len(text) > field.max_bytes or not re.fullmatch(ID_PATTERN, text):
            raise ContractError(reason, repr(text), f"1 to {field.max_bytes} characters of {ID_PATTERN}")
        return text
    if not re.fullmatch(INTEGER_PATTERN, text) or not field.minimum <= int(text) <= field.maximum:
        raise ContractError(reason, repr(text), f"an integer in [{field.minimum}, {field.maximum}]")
    return int(text)
