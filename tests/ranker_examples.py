"""Small training examples for the ranker's tests, made once."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from models.examples import BATCH_ROWS, Examples, assemble
from models.item_table import ItemTable, train_item_table
from models.ranker.config import RankerConfig
from models.ranker_inputs import RankerLayout
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
