"""The thread that keeps a worker's view current: what the keeper publishes, and the catalogue's topic."""

import logging
from collections.abc import Callable, Mapping
from threading import Event, Thread

from serving import priority
from serving.live import Live
from serving.snapshot_files import SnapshotReader
from serving.topic_tail import TopicTail

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
"""Also how long records of the catalogue are gathered: each change of it costs a new item table."""
CHECK_EVERY_S = 5.0
_FEATURES, _CATALOGUE = "item features", "catalogue"


class Follower:
    """Brings item features and catalogue records to the view. The catalogue does not depend on the keeper."""

    def __init__(
        self,
        *,
        live: Live,
        snapshots: SnapshotReader,
        items: TopicTail | None,
        clock_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        """`items` is the tail of the catalogue's topic; None without Kafka."""
        self._live = live
        self._snapshots = snapshots
        self._items = items
        self._clock_ms = clock_ms
        self._monotonic_s = monotonic_s
        self._check_s = monotonic_s()
        self._instant_ms: int | None = None
        self._stop = Event()
        self._thread = Thread(target=self._run, name="follower", daemon=True)

    @property
    def tiles_refused(self) -> int:
        """Records of the tile topic that were no tiles, as the keeper counts them."""
        return self._snapshots.report.tiles_refused

    @property
    def connected(self) -> Mapping[str, bool]:
        """Whether the broker answers for the topics `items` and, as the keeper says, `tiles`; empty without Kafka."""
        tiles = self._snapshots.report.connected
        by_topic = {"items": None if self._items is None else self._items.connected, "tiles": tiles}
        return {topic: connected for topic, connected in by_topic.items() if connected is not None}

    @property
    def settled(self) -> bool:
        """Whether item features have come, or need not be waited for any longer."""
        return self._snapshots.found or self._snapshots.silent_s is not None

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, waiting for its step to end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def step(self) -> None:
        """Takes what has come."""
        if self._items is None:
            self._stop.wait(LOOK_EVERY_S)
        else:
            self._live.apply_items(record.value() for record in self._items.poll(LOOK_EVERY_S))
            self._check(self._items)
        features = self._snapshots.look()
        if features is not None:
            self._instant_ms = features.instant_ms
            self._live.apply_snapshot(features)
        self._live.note(_FEATURES, self._why_behind())

    def _run(self) -> None:
        priority.lower(priority.LOW)
        while not self._stop.is_set():
            try:
                self.step()
            except Exception:  # noqa: BLE001 - it goes on with what comes next; requests use the last view
                _log.exception("a step of the follower failed")
                self._stop.wait(1.0)
        if self._items is not None:
            self._items.close()

    def _check(self, items: TopicTail) -> None:
        if self._monotonic_s() < self._check_s:
            return
        self._check_s = self._monotonic_s() + CHECK_EVERY_S
        items.check()
        behind = f"the catalogue may be behind: the topic {items.topic} cannot be read"
        self._live.note(_CATALOGUE, None if items.connected else behind)

    def _why_behind(self) -> str | None:
        if self._snapshots.silent_s is None:
            return self._snapshots.report.note
        if self._instant_ms is None:
            return "there are no item features: their keeper has published none"
        age_s = max(self._clock_ms() - self._instant_ms, 0) / 1000
        return f"the item features are {age_s:.0f} s old: their keeper does not run"
