"""Served slates on their way to the scribe, which logs them (`serving.scribe`): queued in the request, sent by a
thread once the answer is on its way.
"""

import logging
import socket
import zlib
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

from serving.answer import Answer
from serving.slate_draft import draft_of
from serving.slate_metrics import SlateMetrics

_log = logging.getLogger(__name__)

MAX_QUEUED = 1_000
"""Answers that wait to be sent; beyond, slates are dropped and counted."""
POLL_S = 0.1
HEAR_EVERY_S = 0.05
"""How often the scribe's words are read while slates go out."""
CLOSE_S = 3.0
"""How long the last slates may take to be written."""


class SlateLog:
    """Never blocks a request. What is lost before the scribe has dealt with it is counted here, what is lost later by
    the scribe.
    """

    def __init__(
        self, address: Path, metrics: SlateMetrics, *, kafka: bool, requests: bool, full_share: float = 0.05
    ) -> None:
        """`kafka` and `requests` say where the scribe at the address writes. Of `full_share` of the requests, and of
        all explained ones, the features of every candidate are logged.
        """
        self._address = address
        self._full_share = full_share
        self._lost = [metrics.slates.labels("dropped")] if kafka else []
        self._lost += [metrics.logged_requests.labels("dropped")] if requests else []
        self._queue: deque[Answer] = deque()
        self._due = Event()
        self._scribe: Connection | None = None
        self._unwritten = 0
        """Sent, and not yet known to be written."""
        self._heard_s = 0.0
        self._down = False
        self._stop = Event()
        self._thread = Thread(target=self._run, name="slate-log", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether the broker answers, as far as the scribe knows."""
        return not self._down

    def submit(self, answer: Answer) -> str | None:
        """Queues the answer, for `go_on`. Returns why it may not arrive, as a clause, or None when all is well."""
        if len(self._queue) >= MAX_QUEUED:
            self._count_lost(1)
            return "the slate was not logged: too many wait to be sent"
        self._queue.append(answer)
        return "the slate waits to be logged: Kafka does not answer" if self._down else None

    def go_on(self) -> None:
        """Has what is queued sent now; without it that takes up to `POLL_S`. To be called once an answer is on its way:
        before, the thread would hold Python's lock while the answer is written.
        """
        self._due.set()

    def close(self) -> None:
        """Waits at most `CLOSE_S` for the scribe to write what is queued."""
        self._stop.set()
        self._due.set()
        self._thread.join(timeout=CLOSE_S)
        if unsent := len(self._queue) + self._unwritten:
            self._count_lost(unsent)
            _log.warning("%d slates were not written before the end", unsent)

    def _run(self) -> None:
        while not self._ended():
            if not self._queue:
                self._due.wait(POLL_S)
                self._due.clear()
            if self._queue:
                self._send(self._queue.popleft())
            elif self._stop.is_set():
                self._hear(POLL_S)
            if perf_counter() - self._heard_s >= HEAR_EVERY_S:
                self._hear(0)
        if self._scribe is not None:
            self._scribe.close()

    def _ended(self) -> bool:
        return self._stop.is_set() and not self._queue and not self._unwritten

    def _send(self, answer: Answer) -> None:
        try:
            draft = draft_of(answer, full_features=wants_all(answer, self._full_share))
        except Exception as error:  # noqa: BLE001 - a slate that cannot be logged is counted and never ends the thread
            self._count_lost(1)
            _log.warning("slate %s not logged: %s", answer.query.request_id, type(error).__name__)
            return
        scribe = self._connected()
        if scribe is None:
            self._count_lost(1)
            return
        self._unwritten += 1
        try:
            scribe.send(draft)
        except OSError as error:
            self._lose_scribe(error)
        except Exception as error:  # noqa: BLE001 - what cannot be pickled is counted, and nothing of it was sent
            self._unwritten -= 1
            self._count_lost(1)
            _log.warning("slate %s not logged: %s", answer.query.request_id, type(error).__name__)

    def _connected(self) -> Connection | None:
        """The line to the scribe, waiting for it; None when there is none at the end."""
        while self._scribe is None:
            ending, line = self._stop.is_set(), socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(self._address))
            except OSError:  # it is starting
                line.close()
                if ending:
                    return None
                self._stop.wait(POLL_S)
            else:
                self._scribe = Connection(line.detach())
        return self._scribe

    def _hear(self, wait_s: float) -> None:
        """Reads what the scribe has to say; waits for a word for at most so long."""
        self._heard_s = perf_counter()
        if self._scribe is None:
            return
        try:
            while self._scribe is not None and self._scribe.poll(wait_s):
                written, connected = self._scribe.recv()
                self._unwritten, self._down, wait_s = self._unwritten - written, not connected, 0
        except (EOFError, OSError) as error:
            self._lose_scribe(error)

    def _lose_scribe(self, error: Exception) -> None:
        """Counts what it may not have written; another starts."""
        _log.warning("the scribe has gone (%s) with %d slates", type(error).__name__, self._unwritten)
        self._count_lost(self._unwritten)
        self._unwritten = 0
        if self._scribe is not None:
            with suppress(OSError):
                self._scribe.close()
        self._scribe = None

    def _count_lost(self, slates: int) -> None:
        for counter in self._lost:
            counter.inc(slates)


def wants_all(answer: Answer, full_share: float) -> bool:
    """Whether the features of every candidate are logged: for that share of the requests and all explained ones."""
    share = zlib.crc32(answer.query.request_id.encode()) / 2**32
    return answer.query.explain or share < full_share
