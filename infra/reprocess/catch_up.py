"""Waiting until a rebuilt version has everything that the running one has."""

import time
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer

from features.backends import Backend
from features.names import Topics
from infra.kafka import Offsets, committed_offsets, derived_topics, end_offsets, records_left

POLL_S = 0.5
SAY_EVERY_S = 5.0
NEAR_S = 30.0
"""A pass over the newest records that is done in this time is the last: a checkpoint or two of the stream job, which
commits its offsets with its checkpoints."""
STALLED_S = 600.0
"""Without a record's progress for so long, somebody must look: the longest time a checkpoint may take."""


class StalledError(RuntimeError):
    """Which program makes no progress."""


class CatchUp:
    """How far the stream job and the writer of one version have come."""

    def __init__(self, bootstrap_servers: str, topics: Topics, store: Backend, say: Callable[[str], None]) -> None:
        """`store` is the version's own."""
        self._topics = topics
        self._store = store
        self._say = say
        group = f"millrace-stream-{topics.version}"
        # Its offsets are only looked at: nothing is subscribed to.
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap_servers, "group.id": group, "enable.auto.commit": False, "log_level": 0}
        )
        self._derived = derived_topics(topics)

    def wait(self, check: Callable[[], None]) -> None:
        """Returns when every event of a moment ago is counted and in the store.

        `check` is called again and again and may raise what ends the waiting. Raises `StalledError` and
        `KafkaException`.
        """
        self._until_near("events not counted yet", [self._topics.events], self._counted, check)
        self._until_near("rows not in the store yet", self._derived, self._stored, check)

    def _until_near(
        self, what: str, topics: Sequence[str], reached: Callable[[Offsets], Offsets], check: Callable[[], None]
    ) -> None:
        """Passes over the records that stand there now, until one pass is short: live traffic never stands still."""
        while True:
            began_s = time.monotonic()
            ends = end_offsets(self._consumer, topics)
            self._pass(what, ends, reached, check)
            if time.monotonic() - began_s < NEAR_S:
                return

    def _pass(self, what: str, ends: Offsets, reached: Callable[[Offsets], Offsets], check: Callable[[], None]) -> None:
        least, moved_s, said_s = None, time.monotonic(), float("-inf")
        while (left := records_left(ends, reached(ends))) > 0:
            check()
            now_s = time.monotonic()
            if least is None or left < least:
                least, moved_s = left, now_s
            if now_s - moved_s > STALLED_S:
                raise StalledError(f"{left:,} {what}, and no progress for {STALLED_S:.0f} s")
            if now_s - said_s >= SAY_EVERY_S:
                said_s = now_s
                self._say(f"{self._topics.version}: {left:,} {what}")
            time.sleep(POLL_S)

    def _counted(self, ends: Offsets) -> Offsets:
        return committed_offsets(self._consumer, ends)

    def _stored(self, ends: Offsets) -> Offsets:
        """By the store itself, whose offsets are written with the rows: the writer's metric is a second old."""
        topics = {topic for topic, _ in ends}
        return {(topic, p): offset for topic in topics for p, offset in self._store.offsets(topic).items()}

    def close(self) -> None:
        """Lets go of the broker."""
        self._consumer.close()
