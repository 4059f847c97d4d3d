"""A random stream of events with what goes wrong in life, and what must become of each record, by plain loops.

Events come out of order, copies have another payload now and then, records are broken in every way that the contract
names, and events lie on both sides of the horizon and of the allowed clock skew.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from confluent_kafka import Producer

from features.events import (
    FIELDS,
    FUTURE_SKEW_MS,
    HORIZON_MS,
    MAX_EVENT_BYTES,
    ContractError,
    Event,
    EventType,
    parse_event,
)
from tests.oracles import windows

BASE_MS = 1_760_000_000_000
USERS, ITEMS, CATEGORIES = 7, 9, 3


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of the events topic; `place` is its partition and offset, known once it was produced."""

    value: bytes | None
    key: bytes
    arrival_ms: int
    place: list[tuple[int, int]] = field(default_factory=list)


# The stream.


STEP_MS = 700


def stream(
    rng: random.Random, events: int, *, step_ms: int = STEP_MS, gaps_ms: Mapping[int, int] | None = None
) -> list[Record]:
    """Valid events with their faults, in order of arrival; then one record of every broken kind among them.

    An event arrives each `step_ms`, or as much later as `gaps_ms` says of its number; the delays grow with the step,
    and a few are about the horizon.
    """
    records: list[Record] = []
    sent: list[dict[str, object]] = []
    arrival_ms = BASE_MS - step_ms
    for number in range(events):
        arrival_ms += step_ms + (gaps_ms or {}).get(number, 0)
        if sent and rng.random() < 0.15:
            chosen = dict(rng.choice(sent))
            if rng.random() < 0.3:
                chosen |= {"category": "other", "event_type": "like"}
        else:
            chosen = event(rng, f"e{number}", arrival_ms, delay_ms=60_000 * step_ms // STEP_MS)
            sent.append(chosen)
        records.append(as_record(chosen, arrival_ms))
    broken = [Record(value=value, key=b"x", arrival_ms=BASE_MS) for value in broken_values()]
    edges = [as_record(fields, BASE_MS) for fields in edge_events(rng)]
    for extra in (*broken, *edges):
        records.insert(rng.randrange(len(records)), extra)
    return records


def event(rng: random.Random, event_id: str, arrival_ms: int, delay_ms: int = 60_000) -> dict[str, object]:
    event_type = rng.choices(list(EventType), weights=[40, 20, 15, 6, 2, 3, 3, 1, 3, 1])[0]
    item = rng.randrange(ITEMS)
    lag_ms = int(rng.expovariate(1 / delay_ms))
    if rng.random() < 0.02:
        lag_ms = HORIZON_MS + rng.randrange(-delay_ms, delay_ms)
    fields: dict[str, object] = {
        "event_id": event_id,
        "event_type": event_type,
        "event_time_ms": arrival_ms - lag_ms,
        "user_id": f"u{rng.randrange(USERS)}",
        "item_id": f"i{item}",
        "category": f"c{item % CATEGORIES}",
        "creator_id": f"cr{item % 4}",
        "schema_version": 1,
    }
    if event_type is EventType.IMPRESSION:
        fields |= {"request_id": f"r{rng.randrange(50)}", "position": rng.randrange(10)}
    if event_type is EventType.WATCH:
        duration_ms = rng.randrange(1_000, 60_000)
        share = rng.choice([0.1, 0.5, 0.9, 1.0])
        fields |= {"duration_ms": duration_ms, "watch_ms": int(duration_ms * share)}
    return fields


def edge_events(rng: random.Random) -> Iterator[dict[str, object]]:
    for number, (lag_ms, _) in enumerate(
        [(HORIZON_MS, "counted"), (HORIZON_MS + 1, "late"), (-FUTURE_SKEW_MS, "counted"), (-FUTURE_SKEW_MS - 1, "dead")]
    ):
        for copy in range(2):
            yield {**event(rng, f"edge{number}-{copy}", BASE_MS), "event_time_ms": BASE_MS - lag_ms}
    yield {**event(rng, "other-unit", BASE_MS), "event_time_ms": BASE_MS // 1_000}


def broken_values() -> Iterator[bytes | None]:
    """Records that are no event for every reason, and some that look broken and are not."""
    good = {
        **event(random.Random(0), "good", BASE_MS),
        "event_type": "watch", "watch_ms": 900, "duration_ms": 1_000, "device": "phone",
    }  # fmt: skip
    text = json.dumps(good)
    yield from (None, b"", b" ", b"null", b"1", b"[]", b"{}", b"{", b"NaN", b"\xff\xfe", b'{"a":"\xff"}')
    yield from (text.encode() + tail for tail in (b" x", b"}", b"]", b"] x", b",{}", b',"a":1', b" \n\t\r "))
    yield from (b"[" + text.encode() + b"]", text.encode("utf-16"), b"\xef\xbb\xbf" + text.encode())
    yield text.replace("}", ',"more":{"a":[1,{}]}}').replace("good", "nested").encode()
    yield text.replace("}", ',"more":{"a":[1,{}]}} trailing').encode()
    yield text.replace("phone", "ph\tone").encode()
    yield text.replace("}", ',"note":"\ufffd é 😀"}').replace("good", "letters").encode()
    for bytes_over in (0, 1):
        padded = text.replace("}", ',"pad":"', 1).replace("good", f"padded{bytes_over}")
        yield padded.encode() + b"x" * (MAX_EVENT_BYTES + bytes_over - len(padded) - 2) + b'"}'
    yield json.dumps({"note": "é" * MAX_EVENT_BYTES}, ensure_ascii=False).encode()
    yield b"\x00" * (900 * 1024)
    odd = [None, "", " ", "a b", "a\n", "é", "x" * 33, "x" * 65, "x" * 129, 0, 1, -1, True, "7", "07", "+7", "7\n"]
    odd += [
        1.0,
        1.5,
        1e300,
        -0.0,
        10**1_100,
        "1e3",
        2**42 - 1,
        2**42,
        10**17,
        10**18,
        10**30,
        86_400_001,
        10_000,
        {},
        {"a": 1},
        [],
        [1],
        '{"a":1}',
        "LIKE",
        "\x00",
    ]
    for contract in FIELDS:
        yield json.dumps({name: value for name, value in good.items() if name != contract.name}).encode()
        for number, value in enumerate(odd):
            own_id = {"event_id": f"odd-{contract.name}-{number}"}
            yield json.dumps({**good, **own_id, contract.name: value}).encode()


def as_record(fields: dict[str, object], arrival_ms: int) -> Record:
    value = json.dumps(fields, separators=(",", ":")).encode()
    return Record(value=value, key=str(fields["user_id"]).encode(), arrival_ms=arrival_ms)


def produce(bootstrap_servers: str, topic: str, records: Iterable[Record]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers, "compression.type": "lz4", "linger.ms": 5})
    for record in records:
        producer.produce(
            topic,
            record.value,
            record.key,
            timestamp=record.arrival_ms,
            on_delivery=lambda _, message, at=record.place: at.append((message.partition(), message.offset())),
        )
        producer.poll(0)
    assert producer.flush(30) == 0


# The oracle: one pass over the records as they lie in the topic, and plain loops.


@dataclass
class Expected:
    counted: list[Event] = field(default_factory=list)
    """In order of partition and offset, with `places` beside them."""
    places: list[tuple[int, int]] = field(default_factory=list)
    duplicates: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)
    dead: dict[tuple[int, int], tuple[str, bytes | None]] = field(default_factory=dict)
    late: set[tuple[int, int]] = field(default_factory=set)


def judge(records: Iterable[Record]) -> Expected:
    expected = Expected()
    known: set[tuple[str, str]] = set()
    for record in sorted(records, key=lambda record: record.place[0]):
        place = record.place[0]
        try:
            event = parse_event(record.value or b"", record.arrival_ms)
        except ContractError as error:
            expected.dead[place] = (error.reason, record.value)
            continue
        if record.arrival_ms - event.event_time_ms > HORIZON_MS:
            expected.late.add(place)
        elif (event.user_id, event.event_id) in known:
            expected.duplicates[place] = (event.user_id, event.event_id)
        else:
            known.add((event.user_id, event.event_id))
            expected.counted.append(event)
            expected.places.append(place)
    return expected


def as_window_events(events: Iterable[Event]) -> list[windows.Event]:
    """The events as the windows' oracle reads them."""
    return [
        windows.Event(
            event.user_id, event.item_id, event.category, event.creator_id, event.event_type.value, event.event_time_ms,
            event.watch_ms or 0, event.duration_ms or 1,
        )
        for event in events
    ]  # fmt: skip
