"""What it costs to fetch a user and lay their features beside those of the candidates, in the service's own code."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from features.backends import Backend, open_backend
from features.tiles import DAY_RETENTION_MS, ITEM_TILES
from models.bundle import Bundle
from models.history import user_history
from serving.item_snapshot import ItemSnapshot
from serving.score import assemble
from serving.snapshot_files import KeeperReport, SnapshotReader, SnapshotWriter
from serving.users import UserReader
from serving.view import LiveView, ViewBuilder
from tests.bench.report import BenchError, Row
from tests.bench.serving_world import World, described

TURNS = 1_000
TIMEOUT_MS = 1_000.0


def assembly_rows(world: World, bundle: Bundle, store: Path) -> list[Row]:
    """`assembly_ms_*`: the user from the store, their history, and the inputs of the candidates; and its two parts."""
    now_ms, rng = time.time_ns() // 1_000_000, np.random.default_rng(world.seed)
    users = UserReader(lambda: open_backend(str(store)), perf_counter)
    taken = np.empty((TURNS, 3))
    with TemporaryDirectory() as directory:
        with open_backend(str(store)) as backend:
            view = view_of(bundle, backend, now_ms, Path(directory))
        for turn in range(TURNS):
            chosen_C = rng.choice(world.items, world.candidates, replace=False).astype(np.int32)
            began_s = perf_counter()
            state = users.read(world.user_id(turn % world.users), now_ms, TIMEOUT_MS)
            read_s = perf_counter()
            assemble(view, state, user_history(state.history, view.item_table), chosen_C, "phone")
            taken[turn] = perf_counter() - began_s, read_s - began_s, perf_counter() - read_s
    users.close()
    names = ("assembly", "assembly_user", "assembly_candidates")
    return [
        Row(name=f"{name}_ms_p50", value=float(seconds) * 1e3, unit="ms", settings=described(world))
        for name, seconds in zip(names, np.median(taken[TURNS // 10 :], axis=0), strict=True)
    ]


def view_of(bundle: Bundle, backend: Backend, now_ms: int, directory: Path) -> LiveView:
    """What a request reads of a bundle and a store's item tiles; the features are published into the directory."""
    snapshot, reader = ItemSnapshot(), SnapshotReader(directory, perf_counter)
    snapshot.load(backend.read_tile_rows(ITEM_TILES.name, now_ms - DAY_RETENTION_MS))
    writer = SnapshotWriter(directory)
    writer.publish(snapshot.finalise_all(now_ms))
    writer.beat(KeeperReport())
    features = reader.look()
    if features is None:
        raise BenchError("the snapshot that was published is not found.")
    return ViewBuilder().build(bundle, bundle.item_table, features, ())
