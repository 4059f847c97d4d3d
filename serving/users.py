"""Hydration: what the online store says of the user, within a time limit, or the state of someone unknown."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import cache
from threading import Lock

import numpy as np
from pybreaker import STATE_OPEN
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from features.algebra import Finaliser, Float64s
from features.backends import Backend
from features.specs import Entity, features_of
from features.tiles import USER_CATEGORY_TILES
from features.user_state import UserState
from serving.breaker import Breaker
from serving.tile_table import no_rows
from serving.user_read_error import UserReadError

_log = logging.getLogger(__name__)

READERS = 4
MAX_PENDING = 16
"""Reads under way at which further ones are refused: a store that hangs must not pile up threads or memory."""
ATTEMPTS = 3
"""Reads of a user at most, where the ones before failed and there is time."""
RETRY_WAIT_S = 0.002
"""Longest wait before the second; it doubles, and a random share of it is waited, so that requests do not return
together (full jitter)."""
MIN_RETRY_S = 0.005
"""With less left of the limit nothing is tried again; no wait is longer."""


def unknown_user(user_id: str, instant_ms: int) -> UserState:
    """The state of a user without events: defaults and empty sets."""
    category_F = _empty_features_F(Entity.USER_CATEGORY)
    return UserState(
        user_id=user_id,
        instant_ms=instant_ms,
        features_F=_empty_features_F(Entity.USER),
        categories=(),
        category_features_KF=np.empty((0, len(category_F))),
        empty_category_features_F=category_F,
        history=(),
        seen={},
        hidden=frozenset(),
        followed=frozenset(),
        newest_event_ms=None,
    )


@cache
def _empty_features_F(entity: Entity) -> Float64s:  # noqa: N802 - shape suffix
    finaliser, rows = Finaliser(features_of(entity), USER_CATEGORY_TILES.columns), no_rows(USER_CATEGORY_TILES)
    values_F: Float64s = finaliser.finalise(finaliser.merge(rows, rows.key_T, 1, 0), 0)[0]
    return values_F


class UserReader:
    """Reads users from the store in threads of its own, so that a slow store costs a request its limit and no more.

    Measured on SQLite: a read in the calling thread takes 0.42 ms (p99 0.77), this way 0.49 ms (p99 0.84). A read that
    fails at once is tried again within the limit; failures and reads beyond their limit count towards the circuit
    breaker, which then leaves the store alone and lets one read try it (`serving.breaker`). The store is opened at the
    first read, or by `open_ahead`, and anew after the breaker has opened.
    """

    def __init__(
        self,
        open_store: Callable[[], Backend],
        monotonic_s: Callable[[], float],
        *,
        on_circuit: Callable[[str], None] = lambda _: None,
        on_retry: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_circuit` is told each state of the breaker, `on_retry` each read that is tried again."""
        self._open_store = open_store
        self._monotonic_s = monotonic_s
        self._on_circuit = on_circuit
        self._on_retry = on_retry
        self._backend: Backend | None = None
        self._outlived = False
        """Whether the backend is from before an outage, and to be opened anew."""
        self._lock = Lock()
        self._opening = Lock()
        """Apart, since a store may take long to open and no request may wait for it beyond its limit."""
        self._pending = 0
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="hydrate")
        self._breaker = Breaker("online store", monotonic_s, self._circuit)

    def open_ahead(self) -> None:
        """Opens the store in the background, so that the first request need not wait for it; a failure is tried again
        by the first read.
        """
        self._threads.submit(self._opened)

    def read(self, user_id: str, instant_ms: int, timeout_ms: float) -> UserState:
        """The user's state at the instant. Raises `UserReadError` within `timeout_ms`."""
        until_s = self._monotonic_s() + timeout_ms / 1000

        def attempt() -> UserState:
            return self._attempt(user_id, instant_ms, until_s, timeout_ms)

        try:
            return attempt()
        except UserReadError as error:
            return self._retried(error, attempt, until_s)

    def _retried(self, first: UserReadError, attempt: Callable[[], UserState], until_s: float) -> UserState:
        """Further attempts after the first has failed, which is made by hand since tenacity costs 58 µs a call."""
        failed = [first]

        def attempted() -> UserState:
            if failed:
                raise failed.pop()
            self._on_retry()
            return attempt()

        def worth_it(error: BaseException) -> bool:
            if not isinstance(error, UserReadError) or error.kind != "failed" or self._breaker.state == STATE_OPEN:
                return False
            return until_s - self._monotonic_s() >= MIN_RETRY_S

        return Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=RETRY_WAIT_S, max=MIN_RETRY_S),
            retry=retry_if_exception(worth_it),
            reraise=True,
        )(attempted)

    def _attempt(self, user_id: str, instant_ms: int, until_s: float, timeout_ms: float) -> UserState:
        if self._pending >= MAX_PENDING:
            raise UserReadError(f"{self._pending} reads of the store are still under way", "busy")
        if not self._breaker.admits():
            raise UserReadError(self._breaker.why, "closed")
        with self._lock:
            self._pending += 1
        future = self._threads.submit(self._read, user_id, instant_ms)
        future.add_done_callback(self._done)
        try:
            state = future.result(timeout=max(until_s - self._monotonic_s(), 0.0))
        except FutureTimeoutError as error:
            raise self._failed(f"the store did not answer within {timeout_ms:.0f} ms", "timeout") from error
        except Exception as error:  # whatever the backend raises, the answer degrades and says so
            raise self._failed(f"the store failed: {type(error).__name__}: {error}", "failed") from error
        self._breaker.succeeded()
        return state

    def _failed(self, why: str, kind: str) -> UserReadError:
        self._breaker.failed(why)
        return UserReadError(why, kind)

    def close(self) -> None:
        """Ends the threads and lets go of the store."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._backend is not None:
            self._backend.close()

    def _read(self, user_id: str, instant_ms: int) -> UserState:
        return self._opened().read_user(user_id, instant_ms)

    def _opened(self) -> Backend:
        with self._opening:
            if self._backend is None or self._outlived:
                old, self._backend = self._backend, self._open_store()
                self._outlived = False
                _log.info("online store opened")
                if old is not None:
                    old.close()
            return self._backend

    def _done(self, _: Future[UserState]) -> None:
        with self._lock:
            self._pending -= 1

    def _circuit(self, state: str) -> None:
        if state == STATE_OPEN:
            self._outlived = True
        self._on_circuit(state)
