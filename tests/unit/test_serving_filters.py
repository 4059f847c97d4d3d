"""Filters: seen, hidden, unavailable and the caller's rules, alone and together."""

from dataclasses import replace

import numpy as np
import pytest

from features.names import MS_PER_HOUR
from models.item_table import ItemTable, train_item_table
from serving.catalogue import Catalogue
from serving.filters import REASONS, exclusions
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
    left = _left(seen={"art00": START_MS - 1, "gone": START_MS}, hidden=frozenset({"cats01"}))
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
    excluded = exclusions(TABLE, replace(NOBODY, seen={"art01": START_MS}), ItemRules())
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


def test_what_was_seen_comes_back_after_its_window() -> None:
    state = replace(NOBODY, seen={"art00": START_MS - 100, "art01": START_MS - 99, "art02": START_MS + 5})
    excluded = exclusions(TABLE, state, NO_RULES, seen_window_ms=100)
    assert {TABLE.item_ids[i] for i in np.flatnonzero(excluded.excluded_I)} == {"art01", "art02"}


def test_what_was_hidden_never_comes_back() -> None:
    excluded = exclusions(TABLE, replace(NOBODY, hidden=frozenset({"art00"})), NO_RULES, seen_window_ms=0)
    assert excluded.reasons(TABLE.index["art00"]) == ("hidden",)


def test_languages_are_the_catalogues_tags() -> None:
    english = {item.item_id for item in tiny_items() if item.language == "en"}
    assert _left(ItemRules(languages=frozenset({"en"}))) == english
    assert _left(ItemRules(languages=frozenset({"en", "pt", "xx"}))) == set(TABLE.item_ids)
    assert _left(ItemRules(languages=frozenset({"xx"}))) == set()


@pytest.mark.parametrize("hours", [1, 5, 2**63])
def test_the_age_limit_includes_its_bound(hours: int) -> None:
    young = {item.item_id for item in tiny_items() if START_MS - item.published_at_ms <= hours * MS_PER_HOUR}
    assert _left(ItemRules(max_age_ms=hours * MS_PER_HOUR)) == young


def test_every_reason_is_given_and_has_words() -> None:
    table = TABLE.with_items([replace(tiny_items()[0], available=False)])
    state = replace(NOBODY, seen={"art00": START_MS}, hidden=frozenset({"art00"}))
    rules = ItemRules(
        allow_item_ids=frozenset({"art01"}),
        block_item_ids=frozenset({"art00"}),
        categories=frozenset({"sport"}),
        languages=frozenset({"xx"}),
        max_age_ms=1,
    )
    mask_I = np.arange(len(table)) == 0
    excluded = exclusions(table, state, rules, more={"rule": mask_I, "scrolled": mask_I, "itself": mask_I})
    assert set(excluded.reasons(0)) == set(REASONS) - {"too_old"}
    assert "too_old" in excluded.reasons(TABLE.index["art09"])
    assert excluded.dropped["seen"] == 1 and excluded.dropped["other_language"] == len(table)
    assert exclusions(TABLE, NOBODY, NO_RULES).reasons(5) == ()


def test_readmitted_items_are_eligible_and_keep_their_reasons() -> None:
    excluded = exclusions(TABLE, replace(NOBODY, seen={"art00": START_MS, "art01": START_MS}), NO_RULES)
    again = excluded.but_for([0])
    assert again.eligible == excluded.eligible + 1 and again.reasons(0) == ("seen",)
    assert excluded.but_for([]) is excluded and excluded.excluded_I[0]
