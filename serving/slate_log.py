"""Served slates on their way to Kafka and the request log: queued in the request, serialised and sent by a thread,
counted if lost.
"""

import logging
import zlib
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from serving.answer import Answer
from serving.metrics import Metrics
from serving.request_log import LoggedRequest, RequestLogError, RequestLogWriter
from serving.slate_record import to_json, to_record

_log = logging.getLogger(__name__)

MAX_QUEUED = 1_000
"""Answers that wait to be serialised; beyond, slates are dropped and counted."""
MAX_BATCH = 32
"""Requests that enter the request log in one transaction."""
MAX_BUFFERED_KBYTES = 64 * 1024
SEND_TIMEOUT_MS = 60_000
FLUSH_S = 3.0


class SlateLog:
    """Never blocks a request. `slates_total` counts what Kafka took, what was dropped before and what failed after
    sending; `logged_requests_total` what the request log kept and dropped.
    """

    def __init__(
        self,
        bootstrap_servers: str | None,
        topic: str,
        metrics: Metrics,
        *,
        requests: RequestLogWriter | None = None,
        full_share: float = 0.05,
    ) -> None:
        """Without `bootstrap_servers` slates go to the request log alone. Of `full_share` of the requests, and of all
        explained ones, the features of every candidate are logged.
        """
        self._topic = topic
        self._metrics = metrics
        self._requests = requests
        self._full_share = full_share
        self._queue: Queue[Answer] = Queue(MAX_QUEUED)
        self._down = False
        self._stop = Event()
        self._producer = None if bootstrap_servers is None else Producer(self._settings(bootstrap_servers))
        self._thread = Thread(target=self._run, name="slate-log", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        """Whether the broker answers, as far as this client knows."""
        return not self._down

    def submit(self, answer: Answer) -> str | None:
        """Queues the answer. Returns why it may not arrive, as a clause, or None when all is well."""
        try:
            self._queue.put_nowait(answer)
        except Full:
            self._count_dropped(1)
            return "the slate was not logged: too many wait to be sent"
        return "the slate waits to be logged: Kafka does not answer" if self._down else None

    def close(self) -> None:
        """Sends what is queued: for at most `FLUSH_S`, or hardly waiting when Kafka does not answer."""
        self._stop.set()
        self._thread.join(timeout=FLUSH_S)
        unsent = self._queue.qsize()
        if self._producer is not None:
            unsent += self._producer.flush(FLUSH_S / 10 if self._down else FLUSH_S)
        if unsent:
            self._metrics.slates.labels("dropped").inc(unsent)
            _log.warning("%d slates were not sent before the end", unsent)

    def _settings(self, bootstrap_servers: str) -> dict[str, Any]:
        return {
            "bootstrap.servers": bootstrap_servers,
            "compression.type": "lz4",
            "linger.ms": 5,
            "message.timeout.ms": SEND_TIMEOUT_MS,
            "queue.buffering.max.kbytes": MAX_BUFFERED_KBYTES,
            "message.max.bytes": 4_000_000,
            "reconnect.backoff.max.ms": 2_000,
            "error_cb": self._on_error,
            "log_level": 0,
        }

    def _run(self) -> None:
        batch: list[LoggedRequest] = []
        while not (self._stop.is_set() and self._queue.empty()):
            if self._producer is not None:
                self._producer.poll(0)
            if (logged := self._next()) is not None:
                self._send(logged)
                batch.append(logged)
            if self._queue.empty() or len(batch) >= MAX_BATCH:
                self._keep(batch)
                batch = []
        if self._requests is not None:
            self._requests.close()

    def _next(self) -> LoggedRequest | None:
        """The next answer as it is logged; None where none came, or where it cannot be."""
        try:
            answer = self._queue.get(timeout=0.1)
        except Empty:
            return None
        try:
            record = to_record(answer, full_features=self._wants_all(answer))
            return LoggedRequest(record=record, value=to_json(record))
        except Exception as error:  # noqa: BLE001 - a slate that cannot be logged is counted and never ends the thread
            self._count_dropped(1)
            _log.warning("slate %s not logged: %s", answer.query.request_id, type(error).__name__)
            return None

    def _wants_all(self, answer: Answer) -> bool:
        share = zlib.crc32(answer.query.request_id.encode()) / 2**32
        return answer.query.explain or share < self._full_share

    def _send(self, logged: LoggedRequest) -> None:
        if self._producer is None:
            return
        try:
            key = logged.record.user_id.encode()
            self._producer.produce(self._topic, logged.value, key, on_delivery=self._delivered)
        except Exception as error:  # noqa: BLE001 - a slate that cannot be sent is counted and never ends the thread
            self._metrics.slates.labels("dropped").inc()
            _log.warning("slate %s not sent: %s", logged.record.request_id, type(error).__name__)

    def _keep(self, batch: list[LoggedRequest]) -> None:
        if self._requests is None:
            return None
        try:
            if not batch:
                return self._requests.prune_when_due()
            self._requests.write(batch)
            self._metrics.logged_requests.labels("kept").inc(len(batch))
        except RequestLogError as error:
            self._metrics.logged_requests.labels("dropped").inc(len(batch))
            _log.warning("%d requests are not in the request log: %s", len(batch), error)
        except Exception:  # noqa: BLE001 - whatever the disk does, slates go on to Kafka
            self._metrics.logged_requests.labels("dropped").inc(len(batch))
            _log.exception("%d requests are not in the request log", len(batch))

    def _count_dropped(self, slates: int) -> None:
        if self._producer is not None:
            self._metrics.slates.labels("dropped").inc(slates)
        if self._requests is not None:
            self._metrics.logged_requests.labels("dropped").inc(slates)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self._down = False
        self._metrics.slates.labels("sent" if error is None else "failed").inc()

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down = True
