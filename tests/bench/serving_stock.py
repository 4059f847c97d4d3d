"""The same ranking done the usual way: Feast's stock SQLite store read for all candidates, then torch, in one process.

Nothing is retrieved, filtered or reranked, and no gRPC is between: all of that is to its advantage.
"""

from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from features.daily import ACTIVITY_VIEWS
from features.specs import KEY_FIELDS, Entity, features_of
from models.bundle import Bundle
from models.history import user_history
from models.ranker.network import RankerNetwork
from models.ranker_inputs import CANDIDATE_ENTITIES, HEADS, assemble_request
from models.value import value
from tests.bench.bench_store import _feast
from tests.bench.serving_world import World

ITEMS, USERS = 2_000, 20
"""Of the catalogue, those that are in the store: a smaller store is to its advantage, too."""


class StockRanking:
    """A store filled with drawn values of every view, and the network in torch."""

    def __init__(self, network: RankerNetwork, bundle: Bundle, directory: Path, world: World) -> None:
        torch.set_num_threads(1)
        directory.mkdir()
        self._network, self._bundle, self._world = network, bundle, world
        self._rng = np.random.default_rng(world.seed)
        self._store = _feast(directory / "repo", {"type": "sqlite", "path": str(directory / "stock.db")})
        self._features = [
            f"{ACTIVITY_VIEWS[entity]}:{feature.name}"
            for entity in (Entity.USER, *CANDIDATE_ENTITIES)
            for feature in features_of(entity)
        ]
        self._users = cycle(range(USERS))
        self.described = {"stock_items": ITEMS, "stock_users": USERS}
        self._fill()

    def rank(self) -> np.ndarray:
        """Candidates of one user, best first."""
        item_C = self._rng.choice(ITEMS, self._world.candidates, replace=False)
        keys = [self._world.item_key(int(i)) for i in item_C]
        user_id = self._world.user_id(next(self._users))
        asked = {"user_id": [user_id] * len(keys)}
        asked |= {name: [key[k] for key in keys] for k, name in enumerate(("item_id", "category", "creator_id"))}
        got = self._store.get_online_features(features=self._features, entity_rows=_rows(asked)).to_df()
        table = self._bundle.item_table
        inputs = assemble_request(
            layout=self._bundle.ranker.layout,
            item_table=table,
            item_index_C=table.indices([key[0] for key in keys]),
            instant_ms=int(table.published_at_ms.max()),
            user_features_F=_columns(got, Entity.USER)[0],
            user_category_CF=_columns(got, Entity.USER_CATEGORY),
            item_CF=_columns(got, Entity.ITEM),
            creator_CF=_columns(got, Entity.CREATOR),
            category_CF=_columns(got, Entity.CATEGORY),
            history=user_history((), table),
            device="phone",
        )
        with torch.inference_mode():
            logit_CT = self._network({name: torch.from_numpy(array) for name, array in inputs.feed().items()})
            probability_CT = torch.sigmoid(logit_CT).numpy()
        by_head = {head: probability_CT[:, t] for t, head in enumerate(HEADS)}
        order: np.ndarray = np.argsort(-value(by_head, self._bundle.value_weights))
        return order

    def _fill(self) -> None:
        keys = [self._world.item_key(i) for i in range(ITEMS)]
        users = [self._world.user_id(u) for u in range(USERS)]
        categories = sorted({key[1] for key in keys})
        of_entity = {
            Entity.USER: [(user,) for user in users],
            Entity.USER_CATEGORY: [(user, category) for user in users for category in categories],
            Entity.ITEM: [key[:1] for key in keys],
            Entity.CREATOR: sorted({key[2:] for key in keys}),
            Entity.CATEGORY: [(category,) for category in categories],
        }
        at = datetime.now(UTC)
        for entity, named in of_entity.items():
            view, fields = self._store.get_feature_view(ACTIVITY_VIEWS[entity]), features_of(entity)
            rows = [
                (
                    EntityKey(join_keys=KEY_FIELDS[entity], entity_values=[Value(string_val=part) for part in key]),
                    {f.name: Value(int64_val=7) if f.is_integer else Value(double_val=0.7) for f in fields},
                    at,
                    at,
                )
                for key in named
            ]
            SqliteOnlineStore().online_write_batch(self._store.config, view, rows, None)


def _rows(columns: dict[str, list[str]]) -> list[dict[str, str]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _columns(frame: "pandas.DataFrame", entity: Entity) -> np.ndarray:  # noqa: F821 - Feast brings it
    return frame[[feature.name for feature in features_of(entity)]].to_numpy(np.float64)
