"""The whole stream on real parts, killed by SIGKILL under load: broker, job, writer and store, in turn and together.

A producer goes on sending through every outage. In the end each record that Kafka acknowledged lies in the topic, each
that lies there has exactly one outcome, and what the store says of every user and item, at several instants, is what a
brute-force count over the events says. (A broker killed between a write and its acknowledgement may write a record
again when the producer sends it again, idempotent or not: the topic is the truth, and the copy is a duplicate.)
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer

from features.backends import open_backend
from features.ledger import Outcome
from features.names import MS_PER_DAY, MS_PER_HOUR, MS_PER_MINUTE
from features.specs import Entity
from infra.accounts import read_accounts
from tests.oracles.keyed_sets import assert_sets_are_those_of
from tests.oracles.stream import BASE_MS, Record, as_window_events, judge, stream
from tests.oracles.windows import assert_windows_are_those_of
from tests.stream_chain import Chain, open_chain

RECORDS = 9_000
PER_S = 40
"""Slow enough to last through all outages; what is left then is sent at once."""
NOW_MS = BASE_MS + RECORDS * 700
INSTANTS_MS = [NOW_MS + later_ms for later_ms in (0, 10 * MS_PER_MINUTE, MS_PER_HOUR, 2 * MS_PER_DAY)]


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
    lying = chain.records()
    at = {record.place[0]: record for record in lying}
    assert all(at[record.place[0]].value == record.value for record in records), "what was acknowledged is there"
    expected = judge(lying)
    with open_backend(chain.location, chain.topics.version) as store:
        chain.wait_until_stored(store)
        totals = read_accounts(store, chain.broker.bootstrap_servers, chain.topics.events)
        wanted = {
            Outcome.COUNTED: len(expected.counted),
            Outcome.DUPLICATE: len(expected.duplicates),
            Outcome.TOO_LATE: len(expected.late),
            Outcome.DEAD: len(expected.dead),
        }
        assert {outcome: sum(account.outcomes[outcome] for account in totals) for outcome in Outcome} == wanted
        for instant_ms in INSTANTS_MS:
            for entity in Entity:
                assert_windows_are_those_of(store, entity, as_window_events(expected.counted), instant_ms)
        users = {event.user_id for event in expected.counted}
        assert_sets_are_those_of(store, users, expected.counted, NOW_MS)


def test_kill_9_of_every_part_in_turn_and_together_changes_nothing(tmp_path: Path) -> None:
    records = stream(random.Random(23), RECORDS)
    with open_chain(tmp_path, "redis", NOW_MS) as chain:
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


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    records = stream(rng, 2 * RECORDS)
    with open_chain(tmp_path, "redis", NOW_MS) as chain:
        with load(chain, records):
            for _ in range(8):
                chain.wait_for_progress()
                names = rng.sample(sorted(chain.parts), rng.randint(1, len(chain.parts)))
                chain.kill(*names)
                time.sleep(rng.random() * 5)
                chain.start(*names)
        assert_exact(chain, records)
