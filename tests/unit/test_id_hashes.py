"""Hashes of ids against the definition, and a store's JSON read without its ids."""

import json

import numpy as np
import pytest

from features.id_hashes import TimesById, hashes_of
from features.keyed_sets import latest
from models.item_table import train_item_table
from serving.filters import seen_since
from tests.unit.test_item_table import item


def _fnv_1a(text: str) -> int:
    found = 0xCBF29CE484222325
    for byte in text.encode():
        found = (found ^ byte) * 0x100000001B3 % 2**64
    return found


def test_a_hash_is_fnv_1a_of_the_ids_bytes() -> None:
    assert [f"{each:x}" for each in hashes_of(["", "a", "foobar"]).tolist()] == [  # from the method's own test vectors
        "cbf29ce484222325",
        "af63dc4c8601ec8c",
        "85944171f73967e8",
    ]
    ids = ["video-1", "vidéo:2", "x" * 128, "видео"]
    assert hashes_of(ids).tolist() == [_fnv_1a(each) for each in ids]
    assert not len(hashes_of([]))


@pytest.mark.parametrize(
    "times", [{}, {"a": 0}, {"a:b/c=1": 1_764_000_000_000, "9": 7, "vidéo": 10**17}, {'a"b': 5, "\\": 6, "c": 7}]
)
def test_a_stores_json_says_the_same_with_and_without_its_ids(times: dict[str, int]) -> None:
    read = TimesById(json.dumps(times, separators=(",", ":"), ensure_ascii=False))
    assert read == times and len(read) == len(times) and list(read) == list(times)
    assert read.hash_N.tolist() == hashes_of(list(times)).tolist()
    assert read.time_ms_N.tolist() == list(times.values())
    assert latest(read) == latest(times) == max(times.values(), default=0)


def test_what_was_seen_is_marked_by_hash_as_it_is_by_id() -> None:
    table, rng = train_item_table(item(f"i{n}") for n in range(300)), np.random.default_rng(5)
    for _ in range(20):
        seen = {f"i{n}": int(rng.integers(100)) for n in rng.integers(400, size=rng.integers(60)).tolist()}
        by_id, by_hash = (
            seen_since(table, seen, 50),
            seen_since(table, TimesById(json.dumps(seen, separators=(",", ":"))), 50),
        )
        named = {table.index[item_id] for item_id, time_ms in seen.items() if time_ms > 50 and item_id in table.index}
        for mask_I in (by_id, by_hash):
            assert named == (set() if mask_I is None else set(np.flatnonzero(mask_I).tolist()))
