"""The threads that answer requests, and the last resort for one that they would answer too late.

A request waits for a thread of the pipeline, unless so much is under way that it would be late: then it gets the last
resort at once. When its deadline is `LAST_RESORT_S` away and it still waits, it is taken out of the queue; if it is
being computed, that goes on. Either way a spare thread makes an answer of what is in memory, with no store and no
ranker, and whichever of the two is ready first is the answer. A request on which the pipeline fails altogether ends the
same way.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from serving.admission import Admission
from serving.stages import ADMIT, Progress, SupersededError

_log = logging.getLogger(__name__)

LAST_RESORT_S = 0.006
"""How long before the deadline the last resort begins."""

T = TypeVar("T")


class LateError(RuntimeError):
    """The deadline passed before a thread was free: nothing was computed."""


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[T]):
    """What was made of a request, and the record of the attempt that made it."""

    result: T
    progress: Progress


@dataclass
class _Spent:
    """Milliseconds that a request waited for a thread and kept it; None if it never got one."""

    wait_ms: float | None = None
    service_ms: float = 0.0


class Workers:
    """Runs requests in threads, each within its deadline. For one event loop."""

    def __init__(self, admission: Admission, on_free: Callable[[], None] = lambda: None) -> None:
        """`on_free` is told whenever a place has been given back."""
        self._on_free = on_free
        self.admission = admission
        self._threads = ThreadPoolExecutor(admission.config.workers, thread_name_prefix="pipeline")
        self._spare = ThreadPoolExecutor(1, thread_name_prefix="last-resort")

    async def run(self, work: Callable[[Progress], T], progress: Progress) -> Outcome[T]:
        """The outcome of `work`, or of the same in a hurry. The request must have been admitted; its place is given
        back when no thread works on it any more. Raises `LateError`, or what the last resort raised.
        """
        if self.admission.too_late(progress.remaining_ms() - LAST_RESORT_S * 1000):
            progress.degrade(ADMIT, "the service is busy: the answer is made of what is in memory")
            began_s = progress.monotonic_s()
            try:
                return await asyncio.wrap_future(self._queue(self._spare, _hurried, work, progress))
            finally:
                self.admission.resorted((progress.monotonic_s() - began_s) * 1000)
        queued = self._queue(self._threads, _attempt, work, progress)
        first = asyncio.wrap_future(queued)
        first.add_done_callback(_seen)
        try:
            until_spare_s = progress.remaining_ms() / 1000 - LAST_RESORT_S
            if until_spare_s > 0:
                await asyncio.wait((first,), timeout=until_spare_s)
            if not first.done():
                queued.cancel()
            elif (error := first.exception()) is None:
                return first.result()
            elif not isinstance(error, LateError):
                _log.error("the pipeline failed", exc_info=error)
            context = contextvars.copy_context()
            spare = asyncio.get_running_loop().run_in_executor(self._spare, context.run, _hurried, work, progress)
            spare.add_done_callback(_seen)
            return await _first_good((first, spare))
        except asyncio.CancelledError:  # the caller has gone
            queued.cancel()
            raise

    def close(self) -> None:
        """Ends the threads; to be called when no request is under way."""
        self._threads.shutdown(wait=True)
        self._spare.shutdown(wait=True)

    def _queue(
        self,
        threads: ThreadPoolExecutor,
        attempt: Callable[[Callable[[Progress], T], Progress], Outcome[T]],
        work: Callable[[Progress], T],
        progress: Progress,
    ) -> "Future[Outcome[T]]":
        """Has a thread make an attempt; whether or not it comes to that, the request's place is given back."""
        loop, spent, queued_s = asyncio.get_running_loop(), _Spent(), progress.monotonic_s()
        measured = threads is self._threads

        def begun() -> Outcome[T]:
            started_s = progress.monotonic_s()
            progress.took(ADMIT, queued_s)
            try:
                return attempt(work, progress)
            finally:
                if measured:
                    spent.wait_ms = (started_s - queued_s) * 1000
                    spent.service_ms = (progress.monotonic_s() - started_s) * 1000

        def leave() -> None:
            self.admission.leave(spent.wait_ms, spent.service_ms, aside=not measured)
            self._on_free()

        # In a copy of the context, so that what the thread logs carries the request's ids.
        queued = threads.submit(contextvars.copy_context().run, begun)
        queued.add_done_callback(lambda _: loop.call_soon_threadsafe(leave))
        return queued


def _attempt(work: Callable[[Progress], T], progress: Progress) -> Outcome[T]:
    if progress.remaining_ms() <= 0:
        raise LateError
    return Outcome(result=work(progress), progress=progress)


def _hurried(work: Callable[[Progress], T], progress: Progress) -> Outcome[T]:
    if progress.remaining_ms() <= 0:
        raise LateError
    hurried = progress.hurried()
    return Outcome(result=work(hurried), progress=hurried)


async def _first_good(attempts: "Iterable[asyncio.Future[Outcome[T]]]") -> Outcome[T]:
    """The first outcome. Raises what one of the attempts raised if all fail."""
    pending = set(attempts)
    error: BaseException = LateError()
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            failure = None if one.cancelled() else one.exception()
            if failure is None and not one.cancelled():
                return one.result()
            if failure is not None and not isinstance(failure, SupersededError):
                error = failure
    raise error


def _seen(attempt: "asyncio.Future[Outcome[T]]") -> None:
    """Its failure is known, or of no interest, since another attempt has answered."""
    if not attempt.cancelled():
        attempt.exception()
