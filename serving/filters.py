"""Which items may not be returned to this user, and why. I items of the live table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.user_state import UserState
from models.item_table import UNKNOWN, ItemTable
from serving.query import ItemRules

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """What is filtered out, before retrieval so that sources spend their quotas on eligible items."""

    excluded_I: Bools
    """Unavailable, seen, hidden or ruled out by the caller."""
    dropped: Mapping[str, int]
    """How many items each reason names; an item may have several."""

    @property
    def eligible(self) -> int:
        """How many items are left."""
        return int((~self.excluded_I).sum())

    def keep(self, item_index_C: Int32s) -> Bools:
        """Which candidates `[C]` pass: a source that ignores its exclusions changes nothing."""
        passed: Bools = ~self.excluded_I[item_index_C]
        return passed


def exclusions(table: ItemTable, state: UserState, rules: ItemRules) -> Exclusions:
    """Marks every item that the user has seen or hidden, that is unavailable, or that the rules exclude."""
    masks: dict[str, Bools] = {
        "unavailable": ~table.available,
        "seen": _marked(table, state.seen),
        "hidden": _marked(table, state.hidden),
        "blocked": _marked(table, rules.block_item_ids) | _in_categories(table, rules.block_categories),
    }
    if rules.allow_item_ids:
        masks["not_allowed"] = ~_marked(table, rules.allow_item_ids)
    if rules.categories:
        masks["other_category"] = ~_in_categories(table, rules.categories)
    excluded_I = np.logical_or.reduce(list(masks.values()))
    return Exclusions(excluded_I=excluded_I, dropped={reason: int(mask.sum()) for reason, mask in masks.items()})


def _marked(table: ItemTable, item_ids: Iterable[str]) -> Bools:
    marked_I = np.zeros(len(table), dtype=np.bool_)
    index = table.indices(list(item_ids))
    marked_I[index[index != UNKNOWN]] = True
    return marked_I


def _in_categories(table: ItemTable, categories: Iterable[str]) -> Bools:
    named_A = np.zeros(len(table.categories) + 1, dtype=np.bool_)
    named_A[[table.category_index.get(name, len(table.categories)) for name in categories]] = True
    named_A[len(table.categories)] = False
    marked_I: Bools = named_A[table.category_code]
    return marked_I
