"""The keeper's work: item tiles in, finalised item features out."""

import logging
from collections.abc import Callable
from dataclasses import replace
from threading import Event
from typing import Protocol

from features import specs
from features.backends import Backend
from features.names import MS_PER_MINUTE, MS_PER_SECOND, Topics
from features.tile_rows import TileError, parse_tile
from features.tiles import DAY_RETENTION_MS, ITEM_TILES
from serving.item_snapshot import ItemSnapshot, SnapshotFeatures
from serving.snapshot_files import KeeperReport
from serving.topic_tail import TopicTail

_log = logging.getLogger(__name__)

TOUCHED_EVERY_MS = MS_PER_SECOND
ALL_EVERY_MS = MS_PER_MINUTE
CHECK_EVERY_MS = 5 * MS_PER_SECOND
FOLLOW_EVERY_MS = MS_PER_SECOND
BEAT_EVERY_MS = MS_PER_SECOND
POLL_S = 0.05


class Publication(Protocol):
    """Where the features go (`serving.snapshot_files.SnapshotWriter`)."""

    def publish(self, features: SnapshotFeatures) -> None:
        """Takes newly finalised features."""
        ...

    def beat(self, report: KeeperReport) -> None:
        """Makes them visible. A sign of life."""
        ...


class Upkeep:
    """Owns the item snapshot and the tail of its topic.

    The snapshot starts from the store's rows and the offsets stored with them. Without the store it is read from
    the beginning of the compacted tile topic, which holds the same rows; without Kafka it stays as the store had it.
    When the store names another version of the features (`Backend.version_for`), the snapshot starts anew from that.
    """

    def __init__(
        self,
        *,
        publication: Publication,
        open_store: Callable[[str], Backend],
        bootstrap_servers: str | None,
        topics: Topics,
        clock_ms: Callable[[], int],
    ) -> None:
        """`open_store` opens a version of the store by its name; topics of a version of their own stay as they are."""
        self._publication = publication
        self._open_store = open_store
        self._bootstrap_servers = bootstrap_servers
        self._topics = topics
        self._clock_ms = clock_ms
        self._snapshot = ItemSnapshot()
        self._due_ms = {"touched": 0, "all": 0, "check": 0, "follow": 0, "beat": 0}
        self._follows = topics.version == specs.version()
        self._version = specs.version()
        self._store: Backend | None = None
        self._report = KeeperReport()

    def run(self, stop: Event) -> None:
        """Goes on until it is told to stop."""
        offsets = self._load()
        self._finalise_all()
        tail = self._tail(offsets)
        while not stop.is_set():
            try:
                tail = self._step(tail, stop)
            except Exception:  # noqa: BLE001 - upkeep goes on with the next records; requests use the last features
                _log.exception("a step of the upkeep failed")
                stop.wait(1.0)
        if tail is not None:
            tail.close()
        self._close_store()

    def _tail(self, offsets: dict[int, int]) -> TopicTail | None:
        if self._bootstrap_servers is None:
            return None
        return TopicTail(self._bootstrap_servers, self._topics.tiles(ITEM_TILES.name), offsets)

    def _load(self) -> dict[int, int]:
        """Fills the snapshot from the store and returns where the tile topic goes on."""
        try:
            return self._load_version(self._named_version())
        except Exception as error:  # noqa: BLE001 - without the store the topic is read from its beginning
            _log.warning("item features are read from Kafka alone, the store failed: %s", error)
            if self._bootstrap_servers is None:
                self._report = KeeperReport(note=f"item features could not be loaded: {error}")
            return {}

    def _named_version(self) -> str:
        """The version that the store names for this code's specs."""
        if self._store is None:
            self._store = self._open_store(specs.version())
        return self._store.version_for(specs.version())

    def _load_version(self, version: str) -> dict[int, int]:
        topics = replace(self._topics, version=version) if self._follows else self._topics
        with self._open_store(version) as store:
            # Offsets first: rows that come between the two reads are read twice, never missed.
            offsets = store.offsets(topics.tiles(ITEM_TILES.name))
            tiles = store.read_tile_rows(ITEM_TILES.name, self._clock_ms() - DAY_RETENTION_MS)
        self._snapshot.load(tiles)
        self._topics, self._version = topics, version
        _log.info("item features of version %s loaded from %d tile rows", version, len(self._snapshot))
        return offsets

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _followed(self, tail: TopicTail | None) -> TopicTail | None:
        """The tail to read from now on: a new one where the store names another version. The old goes on till then."""
        try:
            version = self._named_version()
            if version == self._version:
                return tail
            offsets = self._load_version(version)
        except Exception as error:  # noqa: BLE001 - the next turn tries again
            _log.warning("cannot see which version of the features to use: %s", error)
            self._close_store()  # to be opened anew: its file may have been replaced
            return tail
        self._finalise_all()
        if tail is not None:
            tail.close()
        return self._tail(offsets)

    def _step(self, tail: TopicTail | None, stop: Event) -> TopicTail | None:
        """Takes what has come and does what is due; returns the tail of the next step."""
        if tail is None:
            stop.wait(POLL_S)
        else:
            for record in tail.poll(POLL_S):
                self._take_tile(record.value())
        now_ms = self._clock_ms()
        if tail is not None and self._due(now_ms, "check", CHECK_EVERY_MS):
            self._check(tail)
        if self._due(now_ms, "all", ALL_EVERY_MS):
            self._finalise_all()
        elif self._snapshot.touched and self._due(now_ms, "touched", TOUCHED_EVERY_MS):
            self._publish(self._snapshot.finalise_touched(now_ms))
        elif self._due(now_ms, "beat", BEAT_EVERY_MS):
            self._publication.beat(self._report)
        return self._followed(tail) if self._due(now_ms, "follow", FOLLOW_EVERY_MS) else tail

    def _due(self, now_ms: int, what: str, every_ms: int) -> bool:
        if now_ms < self._due_ms[what]:
            return False
        self._due_ms[what] = now_ms + every_ms
        return True

    def _finalise_all(self) -> None:
        now_ms = self._clock_ms()
        self._due_ms["all"] = now_ms + ALL_EVERY_MS
        self._publish(self._snapshot.finalise_all(now_ms))

    def _publish(self, features: SnapshotFeatures) -> None:
        self._publication.publish(features)
        self._publication.beat(self._report)

    def _check(self, tail: TopicTail) -> None:
        tail.check()
        behind = f"the item features may be behind: the topic {tail.topic} cannot be read"
        self._report = replace(self._report, note=None if tail.connected else behind, connected=tail.connected)

    def _take_tile(self, value: bytes | None) -> None:
        if value is None:
            return
        try:
            self._snapshot.upsert(parse_tile(ITEM_TILES, value))
        except TileError as error:
            self._report = replace(self._report, tiles_refused=self._report.tiles_refused + 1)
            _log.warning("tile topic: %s", error)
