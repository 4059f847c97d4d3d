"""The live catalogue: what the items topic has said of each item."""

import logging
from collections.abc import Collection, Iterable

from features.items import Item, ItemError, parse_item
from models.item_table import ItemTable

_log = logging.getLogger(__name__)


class Catalogue:
    """Every item of the topic, to be laid over the item tables of bundles. Owned by one thread.

    The topic holds the latest row per item and is read from its beginning, so it wins over a bundle: new items
    are appended, and an availability changes as soon as its record is read.
    """

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self.refused = 0
        """Records that were not items."""

    def over(self, bundle_table: ItemTable) -> ItemTable:
        """A bundle's table with the topic's items laid over it."""
        return bundle_table.with_items(self._items.values())

    def apply(self, records: Iterable[bytes | None]) -> Collection[Item]:
        """Takes records of the items topic; returns the items that changed.

        A record that is no item is counted and logged. A tombstone makes its item neither known nor unknown: items
        are withdrawn by `available`, so it is ignored.
        """
        changed: dict[str, Item] = {}
        for value in records:
            item = self._parsed(value)
            if item is not None and self._items.get(item.item_id) != item:
                changed[item.item_id] = item
        self._items.update(changed)
        return changed.values()

    def _parsed(self, value: bytes | None) -> Item | None:
        if value is None:
            return None
        try:
            return parse_item(value)
        except ItemError as error:
            self.refused += 1
            _log.warning("items topic: %s", error)
            return None
