"""The real job on a real broker against a brute-force oracle: exact, once, and the same after kill -9.

The stream is random and holds what goes wrong in life: events out of order, copies (some with another payload),
every kind of broken record, events on both sides of the horizon and of the allowed clock skew.
"""

import json
import os
import random
import re
import signal
import subprocess
import urllib.request
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

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
from features.names import Topics
from features.tiles import FAMILIES, TileFamily
from tests.conftest import JARS, ROOT, free_port, running, wait_for
from tests.oracles import windows

PYTHON = ROOT / ".venv" / "stream" / "bin" / "python"
BASE_MS = 1_760_000_000_000
USERS, ITEMS, CATEGORIES = 7, 9, 3
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


PLACE = ("partition", "offset", "arrival_ms")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of the events topic; `place` is its partition and offset, known once it was produced."""

    value: bytes | None
    key: bytes
    arrival_ms: int
    place: list[tuple[int, int]] = field(default_factory=list)


# The stream.


def stream(rng: random.Random, events: int) -> list[Record]:
    """Valid events with their faults, in order of arrival; then one record of every broken kind among them."""
    records: list[Record] = []
    sent: list[dict[str, object]] = []
    for number in range(events):
        arrival_ms = BASE_MS + number * 700
        if sent and rng.random() < 0.15:
            chosen = dict(rng.choice(sent))
            if rng.random() < 0.3:
                chosen |= {"category": "other", "event_type": "like"}
        else:
            chosen = event(rng, f"e{number}", arrival_ms)
            sent.append(chosen)
        records.append(as_record(chosen, arrival_ms))
    broken = [Record(value=value, key=b"x", arrival_ms=BASE_MS) for value in broken_values()]
    edges = [as_record(fields, BASE_MS) for fields in edge_events(rng)]
    for extra in (*broken, *edges):
        records.insert(rng.randrange(len(records)), extra)
    return records


def event(rng: random.Random, event_id: str, arrival_ms: int) -> dict[str, object]:
    event_type = rng.choices(list(EventType), weights=[40, 20, 15, 6, 2, 3, 3, 1, 3, 1])[0]
    item = rng.randrange(ITEMS)
    fields: dict[str, object] = {
        "event_id": event_id,
        "event_type": event_type,
        "event_time_ms": arrival_ms - int(rng.expovariate(1 / 60_000)),
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


def tiles_of(family: TileFamily, events: Iterable[Event]) -> dict[tuple[object, ...], dict[str, int]]:
    """The oracle's tiles, in the shape in which the outputs are compared."""
    plain = [
        windows.Event(
            event.user_id, event.item_id, event.category, event.creator_id, event.event_type.value, event.event_time_ms,
            event.watch_ms or 0, event.duration_ms or 1,
        )
        for event in events
    ]  # fmt: skip
    names = ["n", "max_event_time_ms", *(column.name for column in family.columns)]
    return {
        (*row.key, row.tile_start_ms): dict(zip(names, (row.n, row.max_event_time_ms, *row.values), strict=True))
        for row in windows.tiles_of(family, plain, family.tile_ms)
    }


# What the job wrote.


class Output:
    """Everything in a topic so far; `poll` reads on."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self.rows: list[dict[str, object]] = []
        self.keys: list[bytes | None] = []
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "unused",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.message.max.bytes": 4_000_000,
                "log_level": 0,
            }
        )
        partitions = self._consumer.list_topics(topic, timeout=30).topics[topic].partitions
        self._consumer.assign([TopicPartition(topic, number, 0) for number in partitions])

    def poll(self) -> list[dict[str, object]]:
        for message in self._consumer.consume(10_000, timeout=0.2):
            if message.error():
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                continue
            assert message.value() is not None, f"a tombstone in {message.topic()} for {message.key()!r}"
            self.rows.append(json.loads(message.value()))
            self.keys.append(message.key())
        return self.rows

    def close(self) -> None:
        self._consumer.close()


class Outputs:
    def __init__(self, bootstrap_servers: str, topics: Topics) -> None:
        self.dead = Output(bootstrap_servers, topics.dead_letters)
        self.late = Output(bootstrap_servers, topics.too_late)
        self.duplicates = Output(bootstrap_servers, topics.duplicates)
        self.interactions = Output(bootstrap_servers, topics.interactions)
        self.tiles = {family.name: Output(bootstrap_servers, topics.tiles(family.name)) for family in FAMILIES}

    def latest_tiles(self, family: TileFamily) -> dict[tuple[object, ...], dict[str, object]]:
        """The compacted topic's rows: the last one of each key."""
        output = self.tiles[family.name]
        numbers = ["n", "max_event_time_ms", *(column.name for column in family.columns)]
        latest = {}
        for row, key in zip(output.poll(), output.keys, strict=True):
            names = (*family.key_fields, "tile_ms", "tile_start_ms")
            assert json.loads(key or b"") == {name: row[name] for name in names}
            assert row["tile_ms"] == family.tile_ms
            latest[(*(row[name] for name in family.key_fields), row["tile_start_ms"])] = {n: row[n] for n in numbers}
        return latest

    def wait_and_compare(self, expected: Expected, job: subprocess.Popen[bytes], timeout_s: float) -> None:
        """Waits until as much has come out as is expected, then compares all of it."""
        total = len(expected.counted)

        def complete() -> bool:
            assert job.poll() is None, f"the job has ended with status {job.returncode}"
            done = [sum(int(str(row["n"])) for row in self.latest_tiles(f).values()) >= total for f in FAMILIES]
            dead = {(row["partition"], row["offset"]) for row in self.dead.poll()}
            late = {(row["partition"], row["offset"]) for row in self.late.poll()}
            copies = {(row["partition"], row["offset"]) for row in self.duplicates.poll()}
            ids = {(row["user_id"], row["event_id"]) for row in self.interactions.poll()}
            sizes = [(dead, expected.dead), (late, expected.late), (copies, expected.duplicates)]
            return all(done) and len(ids) >= total and all(len(got) >= len(wanted) for got, wanted in sizes)

        try:
            wait_for(complete, f"{total} counted events in every output", timeout_s, every_s=0.1)
        except pytest.fail.Exception:
            self._compare(expected)
            raise
        self._compare(expected)

    def _compare(self, expected: Expected) -> None:
        for family in FAMILIES:
            assert self.latest_tiles(family) == tiles_of(family, expected.counted), family.name
        assert {(row["partition"], row["offset"]) for row in self.late.rows} == expected.late
        copies = {(row["partition"], row["offset"]): (row["user_id"], row["event_id"]) for row in self.duplicates.rows}
        assert copies == expected.duplicates
        self._compare_dead(expected)
        self._compare_interactions(expected)

    def _compare_dead(self, expected: Expected) -> None:
        got = {(row["partition"], row["offset"]): (row["reason"], original(row)) for row in self.dead.rows}
        differing = {place: (got.get(place), expected.dead.get(place)) for place in {*got, *expected.dead}}
        assert {k: v for k, v in differing.items() if v[0] != v[1]} == {}, "place: what the job says, what Python says"

    def _compare_interactions(self, expected: Expected) -> None:
        got = {(row["user_id"], row["event_id"]): row for row in self.interactions.rows}
        wanted = {
            (event.user_id, event.event_id): {
                name: getattr(event, name) for name in INTERACTION_FIELDS if getattr(event, name) is not None
            }
            for event in expected.counted
        }
        assert {key: {n: v for n, v in row.items() if n not in PLACE} for key, row in got.items()} == wanted
        assert {(row["partition"], row["offset"]) for row in got.values()} == set(expected.places)
        for row, key in zip(self.interactions.rows, self.interactions.keys, strict=True):
            assert key == str(row["user_id"]).encode()

    def close(self) -> None:
        for output in (self.dead, self.late, self.duplicates, self.interactions, *self.tiles.values()):
            output.close()


def original(row: dict[str, object]) -> bytes | None:
    if "value_base64" in row:
        return b64decode(str(row["value_base64"]))
    return str(row["value"]).encode() if "value" in row else None


# The test.


@pytest.fixture
def outputs(kafka_broker: str, topics: Topics) -> Iterator[Outputs]:
    with closing(Outputs(kafka_broker, topics)) as opened:
        yield opened


def test_outputs_equal_the_oracle_and_survive_kill_9(
    kafka_broker: str, topics: Topics, tmp_path: Path, outputs: Outputs
) -> None:
    records = stream(random.Random(11), 3_000)
    first, second, third = records[:1_800], records[1_800:2_600], records[2_600:]
    rest_port, metrics_port = free_port(), free_port()
    log, checkpoints = tmp_path / "job.log", tmp_path / "checkpoints"
    command = [str(PYTHON), "-m", "streaming.job", "--bootstrap-servers", kafka_broker, "--events-topic", topics.events]
    command += ["--topics-version", topics.version, "--checkpoint-dir", str(checkpoints), "--jars-dir"]
    command += [str(JARS / "flink"), "--rest-port", str(rest_port), "--checkpoint-interval-ms", "1000"]
    command += ["--metrics-port", str(metrics_port)]

    produce(kafka_broker, topics.events, first)
    with running(command, log) as process:
        expected = judge(first)
        outputs.wait_and_compare(expected, process, timeout_s=120)
        assert once(outputs.interactions, "user_id", "event_id"), "no crash, so every interaction once"
        assert all(once(output, "partition", "offset") for output in (outputs.dead, outputs.late, outputs.duplicates))
        assert min(len(expected.dead), len(expected.duplicates), len(expected.late)) >= 2
        read = "millrace_stream_records_read_total"
        wait_for(lambda: metrics_of(metrics_port).get(read) == len(first), f"{read} of {len(first)}", 20)
        scraped = metrics_of(metrics_port)
        assert (scraped["millrace_stream_up"], scraped["millrace_stream_lag_records"]) == (1, 0)
        assert 0 <= scraped["millrace_stream_checkpoint_age_seconds"] < 60
        assert scraped["millrace_stream_checkpoint_duration_seconds"] > 0
        assert contract_calls(rest_port) == 1, "the planner calls read_event once a record"
        produce(kafka_broker, topics.events, second)
        kill_9(process.pid)
    assert list(checkpoints.glob("*/*/chk-*/_metadata"))

    with running(command, log) as process:
        produce(kafka_broker, topics.events, third)
        outputs.wait_and_compare(judge(records), process, timeout_s=120)
        jvm = jvm_of(process.pid)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0
        assert not jvm.is_running() or jvm.status() == psutil.STATUS_ZOMBIE
    assert re.search(r"starting from .*/chk-\d+", log.read_text())


def once(output: Output, *names: str) -> bool:
    return max(Counter(tuple(row[name] for name in names) for row in output.rows).values()) == 1


def metrics_of(port: int) -> dict[str, float]:
    """The samples that a scrape of the job gives."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


def contract_calls(rest_port: int) -> int:
    jobs = get_json(f"http://127.0.0.1:{rest_port}/jobs/overview")["jobs"]
    plan = get_json(f"http://127.0.0.1:{rest_port}/jobs/{jobs[0]['jid']}/plan")
    return sum(node["description"].count("read_event(") for node in plan["plan"]["nodes"])


def get_json(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def jvm_of(pid: int) -> psutil.Process:
    (jvm,) = [child for child in psutil.Process(pid).children() if "java" in child.name()]
    return jvm


def kill_9(pid: int) -> None:
    """Kills Python alone: its JVM must not outlive it."""
    jvm = jvm_of(pid)
    os.kill(pid, signal.SIGKILL)
    ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    wait_for(lambda: not jvm.is_running() or jvm.status() in ended, "the end of the job's JVM", 10)
