"""The catalogue as columns: what maps opaque ids to the dense indices that live inside bundles.

Shapes: I items, in the order of their indices.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from features.id_hashes import Uint64s, hashes_of
from features.items import Item
from models import id_slots
from models.id_slots import IdSlots

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

UNKNOWN = id_slots.UNKNOWN
"""The index of an id that the table does not hold."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How many of each the models were trained on: indices and codes at or above these are out of vocabulary."""

    items: int
    categories: int
    creators: int
    languages: int


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """An immutable snapshot of the catalogue. New items are appended, so the bundle's indices stay valid.

    Codes index `categories`, `creators` and `languages`, which only grow, too.
    """

    item_ids: tuple[str, ...]
    categories: tuple[str, ...]
    creators: tuple[str, ...]
    languages: tuple[str, ...]
    category_code: Int32s
    creator_code: Int32s
    language_code: Int32s
    duration_ms: Int64s
    published_at_ms: Int64s
    available: Bools
    trained: Trained
    """The sizes at training time."""

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Item id to index."""
        return {item_id: i for i, item_id in enumerate(self.item_ids)}

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def category_index(self) -> Mapping[str, int]:
        """Category to code."""
        return {name: code for code, name in enumerate(self.categories)}

    @cached_property
    def creator_index(self) -> Mapping[str, int]:
        """Creator id to code."""
        return {name: code for code, name in enumerate(self.creators)}

    @cached_property
    def language_index(self) -> Mapping[str, int]:
        """Language to code."""
        return {name: code for code, name in enumerate(self.languages)}

    def indices(self, item_ids: Sequence[str]) -> Int32s:
        """The index of each id, `UNKNOWN` where the table lacks it."""
        return np.fromiter(map(self.index.get, item_ids, repeat(UNKNOWN)), np.int32, len(item_ids))

    def indices_of_hashes(self, hash_N: Uint64s) -> Int32s:
        """The index of each item by its id's hash, `UNKNOWN` where the table lacks it."""
        return self._slots.items_of(hash_N)

    def mask_of(self, item_ids: Collection[str]) -> Bools:
        """Marks these items `[I]`; ids that the table lacks mark nothing."""
        return self.mask_of_hashes(hashes_of(item_ids))

    def mask_of_hashes(self, hash_N: Uint64s) -> Bools:
        """Marks the items whose ids have these hashes `[I]`."""
        return self._slots.mask_of(hash_N)

    @cached_property
    def encoded_ids_I(self) -> npt.NDArray[np.bytes_]:  # noqa: N802 - shape suffix
        """The ids in UTF-8, in one array: many are taken from it, and handed over, without a look at a string each."""
        return _encoded(self.item_ids)

    @cached_property
    def _slots(self) -> IdSlots:
        return IdSlots.of(self.item_ids)

    def with_items(self, items: Iterable[Item]) -> "ItemTable":
        """A table in which each item replaces the row of its id or is appended; a later item wins.

        Costs a copy of the columns, and with a new id one of the index: give it batches.
        """
        latest = {item.item_id: item for item in items}
        if not latest:
            return self
        new_ids = [item_id for item_id in latest if item_id not in self.index]
        categories, creators = dict(self.category_index), dict(self.creator_index)
        languages = dict(self.language_index)
        columns: dict[str, Any] = {name: _grown(getattr(self, name), len(new_ids)) for name in _COLUMNS}
        index: Mapping[str, int] = self.index
        if new_ids:
            index = {**index, **{item_id: len(self) + i for i, item_id in enumerate(new_ids)}}
        for item in latest.values():
            row = index[item.item_id]
            columns["category_code"][row] = _code(categories, item.category)
            columns["creator_code"][row] = _code(creators, item.creator_id)
            columns["language_code"][row] = _code(languages, item.language)
            columns["duration_ms"][row] = item.duration_ms
            columns["published_at_ms"][row] = item.published_at_ms
            columns["available"][row] = item.available
        table = replace(
            self,
            item_ids=(*self.item_ids, *new_ids) if new_ids else self.item_ids,
            categories=tuple(categories),
            creators=tuple(creators),
            languages=tuple(languages),
            **columns,
        )
        known = {"index": index, "category_index": categories, "creator_index": creators, "language_index": languages}
        encoded_ids_I = np.concatenate([self.encoded_ids_I, _encoded(new_ids)])
        # The cached properties, which would be made anew.
        table.__dict__.update(known, _slots=self._slots.with_ids(table.item_ids), encoded_ids_I=encoded_ids_I)
        return table

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The table as arrays without Python objects, for `numpy.savez`."""
        texts = {name: _packed(getattr(self, name)) for name in _TEXTS}
        sizes = self.trained
        counts = np.array([sizes.items, sizes.categories, sizes.creators, sizes.languages], np.int64)
        return {**texts, **{name: getattr(self, name) for name in _COLUMNS}, "trained": counts}

    @staticmethod
    def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> "ItemTable":
        """Reads what `to_arrays` gave. Raises `KeyError` when an array is absent."""
        items, categories, creators, languages = (int(size) for size in arrays["trained"])
        texts: dict[str, Any] = {name: _unpacked(arrays[name]) for name in _TEXTS}
        columns: dict[str, Any] = {name: arrays[name] for name in _COLUMNS}
        return ItemTable(
            **texts,
            **columns,
            trained=Trained(items=items, categories=categories, creators=creators, languages=languages),
        )


_TEXTS = ("item_ids", "categories", "creators", "languages")
_COLUMNS = ("category_code", "creator_code", "language_code", "duration_ms", "published_at_ms", "available")


def _encoded(item_ids: Iterable[str]) -> npt.NDArray[np.bytes_]:
    return np.array([item_id.encode() for item_id in item_ids], np.bytes_)


def train_item_table(items: Iterable[Item]) -> ItemTable:
    """The table of a training run: everything in it is known to the models. Items are sorted by id."""
    empty = ItemTable(
        item_ids=(),
        categories=(),
        creators=(),
        languages=(),
        category_code=np.empty(0, np.int32),
        creator_code=np.empty(0, np.int32),
        language_code=np.empty(0, np.int32),
        duration_ms=np.empty(0, np.int64),
        published_at_ms=np.empty(0, np.int64),
        available=np.empty(0, np.bool_),
        trained=Trained(items=0, categories=0, creators=0, languages=0),
    )
    table = empty.with_items(sorted(items, key=lambda item: item.item_id))
    sizes = Trained(
        items=len(table),
        categories=len(table.categories),
        creators=len(table.creators),
        languages=len(table.languages),
    )
    return replace(table, trained=sizes)


def _grown(column: npt.NDArray[Any], by: int) -> npt.NDArray[Any]:
    return np.concatenate([column, np.zeros(by, column.dtype)])


def _code(codes: dict[str, int], name: str) -> int:
    return codes.setdefault(name, len(codes))


def _packed(texts: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    return np.frombuffer("\n".join(texts).encode(), np.uint8)


def _unpacked(packed: npt.NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(packed.tobytes().decode().split("\n")) if packed.size else ()
