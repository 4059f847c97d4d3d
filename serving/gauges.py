"""The gauges of the service's parts: asked each second, not told by the parts."""

from collections.abc import Callable
from typing import Protocol

from models.item_table import ItemTable
from serving.bundles import BundleWatcher
from serving.follower import Follower
from serving.live import Live
from serving.metrics import Metrics


class Connection(Protocol):
    """A part that writes to Kafka (`serving.slate_log.SlateLog`)."""

    @property
    def connected(self) -> bool:
        """Whether the broker answers."""
        ...


class Gauges:
    """Reads the parts and sets what they say."""

    def __init__(
        self,
        *,
        metrics: Metrics,
        live: Live,
        watcher: BundleWatcher,
        follower: Follower,
        slates: Connection | None,
        clock_ms: Callable[[], int],
    ) -> None:
        self._metrics = metrics
        self._live = live
        self._watcher = watcher
        self._follower = follower
        self._slates = slates
        self._clock_ms = clock_ms
        self._catalogue: ItemTable | None = None
        self._catalogue_since_ms = 0
        metrics.start_time_seconds.set(clock_ms() / 1000)

    def refresh(self) -> None:
        """Sets every gauge to what is true now. Those of the view are absent before the first bundle."""
        metrics, view, now_ms = self._metrics, self._live.view, self._clock_ms()
        if view is not None:
            if view.item_table is not self._catalogue:
                self._catalogue, self._catalogue_since_ms = view.item_table, now_ms
            metrics.catalogue_items.set(len(view.item_table))
            metrics.catalogue_age_seconds.set((now_ms - self._catalogue_since_ms) / 1000)
            metrics.snapshot_age_seconds.set((now_ms - view.snapshot_instant_ms) / 1000)
        metrics.bundles_refused.set(self._watcher.refused)
        metrics.bundles_loaded.set(len(self._watcher.loaded))
        metrics.on_earlier_champion.set(self._watcher.on_earlier_champion)
        metrics.experiments_refused.set(self._watcher.experiments_refused)
        metrics.records_refused.labels("items").set(self._live.items_refused)
        metrics.records_refused.labels("tiles").set(self._follower.tiles_refused)
        for topic, connected in self._follower.connected.items():
            metrics.kafka_connected.labels(topic).set(connected)
        if self._slates is not None:
            metrics.kafka_connected.labels("slates").set(self._slates.connected)
