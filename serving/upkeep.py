"""The thread that keeps the view current: item tiles and catalogue records in, finalised features out."""

import logging
from collections.abc import Callable
from threading import Event, Thread

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
POLL_S = 0.05
_FEATURES, _CATALOGUE = "item features", "catalogue"


class Upkeep:
    """Owns the item snapshot and the tails of its topics.

    The snapshot starts from the store's rows and the offsets stored with them. Without the store it is read from
    the beginning of the compacted tile topic, which holds the same rows; without Kafka it stays as the store had it.
    """

    def __init__(
        self,
        *,
        live: Live,
        open_store: Callable[[], Backend],
        bootstrap_servers: str | None,
        topics: Topics,
        clock_ms: Callable[[], int],
    ) -> None:
        self._live = live
        self._open_store = open_store
        self._bootstrap_servers = bootstrap_servers
        self._topics = topics
        self._clock_ms = clock_ms
        self._snapshot = ItemSnapshot()
        self._stop = Event()
        self._thread = Thread(target=self._run, name="upkeep", daemon=True)
        self._due_ms = {"touched": 0, "all": 0, "check": 0}
        self.tiles_refused = 0
        """Records of the tile topic that were no tiles."""

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
        if self._bootstrap_servers is None:
            tails = []
        else:
            tile_topic = self._topics.tiles(ITEM_TILES.name)
            items = TopicTail(self._bootstrap_servers, self._topics.items)
            tails = [items, TopicTail(self._bootstrap_servers, tile_topic, offsets)]
        while not self._stop.is_set():
            try:
                self._step(tails)
            except Exception:  # noqa: BLE001 - upkeep goes on with the next records; requests use the last view
                _log.exception("a step of the upkeep failed")
                self._stop.wait(1.0)
        for tail in tails:
            tail.close()

    def _load(self) -> dict[int, int]:
        """Fills the snapshot from the store and returns where the tile topic goes on."""
        now_ms = self._clock_ms()
        try:
            with self._open_store() as store:
                # Offsets first: rows that come between the two reads are read twice, never missed.
                offsets = store.offsets(self._topics.tiles(ITEM_TILES.name))
                self._snapshot.load(store.read_tile_rows(ITEM_TILES.name, now_ms - DAY_RETENTION_MS))
        except Exception as error:  # noqa: BLE001 - without the store the topic is read from its beginning
            _log.warning("item features are read from Kafka alone, the store failed: %s", error)
            if self._bootstrap_servers is None:
                self._live.note(_FEATURES, f"item features could not be loaded: {error}")
            return {}
        _log.info("item features loaded from %d tile rows", len(self._snapshot))
        return offsets

    def _step(self, tails: list[TopicTail]) -> None:
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

    def _take_tile(self, value: bytes | None) -> None:
        if value is None:
            return
        try:
            self._snapshot.upsert(parse_tile(ITEM_TILES, value))
        except TileError as error:
            self.tiles_refused += 1
            _log.warning("tile topic: %s", error)
