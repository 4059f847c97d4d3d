import json

import pytest

from features.items import Item, ItemError, parse_item

ITEM = Item(item_id="i1", category="music", creator_id="c1", language="en", duration_ms=60_000, published_at_ms=1)


def test_an_item_survives_the_wire() -> None:
    assert parse_item(ITEM.to_json()) == ITEM


def test_unknown_fields_are_ignored_and_availability_defaults_to_true() -> None:
    fields = {**json.loads(ITEM.to_json()), "title": "new"}
    del fields["available"]
    assert parse_item(json.dumps(fields).encode()) == ITEM


@pytest.mark.parametrize(("name", "got"), [("duration_ms", "60"), ("item_id", 7), ("available", 1), ("language", None)])
def test_a_field_of_another_type_is_refused_by_name(name: str, got: object) -> None:
    with pytest.raises(ItemError, match=name):
        parse_item(json.dumps({**json.loads(ITEM.to_json()), name: got}).encode())


@pytest.mark.parametrize("value", [b"", b"[]", b"\xff"])
def test_what_is_no_object_is_refused(value: bytes) -> None:
    with pytest.raises(ItemError):
        parse_item(value)
