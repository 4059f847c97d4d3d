"""Slates on their way to Kafka and the request log: made of their drafts, sent, kept, and counted if lost."""

import logging
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from serving.request_log import LoggedRequest, RequestLogError, RequestLogWriter
from serving.slate_metrics import SlateMetrics
from serving.slate_record import SlateDraft, to_json, to_record

_log = logging.getLogger(__name__)

MAX_BATCH = 32
"""Requests that enter the request log in one transaction."""
MAX_BUFFERED_KBYTES = 64 * 1024
SEND_TIMEOUT_MS = 60_000
FLUSH_S = 3.0


class SlateWriter:
    """Never waits for Kafka. `ranking_slates` counts what Kafka took, what was dropped before and what failed after
    sending; `ranking_logged_requests` what the request log kept and dropped. For one thread.
    """

    def __init__(
        self, bootstrap_servers: str | None, topic: str, metrics: SlateMetrics, requests: RequestLogWriter | None
    ) -> None:
        """Without `bootstrap_servers` slates go to the request log alone."""
        self._topic = topic
        self._metrics = metrics
        self._requests = requests
        self._down = False
        self._batch: list[LoggedRequest] = []
        self._producer = None if bootstrap_servers is None else Producer(self._settings(bootstrap_servers))

    @property
    def connected(self) -> bool:
        """Whether the broker answers, as far as this client knows."""
        return not self._down

    def write(self, draft: SlateDraft) -> None:
        """Sends the slate and keeps it for the request log, which takes it by `keep`, or once `MAX_BATCH` wait."""
        try:
            record = to_record(draft)
            logged = LoggedRequest(record=record, value=to_json(record))
        except Exception as error:  # noqa: BLE001 - a slate that cannot be logged is counted and ends nothing
            self._count_dropped()
            _log.warning("slate %s not logged: %s", draft.record.request_id, type(error).__name__)
            return
        self._send(logged)
        if self._requests is not None:
            self._batch.append(logged)
        if len(self._batch) >= MAX_BATCH:
            self.keep()

    def keep(self) -> None:
        """Has the request log take what was written; without anything new it prunes when that is due."""
        batch, self._batch = self._batch, []
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

    def poll(self) -> None:
        """Hears from Kafka what became of slates, and whether it answers; to be called all the time."""
        if self._producer is not None:
            self._producer.poll(0)

    def close(self) -> None:
        """Sends what is queued: for at most `FLUSH_S`, or hardly waiting when Kafka does not answer."""
        self.keep()
        unsent = 0 if self._producer is None else self._producer.flush(FLUSH_S / 10 if self._down else FLUSH_S)
        if unsent:
            self._metrics.slates.labels("dropped").inc(unsent)
            _log.warning("%d slates were not sent before the end", unsent)
        if self._requests is not None:
            self._requests.close()

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

    def _send(self, logged: LoggedRequest) -> None:
        if self._producer is None:
            return
        try:
            key = logged.record.user_id.encode()
            self._producer.produce(self._topic, logged.value, key, on_delivery=self._delivered)
        except Exception as error:  # noqa: BLE001 - a slate that cannot be sent is counted and ends nothing
            self._metrics.slates.labels("dropped").inc()
            _log.warning("slate %s not sent: %s", logged.record.request_id, type(error).__name__)

    def _count_dropped(self) -> None:
        if self._producer is not None:
            self._metrics.slates.labels("dropped").inc()
        if self._requests is not None:
            self._metrics.logged_requests.labels("dropped").inc()

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self._down = False
        self._metrics.slates.labels("sent" if error is None else "failed").inc()

    def _on_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down = True
