"""The online writer: tile and interaction topics into the online store.

    python -m streaming.writer --bootstrap-servers B --feature-repo DIR --metrics-port P

Rows and the offsets they came from are written in one transaction, and a writer that starts reads on from the store's
offsets; those it commits to Kafka serve to show the lag. Rows are absolute and idempotent, so nothing is lost or
counted twice whoever is killed when. While the store is away the writer holds its batch and tries again. A record
that is no row can only come from a broken producer of our own topics: the writer stops at it and names its offset,
rather than leave a hole that nobody sees.
"""

import gc
import logging
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from prometheus_client import start_http_server

from features.backends import Backend, BackendError, Offsets, StoreUnavailableError, open_backend
from features.clock import wall_clock_ms
from features.keyed_sets import InteractionError, parse_interaction
from features.ledger import LedgerError, Outcome, ledger_rows, reason_of, source_of
from features.names import MS_PER_SECOND
from features.repo import FeatureRepoError, store_location
from features.tile_rows import TileError, family_named, parse_tiles
from streaming.writer_config import WriterConfig, parse_flags
from streaming.writer_metrics import WriterMetrics

logger = logging.getLogger("streaming.writer")

POLL_S = 0.2
"""How long an idle writer waits for a record before it looks whether it should stop."""
COMMIT_EVERY_S = 1.0
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 5.0
RENEW_S = 1.0
"""Pause before a new consumer takes the place of one that Kafka has fenced."""
LEAVE_S = 5.0
"""How long a stop waits for Kafka to answer."""
COLLECT_EVERY = 50_000
"""Python looks for cycles after so many new objects. A batch is tens of thousands of tuples that hold none, and with
its default of 700 an eighth of the writer's time went into looking."""
Answer = TypeVar("Answer")


class WriterError(RuntimeError):
    """What the writer cannot go on after; its text says what a person must do."""


class _FencedError(Exception):
    """The consumer in use is of no use any more."""


class Stopped(Exception):  # noqa: N818  not an error
    """The writer was asked to stop while it waited for the store."""


class Writer:
    """Reads the topics of one configuration and writes them to one store until it is told to stop."""

    def __init__(
        self,
        config: WriterConfig,
        open_store: Callable[[], Backend],
        now_ms: Callable[[], int],
        metrics: WriterMetrics,
        stop: threading.Event,
    ) -> None:
        """`now_ms` is the clock of retention and freshness; `stop` ends `run` after the batch in hand."""
        self._config = config
        self._now_ms = now_ms
        self._metrics = metrics
        self._stop = stop
        self._families = {topic: family_named(name) for topic, name in config.families.items()}
        self._written: dict[tuple[str, int], int] = {}
        self._commit_at_s = 0.0
        self._store = self._patiently(open_store)

    def run(self) -> None:
        """Writes until told to stop. Raises `WriterError` at a record that is no row, or offsets that are gone."""
        sweeper = threading.Thread(target=self._sweep, name="expiry", daemon=True)
        sweeper.start()
        try:
            while not self._stop.is_set():
                self._consume()
        except Stopped:
            logger.warning("stopped while the store was away: the batch in hand is read again at the next start")
        finally:
            self._stop.set()
            sweeper.join()
            self._store.close()

    def _consume(self) -> None:
        """Writes with one Kafka consumer until told to stop, or until Kafka has done with it for good.

        A broker that was killed may forget a member and then fence it as a stranger with the same lasting name. A new
        consumer reads on from the store's offsets.
        """
        consumer = Consumer(_consumer_settings(self._config))
        consumer.subscribe(self._config.subscribed, on_assign=self._resume, on_revoke=self._release)
        try:
            while not self._stop.is_set():
                messages = self._next_batch(consumer)
                if messages:
                    self._write(messages)
                self._report(consumer)
        except _FencedError as error:
            logger.warning("Kafka has done with this consumer, a new one takes over: %s", error)
            self._stop.wait(RENEW_S)
        finally:
            self._leave(consumer)

    def _leave(self, consumer: Consumer) -> None:
        """Commits and leaves the group: courtesies, since the store's offsets are the ones that count.

        Both wait for ever for a broker that hangs. They get `LEAVE_S`; after that Kafka misses the member by itself.
        """

        def leave() -> None:
            self._commit(consumer)
            consumer.close()

        leaving = threading.Thread(target=leave, name="leave", daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)
        if leaving.is_alive():
            logger.warning("Kafka has not answered for %.0f s: gone without leaving the group", LEAVE_S)

    def _next_batch(self, consumer: Consumer) -> list[Message]:
        first = consumer.poll(POLL_S)
        if first is None:
            return []
        more = consumer.consume(self._config.max_batch - 1, self._config.linger_ms / MS_PER_SECOND)
        return [message for message in (first, *more) if self._is_record(message)]

    def _is_record(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        self._metrics.kafka_errors.inc()
        if error.fatal() or error.code() == KafkaError._FATAL:
            raise _FencedError(error.str())
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise WriterError(
                f"cannot read on: {error.str()}. The store's offsets are not those of this topic: if the topic was "
                "deleted and made again, or its records are gone, rebuild the store (run reprocess)."
            )
        logger.warning("Kafka: %s", error.str())
        return False

    def _write(self, messages: Sequence[Message]) -> None:
        began_s = time.monotonic()
        by_topic = sorted(messages, key=lambda message: message.topic() or "")
        for topic, of_topic in groupby(by_topic, key=lambda message: message.topic() or ""):
            self._write_topic(topic, list(of_topic))
        self._metrics.batch_seconds.observe(time.monotonic() - began_s)

    def _write_topic(self, topic: str, messages: Sequence[Message]) -> None:
        offsets: dict[tuple[str, int], int] = {}
        for message in messages:
            place = (topic, _partition(message))
            offsets[place] = max(offsets.get(place, 0), _offset(message) + 1)
        present = [message for message in messages if message.value() is not None]
        self._count(topic, "tombstone", len(messages) - len(present))
        if topic in self._families:
            self._write_tiles(topic, present, offsets)
        elif topic == self._config.topics.interactions:
            # Without the offsets, which the interactions bring: written twice, accounts stay the same.
            self._account(topic, present, {})
            self._write_interactions(topic, present, offsets)
        else:
            self._account(topic, present, offsets)
        self._written.update(offsets)

    def _write_tiles(self, topic: str, messages: Sequence[Message], offsets: Offsets) -> None:
        family = self._families[topic]
        batch = self._parsed(messages, lambda values: parse_tiles(family, values))
        kept = batch.unexpired(self._now_ms())
        self._count(topic, "expired", len(batch.keys) - len(kept.keys))
        refused = self._patiently(lambda: self._store.write_batch(kept, offsets))
        self._count(topic, "erased", refused)
        self._written_rows(topic, len(kept.keys) - refused, kept.newest_event_ms)

    def _write_interactions(self, topic: str, messages: Sequence[Message], offsets: Offsets) -> None:
        interactions = self._parsed(messages, lambda values: [parse_interaction(value) for value in values])
        refused = self._patiently(lambda: self._store.write_interactions(interactions, offsets))
        self._count(topic, "erased", refused)
        newest_ms = max((row.event_time_ms for row in interactions), default=None)
        self._written_rows(topic, len(interactions) - refused, newest_ms)

    def _account(self, topic: str, messages: Sequence[Message], offsets: Offsets) -> None:
        """Writes what became of the records of the events topic that these messages stand for."""
        outcome = self._config.outcomes[topic]
        places = self._parsed(messages, lambda values: [source_of(value) for value in values])
        self._patiently(lambda: self._store.write_ledger(ledger_rows(outcome, places), offsets))
        self._metrics.outcomes.labels(outcome).inc(len(places))
        if outcome is Outcome.DEAD:
            reasons = self._parsed(messages, lambda values: Counter(reason_of(value) for value in values))
            for reason, times in reasons.items():
                self._metrics.dead_letters.labels(reason).inc(times)

    def _parsed(self, messages: Sequence[Message], parse: Callable[[list[bytes]], Answer]) -> Answer:
        values = [message.value() or b"" for message in messages]
        try:
            return parse(values)
        except (TileError, InteractionError, LedgerError):
            for message, value in zip(messages, values, strict=True):
                self._refuse_malformed(message, value, parse)
            raise

    def _refuse_malformed(self, message: Message, value: bytes, parse: Callable[[list[bytes]], object]) -> None:
        try:
            parse([value])
        except (TileError, InteractionError, LedgerError) as error:
            self._metrics.malformed.labels(message.topic()).inc()
            place = f"{message.topic()} partition {message.partition()} offset {message.offset()}"
            raise WriterError(
                f"{place} is no row of this version: {error} Find the job that wrote it, then write its topics "
                "anew (run reprocess)."
            ) from error

    def _written_rows(self, topic: str, rows: int, newest_ms: int | None) -> None:
        self._count(topic, "written", rows)
        if newest_ms is not None:
            self._metrics.freshness_ms.labels(topic).set(self._now_ms() - newest_ms)

    def _count(self, topic: str, outcome: str, rows: int) -> None:
        if rows:
            self._metrics.rows.labels(topic, outcome).inc(rows)

    def _patiently(self, attempt: Callable[[], Answer]) -> Answer:
        """Tries until the store answers, ever more slowly. Raises `Stopped` when told to stop meanwhile."""
        wait_s = FIRST_RETRY_S
        while True:
            try:
                answer = attempt()
            except StoreUnavailableError as error:
                self._metrics.store_errors.inc()
                self._metrics.store_up.set(0)
                logger.warning("%s Next attempt in %.2f s.", error, wait_s)
                if self._stop.wait(wait_s):
                    raise Stopped from error
                wait_s = min(2 * wait_s, LAST_RETRY_S)
            else:
                self._metrics.store_up.set(1)
                return answer

    def _resume(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        """Reads each assigned partition on from the store's offset."""
        stored = {topic: self._stored_offsets(topic) for topic in {place.topic for place in assigned}}
        for place in assigned:
            offset = stored[place.topic].get(place.partition)
            place.offset = OFFSET_BEGINNING if offset is None else offset
            if offset is not None:
                self._written[place.topic, place.partition] = offset
            logger.info("reading %s partition %d from offset %s", place.topic, place.partition, offset or "the first")
        consumer.assign(assigned)
        self._metrics.partitions.set(len(assigned))

    def _release(self, consumer: Consumer, revoked: list[TopicPartition]) -> None:
        """Lets partitions go: their rows are stored, since a batch is written before the next is asked for."""
        for place in revoked:
            self._written.pop((place.topic, place.partition), None)
            self._metrics.lag_rows.remove(place.topic, str(place.partition))
        consumer.unassign()
        self._metrics.partitions.set(0)

    def _stored_offsets(self, topic: str) -> dict[int, int]:
        return self._patiently(lambda: self._store.offsets(topic))

    def _report(self, consumer: Consumer) -> None:
        now_s = time.monotonic()
        if now_s < self._commit_at_s:
            return
        self._commit_at_s = now_s + COMMIT_EVERY_S
        self._commit(consumer)
        for place in consumer.assignment():
            offset = self._written.get((place.topic, place.partition))
            _, end = consumer.get_watermark_offsets(place, cached=True)
            if offset is not None and end >= 0:
                self._metrics.lag_rows.labels(place.topic, place.partition).set(max(end - offset, 0))

    def _commit(self, consumer: Consumer) -> None:
        mine = {(place.topic, place.partition) for place in consumer.assignment()}
        offsets = [TopicPartition(*place, offset) for place, offset in self._written.items() if place in mine]
        if not offsets:
            return
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            # The store's offsets are the ones that count.
            logger.warning("cannot commit offsets to Kafka: %s", error)

    def _sweep(self) -> None:
        while not self._stop.wait(self._config.expire_every_s):
            try:
                logger.info("removed %d expired tiles", self._store.expire(self._now_ms()))
            except StoreUnavailableError as error:
                self._metrics.store_errors.inc()
                logger.warning("expiry waits for its next turn: %s", error)


def _consumer_settings(config: WriterConfig) -> dict[str, str | int | bool]:
    settings: dict[str, str | int | bool] = {
        "bootstrap.servers": config.bootstrap_servers,
        "group.id": config.group,
        "enable.auto.commit": False,
        # The store says where to read on; an offset that is gone must not be passed over in silence.
        "auto.offset.reset": "error",
        "max.poll.interval.ms": 600_000,
        "session.timeout.ms": 10_000,
        "topic.metadata.refresh.interval.ms": 2_000,
        "queued.max.messages.kbytes": 32_768,
    }
    if config.instance is not None:
        settings["group.instance.id"] = config.instance
    return settings


def _partition(message: Message) -> int:
    partition = message.partition()
    assert partition is not None  # a record has one; only errors lack it
    return partition


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None  # as above
    return offset


def main(arguments: list[str] | None = None) -> int:
    """Runs one writer until SIGTERM or SIGINT: 0 then, 1 when it cannot go on, 2 for bad flags."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = parse_flags(arguments)
        location = store_location(config.feature_repo)
        metrics = WriterMetrics()
        server, _ = start_http_server(config.metrics_port, addr="127.0.0.1", registry=metrics.registry)
    except (ValueError, FeatureRepoError, OSError) as error:
        sys.stderr.write(f"online writer: {error}\n")
        return 2
    logger.info("metrics on http://127.0.0.1:%d/metrics, store %s", server.server_port, location)
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)
    fixed_ms = config.fixed_now_ms
    now_ms = wall_clock_ms if fixed_ms is None else (lambda: fixed_ms)
    try:
        Writer(config, lambda: open_backend(location, config.topics.version), now_ms, metrics, stop).run()
    except Stopped:
        return 0
    except (WriterError, BackendError) as error:
        sys.stderr.write(f"online writer: {error}\n")
        return 1
    finally:
        server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
