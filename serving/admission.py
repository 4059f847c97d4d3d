"""Admission: how many requests at once, and how much of each when the service falls behind.

Load is the time that a request waits for a pipeline thread: it is near 0 until the threads are busy all the time and
then grows without bound, whatever a request costs, so no rate has to be configured (as in CoDel: Nichols and Jacobson,
Controlling Queue Delay, ACM Queue 2012).

| wait, smoothed | what happens |
|---|---|
| up to `target_wait_ms` | every candidate is scored |
| from there to `limit_wait_ms` | the share of optional candidates falls in a straight line to 0 |
| above | the least number of candidates |
| longer than the deadline allows, by what is under way | the last resort (`serving.workers`), with no wait |
| less time left on arrival than the last resort takes | refused at once: it has waited in gRPC's queue already |
| `max_in_flight` requests under way | further ones are refused at once, with a time after which to come again |

Measured with a deadline of 200 ms on two cores that other work kept busy four to six times over, which moves the
figures (`tests/bench/bench_pressure.py`, four runs, load averages of 8 to 12): at 120 requests/s, twice what the
threads do, 94% and 95% are answered in time, at 240 58% to 77%; in one run without that other work 98.8% and 79%.
Without the last resort for what would be late it was 46% and 17% (one run, load average 11): all that is answered has
then waited until its deadline. Far beyond capacity requests wait in gRPC's queue until little of their deadline is
left, for the event loop takes them up no faster than they come: at 480 requests/s 9% were answered in time when each
was tried, 22% since those are refused that nothing can save (one run each).

The share falls at once and recovers slowly, and not at all for a small gain, so that it does not flap.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, kw_only=True)
class AdmissionConfig:
    """Bounds of the service, and when it begins to save."""

    max_in_flight: int = 32
    """Requests under way, those that wait for a thread among them."""
    workers: int = 2
    """Threads that run the pipeline: one a core."""
    target_wait_ms: float = 10.0
    limit_wait_ms: float = 40.0
    smoothing_ms: float = 100.0
    """Time constant of the smoothed wait: a burst that is worked off sooner costs no candidate."""
    recovery_per_s: float = 0.5
    """How fast the share of candidates comes back."""
    dead_band: float = 0.1
    """Gain of the share below which it stays where it is, unless all of it comes back."""

    def __post_init__(self) -> None:
        if self.max_in_flight < 1 or self.workers < 1 or not 0 < self.target_wait_ms < self.limit_wait_ms:
            raise ValueError(
                f"admission: got max_in_flight={self.max_in_flight}, workers={self.workers}, "
                f"target_wait_ms={self.target_wait_ms}, limit_wait_ms={self.limit_wait_ms}; "
                "allowed: numbers from 1, 0 < target_wait_ms < limit_wait_ms."
            )


MAX_SAMPLE_MS = 20.0
"""For how much time one measured wait speaks, at most: one slow start of a thread after a pause is no overload."""
FIRST_SERVICE_MS = 20.0
"""What a request is taken to need until the first has been answered."""
FIRST_RESORT_MS = 1.0
"""The same of the last resort."""
RESORT_HALF_LIFE_S = 1.0
"""While none is tried, that time is forgotten so fast: the next calm moment is a new one."""
SERVICE_WEIGHT = 0.1
LATE_DECAY = 0.998
MARGIN = 1.5
"""How much longer than expected what is under way may take."""
MAX_RETRY_MS = 5_000


class Admission:
    """Counts requests under way and measures how far behind the service is. For one thread: the event loop's."""

    def __init__(self, config: AdmissionConfig, monotonic_s: Callable[[], float], jitter: Random | None = None) -> None:
        self.config = config
        self.in_flight = 0
        self._aside = 0
        """Of these, requests that wait for no pipeline thread: they get the last resort."""
        self.wait_ms = 0.0
        """Smoothed wait for a thread."""
        self.service_ms = FIRST_SERVICE_MS
        """Smoothed time that a request takes in its thread."""
        self._resort_ms = FIRST_RESORT_MS
        self._monotonic_s = monotonic_s
        self._jitter = jitter or Random()
        self._share = 1.0
        self._measured_s = self._shared_s = self._resorted_s = monotonic_s()

    @property
    def full(self) -> bool:
        """Whether a further request is refused."""
        return self.in_flight >= self.config.max_in_flight

    def enter(self) -> None:
        """Takes a place for a request; to be asked first whether there is one."""
        if self.in_flight == 0:
            self._smooth(0.0, math.inf)
        self.in_flight += 1

    def leave(self, wait_ms: float | None = None, service_ms: float = 0.0, *, aside: bool = False) -> None:
        """Gives the place back. `wait_ms` and `service_ms` are what the request took of the pipeline's threads; None
        if it never had one. `aside` says whether it was `too_late` for them.
        """
        self.in_flight -= 1
        self._aside -= aside
        if wait_ms is not None:
            self._smooth(wait_ms, MAX_SAMPLE_MS)
            self.service_ms += SERVICE_WEIGHT * (service_ms - self.service_ms)

    def share(self) -> float:
        """The share of optional candidates that a request may score now, from 0 to 1."""
        config, now_s = self.config, self._monotonic_s()
        load = (self.wait_ms - config.target_wait_ms) / (config.limit_wait_ms - config.target_wait_ms)
        aim = 1.0 - min(max(load, 0.0), 1.0)
        if aim < self._share:
            self._share = aim
        elif aim == 1.0 or aim > self._share + config.dead_band:
            self._share = min(aim, self._share + config.recovery_per_s * (now_s - self._shared_s))
        self._shared_s = now_s
        return self._share

    def too_late(self, left_ms: float) -> bool:
        """Whether the request that has entered last would wait for a thread and then hardly be done in the time left;
        then it is set aside.

        Each yes makes the next less likely, since what is not begun is not measured either.
        """
        waits = self.in_flight - self._aside > self.config.workers
        late = waits and MARGIN * self._backlog_ms() > left_ms
        if late:
            self._aside += 1
            self.service_ms *= LATE_DECAY
        return late

    def hopeless(self, left_ms: float) -> bool:
        """Whether not even the last resort would be done in the time left: so it is with requests that have waited in
        gRPC's queue.
        """
        since_s = self._monotonic_s() - self._resorted_s
        return left_ms < self._resort_ms * math.exp2(-since_s / RESORT_HALF_LIFE_S)

    def resorted(self, took_ms: float) -> None:
        """Learns how long the last resort took, from the moment that a request was set aside."""
        self._resort_ms += SERVICE_WEIGHT * (took_ms - self._resort_ms)
        self._resorted_s = self._monotonic_s()

    def retry_after_ms(self) -> int:
        """When a refused request may find a place: the time in which what is under way is worked off, give or take
        half, so that those who are refused together do not come back together.
        """
        return min(max(round(self._backlog_ms() * self._jitter.uniform(0.5, 1.5)), 1), MAX_RETRY_MS)

    def _backlog_ms(self) -> float:
        """How long it takes to work off what is under way."""
        return self.service_ms * max((self.in_flight - self._aside) / self.config.workers, 1.0)

    def _smooth(self, wait_ms: float, speaks_for_ms: float) -> None:
        """Weighs by the time since the last sample, so that many in one instant say no more than one."""
        now_s = self._monotonic_s()
        since_ms = min((now_s - self._measured_s) * 1000, speaks_for_ms)
        self.wait_ms += (1.0 - math.exp(-since_ms / self.config.smoothing_ms)) * (wait_ms - self.wait_ms)
        self._measured_s = now_s
