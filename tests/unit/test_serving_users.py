"""Hydration within its limit: a store that is slow, hangs, fails or comes back."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from features.backends import Backend, StoreUnavailableError, open_backend
from features.user_state import UserState
from serving.users import MAX_PENDING, READERS, REOPEN_AFTER_S, UserReader, UserReadError, unknown_user
from tests.serving_bundle import START_MS


class Clock:
    """Seconds, set by hand."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Backend]:
    with open_backend(str(tmp_path / "online.db")) as backend:
        yield backend


def test_an_unknown_user_is_what_the_store_says_of_one(store: Backend) -> None:
    ours, theirs = unknown_user("nobody", START_MS), store.read_user("nobody", START_MS)
    for name, value in vars(theirs).items():
        np.testing.assert_array_equal(getattr(ours, name), value, err_msg=name)


def test_a_failing_store_is_left_alone_and_then_asked_again(store: Backend) -> None:
    clock, opened = Clock(), []

    def open_store() -> Backend:
        opened.append(clock.now_s)
        if len(opened) == 1:
            raise StoreUnavailableError("no such file")
        return store

    users = UserReader(open_store, clock)
    for _ in range(3):
        with pytest.raises(UserReadError, match="no such file"):
            users.read("u", START_MS, 1_000)
    assert len(opened) == 1, "a store that failed was asked again at once"
    clock.now_s += REOPEN_AFTER_S
    assert users.read("u", START_MS, 1_000).user_id == "u"
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


def test_a_store_that_hangs_costs_the_limit_and_bounded_threads(
    store: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, entered = Event(), []

    def hangs(user_id: str, instant_ms: int) -> UserState:
        entered.append(user_id)
        release.wait(30)
        return unknown_user(user_id, instant_ms)

    monkeypatch.setattr(store, "read_user", hangs)
    users = UserReader(lambda: store, Clock())
    try:
        for _ in range(MAX_PENDING):
            with pytest.raises(UserReadError, match="did not answer within 1 ms"):
                users.read("u", START_MS, 1.0)
        with pytest.raises(UserReadError, match=f"{MAX_PENDING} reads of the store are still under way"):
            users.read("u", START_MS, 1_000)
        assert len(entered) <= READERS
    finally:
        release.set()
    monkeypatch.undo()
    users.close()
