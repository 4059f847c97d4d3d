"""The rules laid over one item table, and what they say of one request. I items of the live table, C candidates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from models.item_table import UNKNOWN, ItemTable
from models.sources.base import Bools, Int32s
from serving.filters import SEEN, Exclusions, by_creators, either, in_categories, in_languages, marked
from serving.rerank.contenders import Boost, Int64s, Pin, RuleEffects
from serving.rules import Audience, BlockRule, BoostRule, PinRule, Rules


@dataclass(frozen=True, kw_only=True)
class PinnedItem:
    """A pin that holds for a request."""

    item_index: int
    position: int
    rule: str


@dataclass(frozen=True, kw_only=True)
class RuleIndex:
    """One rules file over one table; `RuleIndexes` keeps it from request to request."""

    rules: Rules
    table: ItemTable
    blocks: tuple[tuple[BlockRule, Bools], ...]
    """Rules that block an item of the table, with the items `[I]`."""
    boosts: tuple[tuple[BoostRule, Bools], ...]
    pins: tuple[tuple[PinRule, int], ...]
    """Pins of items of the table, by position and then in the file's order."""
    version_I: Int64s | None

    def blocked(self, audience: Audience) -> Bools | None:
        """The items that the rules block for a request; None where they block none."""
        masks = (mask_I for rule, mask_I in self.blocks if rule.applies(audience))
        return reduce(either, masks, None)

    def pinned(self, audience: Audience, excluded: Exclusions, count: int) -> tuple[PinnedItem, ...]:
        """The pins that hold for a request of so many positions; of one item the first."""
        found: dict[int, PinnedItem] = {}
        for rule, item_index in self.pins:
            if rule.position < count and item_index not in found and rule.applies(audience):
                forbidding = set(excluded.reasons(item_index)) - ({SEEN} if rule.repeat else set())
                if not forbidding:
                    pin = PinnedItem(item_index=item_index, position=rule.position, rule=rule.name)
                    found[item_index] = pin
        return tuple(found.values())[:count]

    def effects(self, audience: Audience, item_index_C: Int32s, pinned: Sequence[PinnedItem]) -> RuleEffects:
        """What the rules say of a request's candidates, the pinned ones among them."""
        boosts = (
            Boost(
                rule=rule.name,
                boosted_C=mask_I[item_index_C],
                add=rule.add or 0.0,
                multiply=1.0 if rule.multiply is None else rule.multiply,
            )
            for rule, mask_I in self.boosts
            if rule.applies(audience)
        )
        row_of = {int(item_index): row for row, item_index in enumerate(item_index_C)} if pinned else {}
        pins = (
            Pin(row=row_of[pin.item_index], position=pin.position, rule=pin.rule)
            for pin in pinned
            if pin.item_index in row_of
        )
        version_C = None if self.version_I is None else self.version_I[item_index_C]
        return RuleEffects(boosts=tuple(boosts), pins=tuple(pins), version_C=version_C)


class RuleIndexes:
    """Makes the index of the rules and the table in use, and keeps the last one. Threads may share it."""

    def __init__(self) -> None:
        self._last: RuleIndex | None = None

    def of(self, rules: Rules, table: ItemTable) -> RuleIndex:
        """The index of these rules over this table."""
        last = self._last
        if last is None or last.rules is not rules or last.table is not table:
            last = self._last = index_rules(rules, table)
        return last


def index_rules(rules: Rules, table: ItemTable) -> RuleIndex:
    """Looks every id and name of the rules up in the table."""
    pins = ((rule, int(table.indices([rule.item])[0])) for rule in rules.pin)
    known = [(rule, item_index) for rule, item_index in pins if item_index != UNKNOWN]
    return RuleIndex(
        rules=rules,
        table=table,
        blocks=tuple((rule, mask_I) for rule in rules.block if (mask_I := _named(table, rule)) is not None),
        boosts=tuple((rule, mask_I) for rule in rules.boost if (mask_I := _named(table, rule)) is not None),
        pins=tuple(sorted(known, key=lambda pin: pin[0].position)),
        version_I=_versions(rules, table),
    )


def _named(table: ItemTable, rule: BlockRule | BoostRule) -> Bools | None:
    languages = rule.languages if isinstance(rule, BoostRule) else ()
    masks = (
        marked(table, rule.items),
        by_creators(table, rule.creators),
        in_categories(table, rule.categories),
        in_languages(table, languages),
    )
    return reduce(either, masks)


def _versions(rules: Rules, table: ItemTable) -> Int64s | None:
    if not rules.versions:
        return None
    version_I = np.full(len(table), -1, np.int64)
    for number, rule in enumerate(rules.versions):
        index = table.indices(rule.items)
        version_I[index[index != UNKNOWN]] = number
    return version_I


def unknown_names(rules: Rules, table: ItemTable) -> int:
    """How many ids and names in the rules the table does not hold."""
    targets: tuple[BoostRule | BlockRule, ...] = (*rules.boost, *rules.block)
    listed = _all(rule.items for rule in targets) + _all(rule.items for rule in rules.versions)
    items = [rule.item for rule in rules.pin] + listed
    asked: tuple[tuple[list[str], Mapping[str, int]], ...] = (
        (items, table.index),
        (_all(rule.creators for rule in targets), table.creator_index),
        (_all(rule.categories for rule in targets), table.category_index),
        (_all(rule.languages for rule in rules.boost), table.language_index),
    )
    return sum(len({name for name in names if name not in known}) for names, known in asked)


def _all(lists: Iterable[Sequence[str]]) -> list[str]:
    return [name for names in lists for name in names]
