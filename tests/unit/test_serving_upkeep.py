"""The upkeep follows the version of the features that the store names, with no restart."""

import time
from pathlib import Path
from threading import Event, Thread

import pytest

from features import specs
from features.backends import open_backend
from features.names import Topics
from features.specs import Entity, features_of
from features.tile_rows import TileRow
from features.tiles import DAY_TILE_MS, ITEM_TILES
from serving.item_snapshot import SnapshotFeatures
from serving.snapshot_files import KeeperReport
from serving.upkeep import Upkeep
from tests.conftest import wait_for

PLACE = [feature.name for feature in features_of(Entity.ITEM)].index("item_clicks_7d")


class Seen:
    """Keeps what the upkeep publishes, in the place of files."""

    def __init__(self) -> None:
        self.clicks: list[float] = []
        self.reports: list[KeeperReport] = []

    def publish(self, features: SnapshotFeatures) -> None:
        items = features.by_entity[Entity.ITEM]
        self.clicks.append(float(items.values_XF[items.rows(["i"])][0, PLACE]))

    def beat(self, report: KeeperReport) -> None:
        self.reports.append(report)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _write(store: str, version: str, clicks: int) -> None:
    values = tuple(clicks if column.name == "clicks" else 0 for column in ITEM_TILES.columns)
    start_ms = (_now_ms() // DAY_TILE_MS - 1) * DAY_TILE_MS
    with open_backend(store, version) as backend:
        backend.write_tiles("item", [TileRow(("i", "c", "k"), DAY_TILE_MS, start_ms, clicks, start_ms, values)], {})


@pytest.mark.parametrize("topics_version", [specs.version(), "fixed"])
def test_the_snapshot_follows_a_switch(tmp_path: Path, topics_version: str) -> None:
    store, seen = str(tmp_path / "online.db"), Seen()
    rebuilt = f"{specs.version()}r2"
    _write(store, specs.version(), 1)
    _write(store, rebuilt, 2)
    upkeep = Upkeep(
        publication=seen,
        open_store=lambda version: open_backend(store, version),
        bootstrap_servers=None,
        topics=Topics(version=topics_version),
        clock_ms=_now_ms,
    )
    stop = Event()
    thread = Thread(target=upkeep.run, args=(stop,))
    thread.start()
    try:
        wait_for(lambda: seen.clicks, "the first snapshot", timeout_s=10)
        assert seen.clicks[-1] == 1
        with open_backend(store, rebuilt) as backend:
            backend.switch(specs.version(), rebuilt)
        wait_for(lambda: seen.clicks[-1] == 2, "the snapshot of the version that the store names", timeout_s=10)
        assert set(seen.clicks) == {1.0, 2.0}
        assert set(seen.reports) == {KeeperReport()}
    finally:
        stop.set()
        thread.join(10)
