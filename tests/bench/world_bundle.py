"""A bundle of the production's shape and size. Its weights are drawn, not trained, which costs as much to score."""

from pathlib import Path

import numpy as np
import torch

from models.als import AlsConfig
from models.item_table import ItemTable, train_item_table
from models.ranker.config import RankerConfig
from models.ranker.export import export
from models.ranker.network import RankerNetwork
from models.sources import (
    AlsSource,
    ContentSource,
    ExplorationSource,
    FollowSource,
    Item2ItemSource,
    PopularSource,
    Source,
    TrendingSource,
)
from tests.bench.serving_world import World
from tests.ranker_examples import random_inputs
from tests.serving_bundle import layout_of, write_bundle


def write_world_bundle(world: World, bundles: Path, label: str, now_ms: int) -> tuple[Path, RankerNetwork]:
    """Writes the bundle; returns its directory and the network that it holds."""
    table = train_item_table(world.item(i, now_ms) for i in range(world.items))
    layout = layout_of(table)
    torch.manual_seed(world.seed)
    network = RankerNetwork(layout, RankerConfig()).eval()
    sample = random_inputs(layout, world.candidates, 1, np.random.default_rng(world.seed))

    def save_ranker(path: Path) -> None:
        export(network, path, [sample])
        path.write_bytes(path.read_bytes() + _doc_string(label))

    return write_bundle(bundles / label, table, _sources(world, table), layout, save_ranker), network


def _doc_string(text: str) -> bytes:
    """One more field of ONNX's ModelProto, so that bundles with other labels have other ids."""
    return bytes([0x32, len(text)]) + text.encode()


def _sources(world: World, table: ItemTable) -> dict[str, Source]:
    rng, config = np.random.default_rng(world.seed), AlsConfig()
    factors_ID = rng.normal(0, 0.1, (world.items, config.embedding_dim)).astype(np.float32)
    sources: tuple[Source, ...] = (
        AlsSource(item_factors_ID=factors_ID, regularization=0.1, alpha=10.0),
        Item2ItemSource(
            neighbour_IN=rng.integers(world.items, size=(world.items, 100), dtype=np.int32),
            similarity_IN=rng.random((world.items, 100), np.float32),
        ),
        PopularSource(score_I=rng.random(world.items, np.float32)),
        TrendingSource(),
        ContentSource(affinity_KK=np.eye(len(table.categories), dtype=np.float32)),
        FollowSource(),
        ExplorationSource(),
    )
    return {source.name: source for source in sources}
