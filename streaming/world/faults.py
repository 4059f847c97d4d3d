"""What goes wrong on the way: delays, second copies, and records that are refused.

Shapes: N events, M records.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.events import HORIZON_MS, MAX_EVENT_BYTES, EventType
from features.names import MS_PER_DAY, MS_PER_HOUR, MS_PER_MINUTE, MS_PER_SECOND
from streaming.records import DUPLICATE_KINDS, REFUSED_KINDS, Record, RecordKind, to_json
from streaming.world.catalogue import Ints
from streaming.world.parameters import FaultParameters

KINDS = tuple(RecordKind)
"""A record's kind code is its place here."""
_EVENT, _LATE, _TOO_LATE = (KINDS.index(k) for k in (RecordKind.EVENT, RecordKind.LATE, RecordKind.TOO_LATE))
_LATE_DAYS_MAX, _TOO_LATE_DAYS_MIN = 1.9, 2.1
_DUPLICATE_DELAY_MS = (MS_PER_SECOND, MS_PER_HOUR)

if not _LATE_DAYS_MAX * MS_PER_DAY + _DUPLICATE_DELAY_MS[1] < HORIZON_MS < _TOO_LATE_DAYS_MIN * MS_PER_DAY:
    raise AssertionError("a late event and its second copy must come within the horizon, a too late one after it")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Records in order of arrival, each made from an event.

    `salt_M` picks the way in which a record is broken, and stands for the id of one that has none of its own.
    """

    arrival_ms_M: Ints
    event_M: Ints
    """Index of the event that the record carries, repeats or spoils."""
    kind_M: Ints
    """Index into `KINDS`."""
    salt_M: Ints

    def __len__(self) -> int:
        return len(self.arrival_ms_M)


def schedule(rng: np.random.Generator, time_ms_N: Ints, parameters: FaultParameters, now_ms: int) -> Schedule:
    """Draws what becomes of each event. Everything arrives by now: who would be later than that is on time."""
    count = len(time_ms_N)
    delay_ms_N, kind_N = _delays(rng, count, parameters)
    beyond_N = time_ms_N + delay_ms_N > now_ms
    kind_N = np.where(beyond_N, _EVENT, kind_N)
    arrival_ms_N = time_ms_N + np.where(
        beyond_N, np.minimum(_network(rng, count, parameters), now_ms - time_ms_N), delay_ms_N
    )
    arrivals, events, kinds = [arrival_ms_N], [np.arange(count)], [kind_N]
    for kind, rate in _extras(parameters):
        copied_N = rng.random(count) < rate
        if kind in DUPLICATE_KINDS:
            # A second copy of a too late event would be too late too, not a duplicate.
            copied_N &= kind_N != _TOO_LATE
            after_ms_N = rng.integers(*_DUPLICATE_DELAY_MS, size=count)
        else:
            after_ms_N = rng.integers(MS_PER_SECOND, size=count)
        copied_N &= arrival_ms_N + after_ms_N <= now_ms
        arrivals.append((arrival_ms_N + after_ms_N)[copied_N])
        events.append(np.flatnonzero(copied_N))
        kinds.append(np.full(int(copied_N.sum()), KINDS.index(kind)))
    arrival_ms_M = np.concatenate(arrivals)
    order_M = np.argsort(arrival_ms_M, kind="stable")
    return Schedule(
        arrival_ms_M=arrival_ms_M[order_M],
        event_M=np.concatenate(events)[order_M],
        kind_M=np.concatenate(kinds)[order_M],
        salt_M=rng.integers(1 << 40, size=len(order_M)),
    )


def _extras(parameters: FaultParameters) -> tuple[tuple[RecordKind, float], ...]:
    changed = parameters.changed_duplicate_fraction
    return (
        (RecordKind.DUPLICATE, parameters.duplicate_rate * (1.0 - changed)),
        (RecordKind.CHANGED_DUPLICATE, parameters.duplicate_rate * changed),
        (RecordKind.MALFORMED, parameters.malformed_rate),
        (RecordKind.UNKNOWN_TYPE, parameters.unknown_type_rate),
        (RecordKind.BROKEN, parameters.broken_rate),
    )


def _network(rng: np.random.Generator, count: int, parameters: FaultParameters) -> Ints:
    delay_ms = parameters.delay_ms_median * np.exp(parameters.delay_sd * rng.standard_normal(count))
    return delay_ms.astype(np.int64)


def _delays(rng: np.random.Generator, count: int, parameters: FaultParameters) -> tuple[Ints, Ints]:
    """Delays and kinds `[N]`."""
    bands = (
        (parameters.out_of_order_rate, MS_PER_SECOND, 30 * MS_PER_SECOND, _EVENT),
        (parameters.late_minutes_rate, MS_PER_MINUTE, MS_PER_HOUR, _LATE),
        (parameters.late_days_rate, MS_PER_DAY // 10, round(_LATE_DAYS_MAX * MS_PER_DAY), _LATE),
        (parameters.too_late_rate, round(_TOO_LATE_DAYS_MIN * MS_PER_DAY), 4 * MS_PER_DAY, _TOO_LATE),
    )
    delay_ms_N = _network(rng, count, parameters)
    kind_N = np.full(count, _EVENT)
    draw_N = rng.random(count)
    lower = 0.0
    for rate, from_ms, to_ms, kind in bands:
        chosen_N = (draw_N >= lower) & (draw_N < lower + rate)
        delay_ms_N[chosen_N] = rng.integers(from_ms, to_ms, size=int(chosen_N.sum()))
        kind_N[chosen_N] = kind
        lower += rate
    return delay_ms_N, kind_N


def make_record(fields: dict[str, Any], kind: RecordKind, arrival_ms: int, salt: int) -> Record:
    """The record that carries, repeats or spoils the event with these contract fields."""
    key = fields["user_id"].encode()
    if kind in REFUSED_KINDS:
        return Record(value=_refused(fields, kind, arrival_ms, salt), key=key, arrival_ms=arrival_ms, kind=kind)
    if kind is RecordKind.CHANGED_DUPLICATE:
        fields = {**fields, "event_time_ms": fields["event_time_ms"] + 7, "device": "changed"}
    return Record(value=to_json(fields), key=key, arrival_ms=arrival_ms, kind=kind, event_id=fields["event_id"])


def _refused(fields: dict[str, Any], kind: RecordKind, arrival_ms: int, salt: int) -> bytes:
    # The event itself is sent as well: its spoilt copy has an id of its own.
    spoilt = {**fields, "event_id": f"{fields['event_id']}-{salt:x}"}
    if kind is RecordKind.MALFORMED:
        return _MALFORMED[salt % len(_MALFORMED)](to_json(spoilt))
    if kind is RecordKind.UNKNOWN_TYPE:
        return to_json({**spoilt, "event_type": "teleport"})
    return to_json(_BROKEN[salt % len(_BROKEN)](spoilt, arrival_ms))


_MALFORMED: tuple[Callable[[bytes], bytes], ...] = (
    lambda value: value[: len(value) // 2],
    lambda _: b"<html>502 Bad Gateway</html>",
    lambda value: b"[" + value + b"]",
    lambda value: json.dumps(value.decode()).encode(),
    lambda value: value.replace(b"item-", b"\xc3\x28-"),
)
_BROKEN: tuple[Callable[[dict[str, Any], int], dict[str, Any]], ...] = (
    lambda fields, _: {**fields, "item_id": None},
    lambda fields, _: {**fields, "event_id": None},
    lambda fields, _: {**fields, "category": "two words"},
    lambda fields, _: {**fields, "position": "third"},
    lambda fields, _: {**fields, "event_type": EventType.WATCH, "watch_ms": -5, "duration_ms": 60_000},
    lambda fields, _: {**fields, "event_type": EventType.WATCH, "watch_ms": 5, "duration_ms": 0},
    lambda fields, arrival_ms: {**fields, "event_time_ms": arrival_ms + 30 * MS_PER_DAY},
    lambda fields, _: {**fields, "device": "x" * MAX_EVENT_BYTES},
)
