"""The item snapshot through files, and the view's alignment to it, against look-ups one by one."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.specs import features_of
from models.bundle import Bundle
from models.item_table import ItemTable
from serving.follower import Follower
from serving.item_snapshot import ENTITIES, EntityFeatures, SnapshotFeatures
from serving.live import Live
from serving.snapshot_files import CURRENT, STALE_S, KeeperReport, SnapshotReader, SnapshotWriter
from serving.view import LiveView, ViewBuilder
from tests.serving_bundle import tiny_items, write_tiny_bundle

FIRST_MS = 1_760_000_000_000
BEHIND = KeeperReport(note="the item features may be behind", tiles_refused=3, connected=False)


class Keeper:
    """Growing entities with values that tell id and instant apart, as a keeper's snapshot has them."""

    def __init__(self) -> None:
        self.ids: dict[str, list[str]] = {entity: [] for entity in ENTITIES}

    def features(self, instant_ms: int, new: dict[str, list[str]]) -> SnapshotFeatures:
        by_entity = {}
        for entity in ENTITIES:
            ids = self.ids[entity]
            ids += new.get(entity, [])
            names = [*ids, ""]
            values_XF = np.array([[value(name, instant_ms)] * len(features_of(entity)) for name in names])
            by_entity[entity] = EntityFeatures(
                ids=ids, index={n: row for row, n in enumerate(ids)}, values_XF=values_XF
            )
        return SnapshotFeatures(instant_ms=instant_ms, by_entity=by_entity)


def value(name: str, instant_ms: int) -> float:
    return 0.0 if not name else sum(name.encode()) + (instant_ms - FIRST_MS) * 1_000.0


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles")))


def _check(view: LiveView, known: dict[str, list[str]], instant_ms: int) -> None:
    table = view.item_table
    of_entity = zip(ENTITIES, _names(table), (view.items, view.creators, view.categories), strict=False)
    for entity, names, aligned in of_entity:
        rows = aligned.rows(np.arange(len(names), dtype=np.int32))
        got = rows.values_XF[rows.row_C][:, 0]
        want = [value(name if name in known[entity] else "", instant_ms) for name in names]
        assert got.tolist() == want, entity


def _names(table: ItemTable) -> tuple[tuple[str, ...], ...]:
    return table.item_ids, table.creators, table.categories


def test_readers_find_what_grows_wherever_it_grows(tmp_path: Path, bundle: Bundle) -> None:
    """Ids come to the snapshot and items to the catalogue in any order; a second keeper follows the first."""
    rng, reader, builder, table = random.Random(3), SnapshotReader(tmp_path, Clock()), ViewBuilder(), bundle.item_table
    later = [replace(item, item_id=f'{item.item_id}\n"new', creator_id="r") for item in tiny_items()]
    item_ids = [item.item_id for item in (*tiny_items(), *later)]
    for _ in range(2):
        keeper, writer = Keeper(), SnapshotWriter(tmp_path)
        for turn in range(12):
            pools = dict(zip(ENTITIES, (item_ids, [*table.creators, "r"], table.categories), strict=True))
            left = {entity: sorted(set(pool) - set(keeper.ids[entity])) for entity, pool in pools.items()}
            new = {entity: rng.sample(names, min(len(names), rng.randrange(9))) for entity, names in left.items()}
            writer.publish(keeper.features(FIRST_MS + turn, new))
            writer.beat(KeeperReport())
            if turn % 4 == 1:
                table = table.with_items([later.pop() for _ in range(5)])
            if turn % 3 != 1:
                _check(builder.build(bundle, table, _found(reader), ()), keeper.ids, FIRST_MS + turn)


def _found(reader: SnapshotReader) -> SnapshotFeatures:
    found = reader.look()
    assert found is not None
    return found


def test_values_that_are_mapped_outlive_their_files(tmp_path: Path) -> None:
    keeper, writer, reader = Keeper(), SnapshotWriter(tmp_path), SnapshotReader(tmp_path, Clock())
    writer.publish(keeper.features(FIRST_MS, {entity: ["a"] for entity in ENTITIES}))
    writer.beat(KeeperReport())
    first = _found(reader)
    for turn in range(1, 4):
        writer.publish(keeper.features(FIRST_MS + turn, {}))
        writer.beat(KeeperReport())
    assert first.by_entity[ENTITIES[0]].values_XF[0, 0] == value("a", FIRST_MS)
    assert not first.by_entity[ENTITIES[0]].values_XF.flags.writeable
    assert _found(reader).instant_ms == FIRST_MS + 3
    assert len(list(tmp_path.iterdir())) == 2 + len(ENTITIES), "one state's files are left"


def test_nothing_is_found_before_the_first_beat_and_nothing_twice(tmp_path: Path) -> None:
    writer, reader = SnapshotWriter(tmp_path), SnapshotReader(tmp_path, Clock())
    assert reader.look() is None and not reader.found
    writer.publish(Keeper().features(FIRST_MS, {}))
    assert reader.look() is None
    writer.beat(BEHIND)
    assert reader.look() is not None and reader.found and reader.report == BEHIND
    writer.beat(KeeperReport(tiles_refused=4))
    assert reader.look() is None and reader.report.tiles_refused == 4


def test_values_that_go_missing_between_two_files_are_found_at_the_next_beat(tmp_path: Path) -> None:
    keeper, writer, reader = Keeper(), SnapshotWriter(tmp_path), SnapshotReader(tmp_path, Clock())
    writer.publish(keeper.features(FIRST_MS, {}))
    writer.beat(KeeperReport())
    old = (tmp_path / CURRENT).read_text()
    writer.publish(keeper.features(FIRST_MS + 1, {}))
    writer.beat(KeeperReport())
    new = (tmp_path / CURRENT).read_text()
    (tmp_path / CURRENT).write_text(old)
    assert reader.look() is None
    (tmp_path / CURRENT).write_text(new)
    assert _found(reader).instant_ms == FIRST_MS + 1


def test_the_view_says_how_old_the_features_of_a_dead_keeper_are(tmp_path: Path, bundle: Bundle) -> None:
    clock, live = Clock(), Live(Keeper().features(FIRST_MS, {}))
    live.switch(bundle)
    follower = Follower(
        live=live,
        snapshots=SnapshotReader(tmp_path, clock),
        items=None,
        clock_ms=lambda: FIRST_MS + int(clock.now_s * 1000),
        monotonic_s=clock,
    )

    def notes() -> tuple[str, ...]:
        follower.step()
        assert live.view is not None
        return live.view.notes

    assert notes() == () and not follower.settled
    clock.now_s = STALE_S + 1
    assert notes() == ("there are no item features: their keeper has published none",) and follower.settled
    writer = SnapshotWriter(tmp_path)
    writer.publish(Keeper().features(FIRST_MS + 6_000, {}))
    writer.beat(KeeperReport())
    assert notes() == () and follower.settled
    clock.now_s = 20.0
    assert notes() == ("the item features are 14 s old: their keeper does not run",)
    writer.beat(BEHIND)
    assert notes() == (BEHIND.note,)


def test_a_builder_goes_on_from_a_smaller_snapshot(bundle: Bundle) -> None:
    """A preview may be built from an older snapshot than the view was."""
    keeper, builder = Keeper(), ViewBuilder()
    small = keeper.features(FIRST_MS, {ENTITIES[0]: ["cats00"]})
    large = keeper.features(FIRST_MS, {ENTITIES[0]: ["cats01", "cats02"]})
    for snapshot, known in ((large, 3), (small, 1), (large, 3)):
        view = builder.build(bundle, bundle.item_table, snapshot, ())
        assert int((view.items.row_N >= 0).sum()) == known
