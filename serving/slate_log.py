"""Served slates on their way to Kafka: queued in the request, serialised and sent by a thread, counted if lost."""

import logging
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from serving.answer import Answer
from serving.metrics import Metrics
from serving.slate_record import to_record

_log = logging.getLogger(__name__)

MAX_QUEUED = 1_000
"""Answers that wait to be serialised; beyond, slates are dropped and counted."""
MAX_BUFFERED_KBYTES = 64 * 1024
SEND_TIMEOUT_MS = 60_000
FLUSH_S = 3.0


class SlateLog:
    """Never blocks a request. `slates_total` counts what was sent, dropped before and failed after sending."""

    def __init__(self, bootstrap_servers: str, topic: str, metrics: Metrics) -> None:
        self._topic = topic
        self._metrics = metrics
        self._queue: Queue[Answer] = Queue(MAX_QUEUED)
        self._down = False
        self._stop = Event()
        settings: dict[str, Any] = {
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
        self._producer = Producer(settings)
        self._thread = Thread(target=self._run, name="slate-log", daemon=True)
        self._thread.start()

    def submit(self, answer: Answer) -> str | None:
        """Queues the answer. Returns why it may not arrive, as a clause, or None when all is well."""
        try:
            self._queue.put_nowait(answer)
        except Full:
            self._metrics.slates.labels("dropped").inc()
            return "the slate was not logged: too many wait to be sent"
        return "the slate waits to be logged: Kafka does not answer" if self._down else None

    def close(self) -> None:
        """Sends what is queued: for at most `FLUSH_S`, or hardly waiting when Kafka does not answer."""
        self._stop.set()
        self._thread.join(timeout=FLUSH_S)
        unsent = self._producer.flush(FLUSH_S / 10 if self._down else FLUSH_S) + self._queue.qsize()
        if unsent:
            self._metrics.slates.labels("dropped").inc(unsent)
            _log.warning("%d slates were not sent before the end", unsent)

    def _run(self) -> None:
        while not (self._stop.is_set() and self._queue.empty()):
            self._producer.poll(0)
            try:
                answer = self._queue.get(timeout=0.1)
            except Empty:
                continue
            try:
                key, value = answer.query.user_id.encode(), to_record(answer).to_json()
                self._producer.produce(self._topic, value, key, on_delivery=self._delivered)
            except Exception as error:  # noqa: BLE001 - a slate that cannot be sent is counted and never ends the thread
                self._metrics.slates.labels("dropped").inc()
                _log.warning("slate %s not logged: %s", answer.query.request_id, error)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self._down = False
        self._metrics.slates.labels("sent" if error is None else "failed").inc()

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down = True
