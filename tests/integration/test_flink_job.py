"""The real job on a real broker against a brute-force oracle: exact, once, and the same after kill -9."""

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
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from features.events import Event
from features.names import Topics
from features.tiles import FAMILIES, TileFamily
from infra.jvm import QUICK_COMPILER
from tests.conftest import JARS, ROOT, free_port, running, wait_for
from tests.oracles import windows
from tests.oracles.stream import Expected, as_window_events, judge, produce, stream

PYTHON = ROOT / ".venv" / "stream" / "bin" / "python"
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


def tiles_of(family: TileFamily, events: Iterable[Event]) -> dict[tuple[object, ...], dict[str, int]]:
    """The oracle's tiles, in the shape in which the outputs are compared."""
    names = ["n", "max_event_time_ms", *(column.name for column in family.columns)]
    return {
        (*row.key, row.tile_start_ms): dict(zip(names, (row.n, row.max_event_time_ms, *row.values), strict=True))
        for row in windows.tiles_of(family, as_window_events(events), family.tile_ms)
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
    with running(command, log, {"JVM_ARGS": QUICK_COMPILER}) as process:
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

    with running(command, log, {"JVM_ARGS": QUICK_COMPILER}) as process:
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
