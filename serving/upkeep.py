"""The thread that keeps the view current: item tiles and catalogue records in, finalised features out."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Event, Thread

from features import specs
from features.backends import Backend
from features.names import MS_PER_MINUTE, MS_PER_SECOND, Topics
from features.tile_rows import TileError, parse_tile
from features.tiles import DAY_RETENTION_MS, ITEM_TILES
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.topic_tail import TopicTail

_log = logging.getLogger(__name__)

TOUCHED_EVERY_MS = MS_PER_SECOND
ALL_EVERY_MS = MS_PER_MINUTE
CHECK_EVERY_MS = 5 * MS_PER_SECOND
FOLLOW_EVERY_MS = MS_PER_SECOND
POLL_S = 0.05
_FEATURES, _CATALOGUE = "item features", "catalogue"


class Upkeep:
    """Owns the item snapshot and the tails of its topics.

    The snapshot starts from the store's rows and the offsets stored with them. Without the store it is read from
    the beginning of the compacted tile topic, which holds the same rows; without Kafka it stays as the store had it.
    When the store names another version of the features (`Backend.version_for`), the snapshot starts anew from that.
    """

    def __init__(
        self,
        *,
        live: Live,
        open_store: Callable[[str], Backend],
        bootstrap_servers: str | None,
        topics: Topics,
        clock_ms: Callable[[], int],
    ) -> None:
        """`open_store` opens a version of the store by its name; topics of a version of their own stay as they are."""
        self._live = live
        self._open_store = open_store
        self._bootstrap_servers = bootstrap_servers
        self._topics = topics
        self._clock_ms = clock_ms
        self._snapshot = ItemSnapshot()
        self._stop = Event()
        self._thread = Thread(target=self._run, name="upkeep", daemon=True)
        self._due_ms = {"touched": 0, "all": 0, "check": 0, "follow": 0}
        self._follows = topics.version == specs.version()
        self._version = specs.version()
        self._store: Backend | None = None
        self.tiles_refused = 0
        """Records of the tile topic that were no tiles."""
        self.connected: Mapping[str, bool] = {}
        """Whether the broker answers for the topics `items` and `tiles`; empty without Kafka."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, waiting for its step to end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        offsets = self._load()
        self._finalise_all()
        tails = self._tails(offsets)
        while not self._stop.is_set():
            try:
                tails = self._step(tails)
            except Exception:  # noqa: BLE001 - upkeep goes on with the next records; requests use the last view
                _log.exception("a step of the upkeep failed")
                self._stop.wait(1.0)
        for tail in tails:
            tail.close()
        if self._store is not None:
            self._store.close()

    def _tails(self, offsets: dict[int, int]) -> list[TopicTail]:
        if self._bootstrap_servers is None:
            return []
        items = TopicTail(self._bootstrap_servers, self._topics.items)
        return [items, TopicTail(self._bootstrap_servers, self._topics.tiles(ITEM_TILES.name), offsets)]

    def _load(self) -> dict[int, int]:
        """Fills the snapshot from the store and returns where the tile topic goes on."""
        try:
            return self._load_version(self._named_version())
        except Exception as error:  # noqa: BLE001 - without the store the topic is read from its beginning
            _log.warning("item features are read from Kafka alone, the store failed: %s", error)
            if self._bootstrap_servers is None:
                self._live.note(_FEATURES, f"item features could not be loaded: {error}")
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

    def _followed(self, tails: list[TopicTail]) -> list[TopicTail]:
        """The tails to read from now on: new ones where the store names another version. The old go on till then."""
        try:
            version = self._named_version()
            if version == self._version:
                return tails
            offsets = self._load_version(version)
        except Exception as error:  # noqa: BLE001 - the next turn tries again
            _log.warning("cannot see which version of the features to use: %s", error)
            return tails
        self._finalise_all()
        for tail in tails:
            tail.close()
        return self._tails(offsets)

    def _step(self, tails: list[TopicTail]) -> list[TopicTail]:
        """Takes what has come and does what is due; returns the tails of the next step."""
        if not tails:
            self._stop.wait(POLL_S)
        else:
            items, tiles = tails
            self._live.apply_items(record.value() for record in items.poll(0))
            for record in tiles.poll(POLL_S):
                self._take_tile(record.value())
        now_ms = self._clock_ms()
        if self._due(now_ms, "check", CHECK_EVERY_MS):
            self._check(tails)
        if self._due(now_ms, "all", ALL_EVERY_MS):
            self._finalise_all()
        elif self._snapshot.touched and self._due(now_ms, "touched", TOUCHED_EVERY_MS):
            self._live.apply_snapshot(self._snapshot.finalise_touched(now_ms))
        return self._followed(tails) if self._due(now_ms, "follow", FOLLOW_EVERY_MS) else tails

    def _due(self, now_ms: int, what: str, every_ms: int) -> bool:
        if now_ms < self._due_ms[what]:
            return False
        self._due_ms[what] = now_ms + every_ms
        return True

    def _finalise_all(self) -> None:
        now_ms = self._clock_ms()
        self._due_ms["all"] = now_ms + ALL_EVERY_MS
        self._live.apply_snapshot(self._snapshot.finalise_all(now_ms))

    def _check(self, tails: list[TopicTail]) -> None:
        for tail, part in zip(tails, (_CATALOGUE, _FEATURES), strict=False):
            tail.check()
            why = None if tail.connected else f"the {part} may be behind: the topic {tail.topic} cannot be read"
            self._live.note(part, why)
        self.connected = dict(zip(("items", "tiles"), (tail.connected for tail in tails), strict=False))

    def _take_tile(self, value: bytes | None) -> None:
        if value is None:
            return
        try:
            self._snapshot.upsert(parse_tile(ITEM_TILES, value))
        except TileError as error:
            self.tiles_refused += 1
            _log.warning("tile topic: %s", error)
