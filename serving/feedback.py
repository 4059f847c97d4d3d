"""Events in, for callers without Kafka: checked under the contract, sent, and taken once Kafka acknowledges them."""

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Event, Lock, Thread
from time import perf_counter
from typing import Any

import grpc
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from features.events import SCHEMA_VERSION, ContractError, parse_event
from serving import ranking_pb2 as pb
from serving.call_error import CallError
from serving.metrics import Metrics

MAX_QUEUED = 50_000
"""Events under way to Kafka; beyond, they are refused at once, to be sent again."""
DELIVERY_TIMEOUT_MS = 10_000
"""After it an event that Kafka has not acknowledged is given up: no caller waits longer."""


class _Batch:
    """What became of the events of one call. `done` is set when Kafka has answered for all of them."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.broken: dict[int, str] = {}
        self.done: Future[None] = Future()
        self._answers: dict[int, str | None] = {}
        self._lock = Lock()
        self._left = events

    def settle(self, index: int, why: str | None, *, broken: bool = False) -> None:
        """Kafka has taken an event, or why it has not, or why it was not sent."""
        with self._lock:
            if broken:
                self.broken[index] = str(why)
            else:
                self._answers[index] = why
            self._left -= 1
            last = self._left == 0
        if last:
            self.done.set_result(None)

    def unacknowledged(self) -> dict[int, str]:
        """Why not, of the events that may be sent again as they are."""
        with self._lock:
            sent = [index for index in range(self.events) if index not in self.broken]
            answers = {index: self._answers.get(index, "Kafka did not acknowledge it in time") for index in sent}
        return {index: why for index, why in answers.items() if why is not None}


class Feedback:
    """Sends events to the events topic and waits for Kafka without blocking the event loop."""

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        metrics: Metrics,
        clock_ms: Callable[[], int],
        erased: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`erased` says of which users nothing is taken (`serving.door`)."""
        self._topic = topic
        self._erased = erased
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._stop = Event()
        settings: dict[str, Any] = {
            "bootstrap.servers": bootstrap_servers,
            # Acknowledged by all replicas in sync, once and in order however often librdkafka retries.
            "enable.idempotence": True,
            "acks": "all",
            # The streaming producer's, so that a user's events stay in order in one partition whoever sends them.
            "partitioner": "murmur2_random",
            "compression.type": "lz4",
            "linger.ms": 2,
            "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
            "queue.buffering.max.messages": MAX_QUEUED,
            "reconnect.backoff.max.ms": 2_000,
            "log_level": 0,
        }
        self._producer = Producer(settings)
        self._checks = ThreadPoolExecutor(1, thread_name_prefix="feedback-check")
        self._thread = Thread(target=self._poll, name="feedback", daemon=True)
        self._thread.start()

    async def take(self, request: pb.FeedbackRequest, timeout_s: float) -> pb.FeedbackResponse:
        """Takes the events as far as Kafka acknowledges them within the time.

        Raises `CallError` UNAVAILABLE when events keep the contract and Kafka took none of them.
        """
        if not request.events:
            return pb.FeedbackResponse()
        until_s = perf_counter() + timeout_s
        batch = await asyncio.get_running_loop().run_in_executor(self._checks, self._send, request.events)
        await asyncio.wait({asyncio.wrap_future(batch.done)}, timeout=max(until_s - perf_counter(), 0.0))
        again = batch.unacknowledged()
        accepted = batch.events - len(batch.broken) - len(again)
        fates = {"accepted": accepted, "refused": len(batch.broken), "unacknowledged": len(again)}
        for fate, events in fates.items():
            self._metrics.feedback_events.labels(fate).inc(events)
        if again and not accepted:
            raise CallError(grpc.StatusCode.UNAVAILABLE, f"Kafka took none of the events: {again[min(again)]}")
        refused = [
            pb.EventRefusal(index=index, reason=batch.broken.get(index) or f"{again[index]}; send it again.")
            for index in sorted({*batch.broken, *again})
        ]
        for refusal in refused:
            refusal.retry = refusal.index in again
        return pb.FeedbackResponse(accepted=accepted, refused=refused)

    def close(self) -> None:
        """Ends the thread and gives up what is under way: no caller waits any more."""
        self._checks.shutdown(wait=True, cancel_futures=True)
        self._stop.set()
        self._thread.join(timeout=2)
        self._producer.purge()
        self._producer.flush(0.5)

    def _send(self, events: Sequence[pb.UserEvent]) -> _Batch:
        batch = _Batch(len(events))
        for index, event in enumerate(events):
            try:
                checked = parse_event(event_json(event), self._clock_ms())
            except ContractError as error:
                batch.settle(index, str(error), broken=True)
                continue
            if self._erased(checked.user_id):
                batch.settle(index, "user_id: this user was erased; nothing of them is taken.", broken=True)
                continue
            try:
                key, on_delivery = checked.user_id.encode(), partial(_settle, batch, index)
                self._producer.produce(self._topic, checked.to_json(), key, on_delivery=on_delivery)
            except BufferError:
                batch.settle(index, "too many events are under way to Kafka")
            except KafkaException as error:
                batch.settle(index, f"Kafka did not take it ({error.args[0].name()})")
        return batch

    def _poll(self) -> None:
        while not self._stop.is_set():
            self._producer.poll(0.1)


def _settle(batch: _Batch, index: int, error: KafkaError | None, _: Message) -> None:
    batch.settle(index, None if error is None else f"Kafka did not take it ({error.name()})")


def event_json(event: pb.UserEvent) -> bytes:
    """The event as the contract reads it: what is empty or was not set is absent."""
    texts: Sequence[str] = (
        "event_id",
        "event_type",
        "user_id",
        "item_id",
        "category",
        "creator_id",
        "request_id",
        "device",
    )
    fields: dict[str, str | int] = {name: got for name in texts if (got := getattr(event, name))}
    fields |= {name: getattr(event, name) for name in ("position", "watch_ms", "duration_ms") if event.HasField(name)}
    fields |= {"event_time_ms": event.event_time_ms, "schema_version": SCHEMA_VERSION}
    return json.dumps(fields).encode()
