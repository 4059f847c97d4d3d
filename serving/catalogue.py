"""The live catalogue: the bundle's item table and what the items topic has said since."""

import logging
from collections.abc import Iterable

from features.items import Item, ItemError, parse_item
from models.item_table import ItemTable

_log = logging.getLogger(__name__)


class Catalogue:
    """The item table of a bundle with every item of the topic laid over it. Owned by one thread.

    The topic holds the latest row per item and is read from its beginning, so it wins over the bundle: new items
    are appended, and an availability changes as soon as its record is read. Before the first bundle items are
    only remembered.
    """

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self.table: ItemTable | None = None
        self.refused = 0
        """Records that were not items."""

    def __len__(self) -> int:
        return 0 if self.table is None else len(self.table)

    def over(self, bundle_table: ItemTable) -> ItemTable:
        """A bundle's table with the topic's items laid over it."""
        return bundle_table.with_items(self._items.values())

    def rebase(self, bundle_table: ItemTable) -> None:
        """Goes on from another bundle's table."""
        self.table = self.over(bundle_table)

    def apply(self, records: Iterable[bytes | None]) -> bool:
        """Takes records of the items topic; says whether any changed the catalogue.

        A record that is no item is counted and logged. A tombstone makes its item neither known nor unknown: items
        are withdrawn by `available`, so it is ignored.
        """
        changed: dict[str, Item] = {}
        for value in records:
            item = self._parsed(value)
            if item is not None and self._items.get(item.item_id) != item:
                changed[item.item_id] = item
        self._items.update(changed)
        if changed and self.table is not None:
            self.table = self.table.with_items(changed.values())
        return bool(changed)

    def _parsed(self, value: bytes | None) -> Item | None:
        if value is None:
            return None
        try:
            return parse_item(value)
        except ItemError as error:
            self.refused += 1
            _log.warning("items topic: %s", error)
            return None
