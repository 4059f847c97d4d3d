"""A tile row on the wire, packed, and as arrays."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.tile_rows import (
    INT64_MAX,
    TileError,
    TileRow,
    family_named,
    keyed_tiles,
    latest_tiles,
    pack,
    parse_tile,
    retention_start_ms,
)
from features.tiles import DAY_TILE_MS, ITEM_TILES, USER_CATEGORY_TILES

COUNTS = st.integers(0, INT64_MAX)


def record(**change: Any) -> bytes:
    columns = {column.name: place for place, column in enumerate(ITEM_TILES.columns)}
    base = {"item_id": "i", "category": "c", "creator_id": "k", "tile_ms": 300_000, "tile_start_ms": 600_000}
    return json.dumps({**base, "n": 3, "max_event_time_ms": 600_001, **columns, **change}).encode()


def test_wire_form_is_read_in_the_families_order() -> None:
    values = tuple(range(len(ITEM_TILES.columns)))
    assert parse_tile(ITEM_TILES, record(mood=1)) == TileRow(("i", "c", "k"), 300_000, 600_000, 3, 600_001, values)
    assert parse_tile(ITEM_TILES, record(tile_ms=DAY_TILE_MS, tile_start_ms=0)).tile_ms == DAY_TILE_MS


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "a JSON object"),
        (b"[]", "allowed: item_id, category"),
        (b"null", "allowed: item_id, category"),
        (b"{}", "allowed: item_id, category"),
        (record(item_id=5), "allowed: strings"),
        (record(n=None), "integers from 0"),
        (record(n=-1), "integers from 0"),
        (record(n=True), "integers from 0"),
        (record(n=1.0), "integers from 0"),
        (record(clicks=2**63), "integers from 0"),
        (record(tile_ms=60_000), "allowed: 300000 or 86400000"),
        (record(tile_ms=0), "allowed: 300000 or 86400000"),
        (record(tile_start_ms=600_001), "a multiple of it"),
    ],
)
def test_record_that_is_no_row_is_refused(value: bytes, words: str) -> None:
    with pytest.raises(TileError, match=words):
        parse_tile(ITEM_TILES, value)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("cd"), COUNTS, COUNTS), max_size=12))
def test_packed_rows_come_back_sorted_by_key(made: list[tuple[str, str, int, int]]) -> None:
    family = USER_CATEGORY_TILES
    rows = [TileRow((u, c), 60_000, 0, n, newest, tuple(n for _ in family.columns)) for u, c, n, newest in made]
    tiles = keyed_tiles(family, [row.key for row in rows], [pack(family, row) for row in rows])
    assert list(tiles.keys) == sorted({row.key for row in rows})
    got = zip(tiles.rows.key_T, tiles.rows.n_T, tiles.max_event_time_T, tiles.rows.values_TK.tolist(), strict=True)
    expected = sorted(rows, key=lambda row: row.key)
    assert [(tiles.keys[key], n, newest, values) for key, n, newest, values in got] == [
        (row.key, row.n, row.max_event_time_ms, list(row.values)) for row in expected
    ]


def test_latest_tiles_keeps_the_larger_n_of_each_tile() -> None:
    rows = [TileRow(("u", "c"), 60_000, start, n, 0, ()) for start, n in ((0, 2), (0, 5), (0, 3), (60_000, 1))]
    assert [(row.tile_start_ms, row.n) for row in latest_tiles(rows)] == [(0, 5), (60_000, 1)]


def test_wrong_number_of_values_is_refused() -> None:
    with pytest.raises(TileError, match="allowed: "):
        pack(ITEM_TILES, TileRow(("i", "c", "k"), 300_000, 0, 1, 0, (1,)))


def test_unknown_family_is_refused() -> None:
    with pytest.raises(TileError, match="'hour'; allowed: user_category, item"):
        family_named("hour")


def test_retention_is_four_days_for_streamed_tiles_and_thirty_one_for_day_tiles() -> None:
    day = DAY_TILE_MS
    assert (retention_start_ms(60_000, 100 * day), retention_start_ms(day, 100 * day)) == (96 * day, 69 * day)
