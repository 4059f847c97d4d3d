"""A tiny bundle with a real ONNX ranker whose weights are set by hand, so that tests know what it prefers.

I items of `CATEGORIES` × `ITEMS_PER_CATEGORY`; item `<category><k>` by creator `<category>-<k % 3>`, popular in the
order of its index. The click logit is `-3 + log1p(user_category_clicks_1h) + item_ctr_7d + popularity / 100`,
where popularity is the item's embedding row; the other heads are constant.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from features import specs
from features.items import Item
from features.names import MS_PER_HOUR
from features.specs import Entity, features_of
from models.bundle import CALIBRATION, CHAMPION, FORMAT, ITEMS, LAYOUT, MANIFEST, RANKER, WEIGHTS, derived_id
from models.history import user_history
from models.item_table import ItemTable, train_item_table
from models.ranker.calibration import identity
from models.ranker_inputs import CANDIDATE_FEATURES, HEADS, RankerLayout, assemble_request
from models.sources import (
    AlsSource,
    ContentSource,
    ExplorationSource,
    FollowSource,
    Item2ItemSource,
    PopularSource,
    TrendingSource,
)
from models.sources.base import Source
from models.value import DEFAULT_WEIGHTS

CATEGORIES = ("art", "cats", "news", "song", "sport")
ITEMS_PER_CATEGORY = 40
START_MS = 1_760_000_000_000
HEAD_BIAS = {"click": -3.0, "completion": -1.0, "like": -4.0, "share": -5.0, "hide": -5.0, "watch_fraction": -1.0}


def tiny_items(published_at_ms: int = START_MS) -> list[Item]:
    """The catalogue, in the order of its item table; publication an hour apart."""
    return [
        Item(
            item_id=f"{category}{k:02d}",
            category=category,
            creator_id=f"{category}-{k % 3}",
            language="en" if k % 2 else "pt",
            duration_ms=60_000,
            published_at_ms=published_at_ms - k * MS_PER_HOUR,
        )
        for category in CATEGORIES
        for k in range(ITEMS_PER_CATEGORY)
    ]


def tiny_sources(table: ItemTable) -> dict[str, Source]:
    """Every source over the table: factors and neighbours by category, popularity falling with the index."""
    items = len(table)
    categories = len(table.categories)
    factors_ID = np.eye(categories, dtype=np.float32)[table.category_code]
    same_II = table.category_code[:, None] == table.category_code[None, :]
    neighbour_IN = np.stack([np.resize(np.flatnonzero(same_I), 10) for same_I in same_II]).astype(np.int32)
    sources: tuple[Source, ...] = (
        AlsSource(item_factors_ID=factors_ID, regularization=0.1, alpha=10.0),
        Item2ItemSource(neighbour_IN=neighbour_IN, similarity_IN=np.full(neighbour_IN.shape, 0.5, np.float32)),
        PopularSource(score_I=(items - np.arange(items, dtype=np.float32))),
        TrendingSource(),
        ContentSource(affinity_KK=np.eye(categories, dtype=np.float32)),
        FollowSource(),
        ExplorationSource(),
    )
    return {source.name: source for source in sources}


def write_tiny_bundle(
    bundles: Path, label: str = "tiny", nan_scores: bool = False, items: Sequence[Item] | None = None
) -> Path:
    """Writes a bundle that `Bundle.load` accepts; another label makes another id, which is the folder's name.

    With `nan_scores` its ranker answers NaN for every item; `items` are other ones than `tiny_items`.
    Writing it again gives the same folder, whole.
    """
    table = train_item_table(tiny_items() if items is None else items)
    layout = layout_of(table)

    def save_ranker(path: Path) -> None:
        ranker = tiny_ranker(table, layout, nan_scores)
        ranker.doc_string = label
        onnx.save(ranker, str(path))

    return write_bundle(bundles / label, table, tiny_sources(table), layout, save_ranker)


def layout_of(table: ItemTable) -> RankerLayout:
    """The inputs of a ranker that knows the whole table."""
    return RankerLayout(
        devices=("phone", "tv"),
        items=len(table),
        categories=len(table.categories),
        creators=len(table.creators),
        languages=len(table.languages),
    )


def write_bundle(
    path: Path,
    table: ItemTable,
    sources: Mapping[str, Source],
    layout: RankerLayout,
    save_ranker: Callable[[Path], None],
) -> Path:
    """Writes a bundle of these parts, without calibration, at `path`, and renames the folder to its id."""
    (path / "sources").mkdir(parents=True)
    np.savez(path / ITEMS, **table.to_arrays())
    for name, source in sources.items():
        np.savez(path / "sources" / f"{name}.npz", **source.to_arrays())
    (path / LAYOUT).write_text(json.dumps(layout.to_json()))
    (path / CALIBRATION).write_text(json.dumps(identity(len(HEADS)).to_json()))
    (path / WEIGHTS).write_text(json.dumps(DEFAULT_WEIGHTS))
    save_ranker(path / RANKER)
    found = sorted(file for file in path.rglob("*") if file.is_file())
    files = {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}
    manifest = {
        "format": FORMAT,
        "bundle_id": derived_id(specs.version(), files),
        "features_version": specs.version(),
        "sources": sorted(sources),
        "files": files,
    }
    (path / MANIFEST).write_text(json.dumps(manifest))
    named = path.parent / str(manifest["bundle_id"])
    shutil.rmtree(named, ignore_errors=True)
    return path.rename(named)


def promote(bundles: Path, bundle_id: str) -> None:
    """Replaces `champion.json` atomically, as promotion does."""
    new = bundles / "champion.new"
    new.write_text(json.dumps({"bundle_id": bundle_id}))
    new.replace(bundles / CHAMPION)


def tiny_ranker(
    table: ItemTable, layout: RankerLayout, nan_scores: bool = False, sharpness: float = 1.0
) -> onnx.ModelProto:
    """The graph described above, its features' weights multiplied. Inputs that it does not read are declared, too."""
    items = len(table)
    weight_FT = np.zeros((len(CANDIDATE_FEATURES), len(HEADS)), np.float32)
    weight_FT[CANDIDATE_FEATURES.index("user_category_clicks_1h"), 0] = sharpness
    weight_FT[CANDIDATE_FEATURES.index("item_ctr_7d"), 0] = sharpness
    popularity = np.linspace(0, -items / 100, items + 1, dtype=np.float32)
    embedding_IT = np.zeros((items + 1, len(HEADS)), np.float32)
    embedding_IT[:, 0] = np.nan if nan_scores else popularity
    constants = {
        "weight_FT": weight_FT,
        "embedding_IT": embedding_IT,
        "bias_T": np.array([HEAD_BIAS[head] for head in HEADS], np.float32),
        "one": np.array(1.0, np.float32),
    }
    nodes = [
        helper.make_node("Add", ["candidate_CF", "one"], ["shifted_CF"]),
        helper.make_node("Log", ["shifted_CF"], ["log_CF"]),
        helper.make_node("MatMul", ["log_CF", "weight_FT"], ["linear_CT"]),
        helper.make_node("Gather", ["embedding_IT", "item_C"], ["item_CT"]),
        helper.make_node("Add", ["linear_CT", "item_CT"], ["sum_CT"]),
        helper.make_node("Add", ["sum_CT", "bias_T"], ["logit_CT"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        _inputs(table, layout),
        [helper.make_tensor_value_info("logit_CT", TensorProto.FLOAT, ["C", len(HEADS)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _inputs(table: ItemTable, layout: RankerLayout) -> list[onnx.ValueInfoProto]:
    """Every array that the service feeds, as it feeds it; the first axis is free."""
    one = np.zeros(1, np.int32)
    width = {entity: np.zeros((1, len(features_of(entity)))) for entity in Entity}
    fed = assemble_request(
        layout=layout,
        item_table=table,
        item_index_C=one,
        instant_ms=START_MS,
        user_features_F=width[Entity.USER][0],
        user_category_CF=width[Entity.USER_CATEGORY],
        item_CF=width[Entity.ITEM],
        creator_CF=width[Entity.CREATOR],
        category_CF=width[Entity.CATEGORY],
        history=user_history((), table),
        device=None,
    ).feed()
    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [name[-2:], *array.shape[1:]])
        for name, array in fed.items()
    ]
