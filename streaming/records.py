"""What is sent to the events topic: a record, when it arrives, and the ledger of everything that was sent."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from features.events import Event

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


class RecordKind(StrEnum):
    """What a record is meant to be, as its sender knows it and its readers must find out."""

    EVENT = "event"
    """A valid event, soon after it happened."""
    LATE = "late"
    """A valid event, late by a minute or more, within the horizon."""
    TOO_LATE = "too_late"
    """A valid event that arrives after the horizon."""
    DUPLICATE = "duplicate"
    """A known (user_id, event_id) sent again, with the same payload."""
    CHANGED_DUPLICATE = "changed_duplicate"
    """A known (user_id, event_id) sent again, with another payload: the first still counts."""
    MALFORMED = "malformed"
    """Not a JSON object."""
    UNKNOWN_TYPE = "unknown_type"
    """A JSON object with an event type that the contract does not know."""
    BROKEN = "broken"
    """A JSON object that breaks another rule of the contract."""


COUNTED_KINDS = frozenset({RecordKind.EVENT, RecordKind.LATE})
"""Events that must be counted once, wherever they end up."""
DUPLICATE_KINDS = frozenset({RecordKind.DUPLICATE, RecordKind.CHANGED_DUPLICATE})
REFUSED_KINDS = frozenset({RecordKind.MALFORMED, RecordKind.UNKNOWN_TYPE, RecordKind.BROKEN})
"""Records that must end in the dead-letter topic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One Kafka record. `arrival_ms` becomes its timestamp, `key` is the user id in ASCII."""

    value: bytes
    key: bytes
    arrival_ms: int
    kind: RecordKind = RecordKind.EVENT
    event_id: str | None = None
    """The event's id; None where the record is refused."""


@dataclass(kw_only=True)
class Ledger:
    """What was sent, to be compared with what arrived: by id where a record has one, else by number."""

    counted_ids: set[str] = field(default_factory=set)
    """Ids of the events that the lake must hold, once each."""
    too_late_ids: set[str] = field(default_factory=set)
    """Ids of the events that the too-late topic must hold."""
    sent: Counter[RecordKind] = field(default_factory=Counter)
    """Number of records by kind."""

    def note(self, records: Iterable[Record]) -> None:
        """Writes down records that have been, or are about to be, sent."""
        for record in records:
            self.sent[record.kind] += 1
            if record.event_id is None:
                continue
            if record.kind in COUNTED_KINDS:
                self.counted_ids.add(record.event_id)
            elif record.kind is RecordKind.TOO_LATE:
                self.too_late_ids.add(record.event_id)

    def follow(self, records: Iterable[Record]) -> Iterator[Record]:
        """Passes the records on, writing each down on its way."""
        for record in records:
            self.note((record,))
            yield record

    @property
    def records_sent(self) -> int:
        """Every record, whatever it is."""
        return self.sent.total()

    @property
    def events_produced(self) -> int:
        """Distinct valid events, the too late included."""
        return len(self.counted_ids) + len(self.too_late_ids)

    @property
    def duplicates_sent(self) -> int:
        """Second copies, changed or not."""
        return sum(self.sent[kind] for kind in DUPLICATE_KINDS)

    @property
    def malformed_sent(self) -> int:
        """Every record that the contract refuses: malformed, of unknown type or broken."""
        return sum(self.sent[kind] for kind in REFUSED_KINDS)

    @property
    def late_sent(self) -> int:
        """Events late by a minute or more, the too late included."""
        return self.sent[RecordKind.LATE] + self.sent[RecordKind.TOO_LATE]


def record_of(event: Event, arrival_ms: int) -> Record:
    """The record of one valid event. Writes what `Event.to_json` does, in a third of the time."""
    return Record(
        value=to_json(vars(event)), key=event.user_id.encode(), arrival_ms=arrival_ms, event_id=event.event_id
    )


def to_json(fields: dict[str, Any]) -> bytes:
    """The given event fields as they stand on the wire: JSON without absent ones."""
    return _ENCODE({name: value for name, value in fields.items() if value is not None}).encode()


def uuid7(time_ms: int, random_74: int) -> str:
    """The UUID of version 7 (RFC 9562) of an instant: 48 bits of milliseconds, then 74 random bits.

    Deterministic in both arguments; ids of later milliseconds sort after earlier ones. Higher bits are ignored.
    """
    high = (random_74 >> 62) & 0xFFF
    low = random_74 & ((1 << 62) - 1) | (0b10 << 62)
    digits = f"{time_ms & 0xFFFFFFFFFFFF:012x}7{high:03x}{low:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
