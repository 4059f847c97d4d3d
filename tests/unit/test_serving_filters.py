"""Filters: seen, hidden, unavailable and the caller's rules, alone and together."""

from dataclasses import replace

import numpy as np
import pytest

from models.item_table import ItemTable, train_item_table
from serving.catalogue import Catalogue
from serving.filters import exclusions
from serving.query import ItemRules
from serving.users import unknown_user
from tests.serving_bundle import START_MS, tiny_items

TABLE = train_item_table(tiny_items())
NO_RULES = ItemRules()
NOBODY = unknown_user("u", START_MS)


def _left(rules: ItemRules = NO_RULES, table: ItemTable = TABLE, **state: object) -> set[str]:
    excluded = exclusions(table, replace(NOBODY, **state), rules)
    assert excluded.eligible == int((~excluded.excluded_I).sum())
    return {table.item_ids[i] for i in np.flatnonzero(~excluded.excluded_I)}


def test_nothing_is_excluded_for_a_user_without_events() -> None:
    assert _left() == set(TABLE.item_ids)


def test_seen_and_hidden_items_leave() -> None:
    left = _left(seen={"art00": 1, "gone": 2}, hidden=frozenset({"cats01"}))
    assert set(TABLE.item_ids) - left == {"art00", "cats01"}


def test_unavailable_items_leave() -> None:
    table = TABLE.with_items([replace(tiny_items()[0], available=False)])
    assert set(TABLE.item_ids) - _left(table=table) == {"art00"}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (ItemRules(allow_item_ids=frozenset({"art00", "art01", "nope"})), {"art00", "art01"}),
        (ItemRules(allow_item_ids=frozenset({"nope"})), set()),
        (ItemRules(categories=frozenset({"art", "nope"})), {i for i in TABLE.item_ids if i.startswith("art")}),
        (ItemRules(categories=frozenset({"nope"})), set()),
        (
            ItemRules(categories=frozenset({"art"}), block_item_ids=frozenset({"art00"})),
            {i for i in TABLE.item_ids if i.startswith("art")} - {"art00"},
        ),
        (
            ItemRules(block_categories=frozenset({"art", "cats", "news", "song", "nope"})),
            {i for i in TABLE.item_ids if i.startswith("sport")},
        ),
    ],
)
def test_the_callers_rules(rules: ItemRules, expected: set[str]) -> None:
    assert _left(rules) == expected


def test_candidates_that_a_source_should_not_have_returned_are_dropped() -> None:
    excluded = exclusions(TABLE, replace(NOBODY, seen={"art01": 1}), ItemRules())
    index = TABLE.indices(["art00", "art01", "art02"])
    assert excluded.keep(index).tolist() == [True, False, True]


def test_the_catalogue_appends_new_items_and_takes_availability() -> None:
    catalogue = Catalogue()
    new = replace(tiny_items()[0], item_id="new", category="fresh")
    assert list(catalogue.apply([new.to_json(), b"not json", None])) == [new]
    assert catalogue.over(TABLE).item_ids == (*TABLE.item_ids, "new")
    assert catalogue.apply([replace(new, available=False).to_json()])
    table = catalogue.over(TABLE)
    assert not table.available[table.index["new"]]
    assert not catalogue.apply([replace(new, available=False).to_json()]), "the same record again is no change"
    assert catalogue.refused == 1
