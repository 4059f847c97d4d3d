"""The item contract: one row of the compacted catalogue topic."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Item:
    """A video. `available=False` takes it out of every slate; its past stays."""

    item_id: str
    category: str
    creator_id: str
    language: str
    duration_ms: int
    published_at_ms: int
    available: bool = True

    def to_json(self) -> bytes:
        """The item as it stands on the wire."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()


class ItemError(ValueError):
    """A catalogue record that is not an item."""


def parse_item(value: bytes) -> Item:
    """Reads one catalogue record. Raises `ItemError` when a field is absent or of another type.

    Unknown fields are ignored, so that a compatible extension flows through.
    """
    try:
        record = json.loads(value)
    except ValueError as error:
        raise ItemError(f"item record is not JSON: got {value[:80]!r}; allowed: a JSON object") from error
    if not isinstance(record, dict):
        raise ItemError(f"item record is a {type(record).__name__}; allowed: a JSON object")
    known: dict[str, Any] = {}
    for field in fields(Item):
        got = record.get(field.name, True if field.name == "available" else None)
        if type(got) is not field.type:
            allowed = getattr(field.type, "__name__", field.type)
            raise ItemError(f"item field {field.name!r}: got {got!r}; allowed: {allowed}")
        known[field.name] = got
    return Item(**known)
