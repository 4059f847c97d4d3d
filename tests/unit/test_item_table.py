"""The columnar catalogue and the collapsed history."""

import numpy as np
import pytest

from features.events import TYPE_CODE, EventType
from features.interest import EVENT_WEIGHTS, MAX_ITEM_WEIGHT
from features.items import Item
from features.user_state import Interaction
from models.history import HISTORY_EVENTS, collapse, user_history
from models.item_table import UNKNOWN, ItemTable, train_item_table


def item(item_id: str, category: str = "c0", **changes: object) -> Item:
    fields: dict = {"creator_id": "k0", "language": "en", "duration_ms": 1_000, "published_at_ms": 5} | changes
    return Item(item_id=item_id, category=category, **fields)


def test_new_items_are_appended_and_known_ones_replaced_in_place() -> None:
    table = train_item_table([item("b"), item("a")])
    grown = table.with_items([item("z", "c9", creator_id="k9"), item("a", available=False), item("z", "c1")])
    assert grown.item_ids == ("a", "b", "z")
    assert grown.available.tolist() == [False, True, True]
    assert grown.categories[grown.category_code[2]] == "c1"
    assert grown.trained == table.trained and grown.trained.items == 2
    assert grown.indices(["z", "nobody", "a"]).tolist() == [2, UNKNOWN, 0]
    assert table.available.all() and len(table) == 2, "the old snapshot is untouched"


def test_a_mask_marks_what_is_named_however_the_table_has_grown() -> None:
    table, rng = train_item_table([]), np.random.default_rng(3)
    for size in (0, 1, 40, 5, 0, 300):
        table = table.with_items([item(f"i{rng.integers(10**6)}") for _ in range(size)])
        for grown in (table, ItemTable.from_arrays(table.to_arrays())):
            named = [*rng.permutation(list(grown.item_ids))[: len(grown) // 3].tolist(), "nobody", "i"]
            known = [index for index in grown.indices(named).tolist() if index != UNKNOWN]
            assert np.flatnonzero(grown.mask_of(named)).tolist() == sorted(known)
            assert not grown.mask_of([]).any()


def test_ids_are_encoded_as_they_are_however_the_table_has_grown() -> None:
    table = train_item_table([item("video-1"), item("vidéo-2")]).with_items([item("видео-three"), item("video-1")])
    for same in (table, ItemTable.from_arrays(table.to_arrays())):
        assert [item_id.decode() for item_id in same.encoded_ids_I.tolist()] == list(same.item_ids)


def test_a_table_survives_its_arrays() -> None:
    table = train_item_table([item("b", "c1"), item("a", language="de")])
    again = ItemTable.from_arrays(table.to_arrays())
    assert again.item_ids == table.item_ids and again.index == table.index and again.trained == table.trained
    assert again.languages == table.languages
    np.testing.assert_array_equal(again.category_code, table.category_code)


def test_an_empty_table_survives_its_arrays() -> None:
    again = ItemTable.from_arrays(train_item_table([]).to_arrays())
    assert len(again) == 0 and again.categories == ()


def interaction(item_id: str, event_type: EventType, time_ms: int) -> Interaction:
    return Interaction(
        event_id=f"{time_ms}",
        event_type=event_type,
        event_time_ms=time_ms,
        user_id="u",
        item_id=item_id,
        category="c0",
        creator_id="k0",
    )


def test_history_is_distinct_newest_first_without_undone_hidden_or_unknown_items() -> None:
    table = train_item_table([item("a"), item("b"), item("c")])
    found = user_history(
        [
            interaction("gone", EventType.LIKE, 90),
            interaction("b", EventType.HIDE, 80),
            interaction("a", EventType.LIKE, 70),
            interaction("b", EventType.CLICK, 60),
            interaction("c", EventType.CLICK, 50),
            interaction("a", EventType.CLICK, 40),
        ],
        table,
    )
    assert found.item_index_L.tolist() == [table.index["a"], table.index["c"]]
    assert found.weight_L.tolist() == [3.0, 1.0]
    assert found.time_ms_L.tolist() == [70, 50]


def test_an_empty_history_is_empty_and_a_long_one_is_cut() -> None:
    table = train_item_table([item(f"i{n:03d}") for n in range(90)])
    assert user_history([], table).item_index_L.size == 0
    long = [interaction(f"i{n:03d}", EventType.CLICK, 1_000 - n) for n in range(90)]
    assert user_history(long, table).item_index_L.tolist() == list(range(HISTORY_EVENTS))


@pytest.mark.parametrize("seed", range(5))
def test_collapse_agrees_with_a_loop_over_random_events(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = 400
    row_N, item_N = rng.integers(0, 7, size), rng.integers(-1, 9, size).astype(np.int32)
    type_N, time_N = rng.integers(0, len(TYPE_CODE), size).astype(np.int8), rng.integers(0, 50, size)
    expected: dict[tuple[int, int], list[float]] = {}
    for row, index, code, time_ms in zip(row_N, item_N, type_N, time_N, strict=True):
        if index != UNKNOWN:
            pair = expected.setdefault((int(row), int(index)), [0.0, 0])
            pair[0] += EVENT_WEIGHTS[list(EventType)[code]]
            pair[1] = max(pair[1], int(time_ms))
    wanted = sorted(
        (row, -newest, index, min(weight, MAX_ITEM_WEIGHT))
        for (row, index), (weight, newest) in expected.items()
        if weight > 0
    )
    got = collapse(row_N, item_N, type_N, time_N)
    rows = zip(got.row_N, -got.time_ms_N, got.item_index_N, got.weight_N, strict=True)
    np.testing.assert_allclose(np.array(list(rows), float), np.array(wanted))
