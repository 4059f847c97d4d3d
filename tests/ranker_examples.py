"""Small training examples for the ranker's tests, made once."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from models.examples import BATCH_ROWS, Examples, assemble
from models.item_table import ItemTable, train_item_table
from models.ranker.config import RankerConfig
from models.ranker_inputs import CANDIDATE_FEATURES, HISTORY_LENGTH, USER_FEATURES, RankerInputs, RankerLayout
from models.splits import time_split
from models.train_ranker import layout_for, split_rows
from tests.synthetic_lake import SyntheticLake, synthetic_lake

CONFIG = RankerConfig(batch_size=256, epochs=4, learning_rate=4e-3, item_dim=4, hidden_dim=48, expert_dim=24)


@dataclass(frozen=True, kw_only=True)
class Small:
    """A lake's examples as inputs, split by time."""

    lake: SyntheticLake
    table: ItemTable
    layout: RankerLayout
    examples: Examples
    rows: dict[str, np.ndarray]


@cache
def small() -> Small:
    """3,600 examples of 50 users."""
    lake = synthetic_lake(seed=2, users=50, items=60, slates=12)
    table = train_item_table(lake.items)
    layout = layout_for(table, ("phone", "tv"))
    examples = assemble(lake.examples.to_batches(BATCH_ROWS), lake.examples.num_rows, layout, table)
    rows = split_rows(examples, time_split(examples.time_ms_N, 0.15, 0.2))
    return Small(lake=lake, table=table, layout=layout, examples=examples, rows=rows)


def random_inputs(layout: RankerLayout, candidates: int, users: int, rng: np.random.Generator) -> RankerInputs:
    """Inputs of plausible size for `users` rows, 1 or one a candidate; every code may be out of vocabulary."""

    def codes(known: int, *shape: int) -> np.ndarray:
        return rng.integers(known + 1, size=shape, dtype=np.int32)

    def reals(scale: float, *shape: int) -> np.ndarray:
        return rng.gamma(0.5, scale, shape).astype(np.float32)

    slots = (users, HISTORY_LENGTH)
    return RankerInputs(
        user_UF=reals(10, users, len(USER_FEATURES)),
        device_U=codes(len(layout.devices), users),
        hour_U=codes(23, users),
        history_item_UL=codes(layout.items, *slots),
        history_category_UL=codes(layout.categories, *slots),
        history_creator_UL=codes(layout.creators, *slots),
        history_language_UL=codes(layout.languages, *slots),
        history_weight_UL=reals(2, *slots) * (rng.random(slots) < 0.8),
        history_age_ms_UL=reals(1e8, *slots),
        candidate_CF=reals(10, candidates, len(CANDIDATE_FEATURES)),
        static_CS=reals(1e8, candidates, 2),
        affinity_CA=reals(0.3, candidates, 2),
        item_C=codes(layout.items, candidates),
        category_C=codes(layout.categories, candidates),
        creator_C=codes(layout.creators, candidates),
        language_C=codes(layout.languages, candidates),
        position_C=codes(40, candidates),
    )
