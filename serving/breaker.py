"""A circuit breaker for calls that run elsewhere: asked before each, told the outcome after (Nygard, Release It!).

`pybreaker` keeps the states and counts. It would hold its lock while it calls, which would let one read of the store
run at a time, so calls are made outside it and only their outcomes go through.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from random import Random
from threading import Lock

import pybreaker

_log = logging.getLogger(__name__)

FAILURES = 5
"""Failures in a row after which nothing is asked any more."""
OPEN_S = 1.0
"""How long nothing is asked, at least; up to a quarter longer, so that processes do not ask again together."""
STATES = (pybreaker.STATE_CLOSED, pybreaker.STATE_OPEN, pybreaker.STATE_HALF_OPEN)


class _FailedError(Exception):
    """Stands for a failed call inside pybreaker."""


class Breaker(pybreaker.CircuitBreakerListener):
    """Closed: calls go through. Open: none does. Half-open: one call tries. Threads may share it.

    Times are of the monotonic clock that it is given: a step of the wall clock changes nothing.
    """

    def __init__(
        self, name: str, monotonic_s: Callable[[], float], on_state: Callable[[str], None] = lambda _: None
    ) -> None:
        """`on_state` is told each new state, one of `STATES`."""
        self._monotonic_s = monotonic_s
        self._on_state = on_state
        self._lock = Lock()
        self._jitter = Random()
        self._trying = False
        self._opens_until_s = float("-inf")
        self.why = ""
        """The last failure, in one clause."""
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=FAILURES, listeners=(self,), name=name, throw_new_error_on_trip=False
        )
        on_state(self.state)

    @property
    def state(self) -> str:
        """One of `STATES`."""
        return str(self._breaker.current_state)

    def admits(self) -> bool:
        """Whether a call may be made now; whoever gets True tells how it ended."""
        if self.state == pybreaker.STATE_CLOSED:
            return True
        with self._lock:
            if self.state == pybreaker.STATE_OPEN and self._monotonic_s() >= self._opens_until_s:
                self._breaker.half_open()
            if self.state != pybreaker.STATE_HALF_OPEN or self._trying:
                return self.state == pybreaker.STATE_CLOSED
            self._trying = True
            return True

    def succeeded(self) -> None:
        """A call that was admitted has ended well."""
        with self._lock:
            self._trying = False
            if self.state != pybreaker.STATE_OPEN:
                self._breaker.call(lambda: None)

    def failed(self, why: str) -> None:
        """A call that was admitted has failed, or taken too long."""

        def fail() -> None:
            raise _FailedError(why)

        with self._lock:
            self._trying = False
            self.why = why
            if self.state != pybreaker.STATE_OPEN:
                with suppress(_FailedError):
                    self._breaker.call(fail)

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,  # noqa: ARG002 - pybreaker's signature
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        """Called by pybreaker, within our lock."""
        if new_state.name == pybreaker.STATE_OPEN:
            self._opens_until_s = self._monotonic_s() + OPEN_S * self._jitter.uniform(1.0, 1.25)
        _log.warning("%s: circuit %s%s", cb.name, new_state.name, f" ({self.why})" if self.why else "")
        self._on_state(new_state.name)
