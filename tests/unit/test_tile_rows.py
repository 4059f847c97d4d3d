"""A tile row on the wire, packed, and as arrays."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.tile_rows import (
    INT64_MAX,
    TileBatch,
    TileError,
    TileRow,
    family_named,
    keyed_tiles,
    pack,
    parse_tile,
    parse_tiles,
    retention_start_ms,
)
from features.tiles import DAY_TILE_MS, ITEM_TILES, USER_CATEGORY_TILES

COUNTS = st.integers(0, INT64_MAX)


def record(**change: Any) -> bytes:
    columns = {column.name: place for place, column in enumerate(ITEM_TILES.columns)}
    base = {"item_id": "i", "category": "c", "creator_id": "k", "tile_ms": 300_000, "tile_start_ms": 600_000}
    return json.dumps({**base, "n": 3, "max_event_time_ms": 600_001, **columns, **change}).encode()


def wire(**change: Any) -> bytes:
    """The record as the stream job spells it."""
    return json.dumps(json.loads(record(**change)), separators=(",", ":")).encode()


def test_wire_form_is_read_in_the_families_order() -> None:
    values = tuple(range(len(ITEM_TILES.columns)))
    assert parse_tile(ITEM_TILES, record(mood=1)) == TileRow(("i", "c", "k"), 300_000, 600_000, 3, 600_001, values)
    assert parse_tile(ITEM_TILES, record(tile_ms=DAY_TILE_MS, tile_start_ms=0)).tile_ms == DAY_TILE_MS


REFUSED = pytest.mark.parametrize(
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
        (record(item_id="\xff").decode("unicode_escape").encode("latin-1"), "a JSON object"),
        (wire().replace(b'"n":3', b'"n":03'), "a JSON object"),
        (wire() + wire(), "a JSON object"),
        (wire(n=2**63), "integers from 0"),
        (wire(tile_ms=60_000), "allowed: 300000 or 86400000"),
        (wire(tile_start_ms=600_001), "a multiple of it"),
    ],
)


@REFUSED
def test_record_that_is_no_row_is_refused(value: bytes, words: str) -> None:
    with pytest.raises(TileError, match=words):
        parse_tile(ITEM_TILES, value)


@REFUSED
def test_batch_with_a_record_that_is_no_row_is_refused(value: bytes, words: str) -> None:
    with pytest.raises(TileError, match=words):
        parse_tiles(ITEM_TILES, [wire(), value, wire()])


def test_batch_is_read_as_its_records_are() -> None:
    spelled = {"n": [0, 7, 10**17, 9 * 10**18 - 1, 9 * 10**18, INT64_MAX], "item_id": ["a.b:~", "\u00e9", 'q"', ""]}
    values = [form(**{name: value}) for name, many in spelled.items() for value in many for form in (record, wire)]
    values += [wire(tile_ms=DAY_TILE_MS, tile_start_ms=DAY_TILE_MS), record(mood=1)]
    batch = parse_tiles(ITEM_TILES, values)
    rows = [parse_tile(ITEM_TILES, value) for value in values]
    assert list(batch.keys) == [row.key for row in rows]
    assert batch.packed == [pack(ITEM_TILES, row) for row in rows]
    assert parse_tiles(ITEM_TILES, []).packed == []


def test_only_the_stream_jobs_spelling_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.tile_rows.parse_tile", lambda *_: pytest.fail("read as JSON"))
    assert parse_tiles(ITEM_TILES, [wire()]).keys == [("i", "c", "k")]


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


def batch_of(*made: tuple[int, int, int]) -> TileBatch:
    """Rows of one key by size, start and n."""
    none = tuple(0 for _ in USER_CATEGORY_TILES.columns)
    rows = [TileRow(("u", "c"), tile_ms, start_ms, n, start_ms + n, none) for tile_ms, start_ms, n in made]
    return TileBatch.of(USER_CATEGORY_TILES, rows)


def test_latest_keeps_the_larger_n_of_each_tile() -> None:
    latest = batch_of((60_000, 0, 2), (60_000, 0, 5), (60_000, 0, 3), (60_000, 60_000, 1), (DAY_TILE_MS, 0, 1)).latest()
    assert latest.numbers_TN[:, :3].tolist() == [[60_000, 0, 5], [60_000, 60_000, 1], [DAY_TILE_MS, 0, 1]]
    assert latest.keys == [("u", "c")] * 3
    assert batch_of().latest().packed == []


def test_unexpired_and_newest_event() -> None:
    day = DAY_TILE_MS
    batch = batch_of((60_000, 96 * day - 60_000, 1), (60_000, 96 * day, 2), (day, 68 * day, 3), (day, 69 * day, 4))
    kept = batch.unexpired(100 * day)
    assert kept.numbers_TN[:, 2].tolist() == [2, 4]
    assert (kept.newest_event_ms, batch_of().newest_event_ms) == (96 * day + 2, None)
    assert batch_of().unexpired(100 * day).keys == []


def test_wrong_number_of_values_is_refused() -> None:
    with pytest.raises(TileError, match="allowed: "):
        pack(ITEM_TILES, TileRow(("i", "c", "k"), 300_000, 0, 1, 0, (1,)))


def test_unknown_family_is_refused() -> None:
    with pytest.raises(TileError, match="'hour'; allowed: user_category, item"):
        family_named("hour")


def test_retention_is_four_days_for_streamed_tiles_and_thirty_one_for_day_tiles() -> None:
    day = DAY_TILE_MS
    assert (retention_start_ms(60_000, 100 * day), retention_start_ms(day, 100 * day)) == (96 * day, 69 * day)
