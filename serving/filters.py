"""Which items may not be returned to this user, and why. I items of the live table."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from features.id_hashes import TimesById
from features.names import MS_PER_DAY
from features.user_state import UserState
from models.item_table import ItemTable
from serving.query import ItemRules

Bools = npt.NDArray[np.bool_]
Int32s = npt.NDArray[np.int32]

SEEN_WINDOW_MS = 30 * MS_PER_DAY
"""How long a seen item stays away. The store keeps the last 1,000 seen items (`features.user_state.SEEN_MAX`), so for
a user who sees more than that within the window it is shorter. What is hidden stays away while the store knows it."""

SEEN = "seen"
REASONS: Mapping[str, str] = {
    "unavailable": "it is not available",
    SEEN: "the user has seen it",
    "hidden": "the user has hidden it",
    "blocked": "the request blocks it or its category",
    "not_allowed": "the request allows other items only",
    "other_category": "the request wants other categories",
    "other_language": "the request wants other languages",
    "too_old": "it was published before what the request allows",
    "rule": "a rule of the rules file blocks it",
    "scrolled": "an earlier page of the scroll showed it",
    "itself": "it is the item that others should be like",
}
"""Every reason for which an item is filtered out, as a clause for people."""


@dataclass(frozen=True, kw_only=True)
class Exclusions:
    """What is filtered out, before retrieval so that sources spend their quotas on eligible items."""

    excluded_I: Bools
    masks: Mapping[str, Bools]
    """Which items `[I]` each of `REASONS` drops; an item may have several. Reasons that drop nothing may be absent."""

    @cached_property
    def dropped(self) -> Mapping[str, int]:
        """How many items each reason names; an item may have several."""
        return {reason: int(np.count_nonzero(mask_I)) for reason, mask_I in self.masks.items()}

    @cached_property
    def eligible(self) -> int:
        """How many items are left."""
        return len(self.excluded_I) - int(np.count_nonzero(self.excluded_I))

    def reasons(self, item_index: int) -> tuple[str, ...]:
        """Why an item is filtered out, as keys of `REASONS`; empty for one that is eligible."""
        return tuple(reason for reason, mask_I in self.masks.items() if mask_I[item_index])

    def keep(self, item_index_C: Int32s) -> Bools:
        """Which candidates `[C]` pass: a source that ignores its exclusions changes nothing."""
        passed: Bools = ~self.excluded_I[item_index_C]
        return passed

    def but_for(self, item_index: Iterable[int]) -> "Exclusions":
        """The same with these items eligible."""
        readmitted = list(item_index)
        if not readmitted:
            return self
        excluded_I = self.excluded_I.copy()
        excluded_I[readmitted] = False
        return Exclusions(excluded_I=excluded_I, masks=self.masks)


def exclusions(
    table: ItemTable,
    state: UserState,
    rules: ItemRules,
    *,
    seen_window_ms: int = SEEN_WINDOW_MS,
    more: Mapping[str, Bools | None] | None = None,
) -> Exclusions:
    """Marks every item that the user has seen or hidden, that is unavailable, or that the request's rules exclude.

    `more` are masks of other reasons, None where one drops nothing. An event of the future counts as seen.
    """
    masks: dict[str, Bools | None] = {
        "unavailable": ~table.available,
        SEEN: seen_since(table, state.seen, state.instant_ms - seen_window_ms),
        "hidden": marked(table, state.hidden),
        "blocked": either(marked(table, rules.block_item_ids), in_categories(table, rules.block_categories)),
        **_wanted(table, rules, state.instant_ms),
        **(more or {}),
    }
    given = {reason: mask_I for reason, mask_I in masks.items() if mask_I is not None}
    excluded_I = np.zeros(len(table), np.bool_)
    for mask_I in given.values():
        np.logical_or(excluded_I, mask_I, out=excluded_I)
    return Exclusions(excluded_I=excluded_I, masks=given)


def _wanted(table: ItemTable, rules: ItemRules, instant_ms: int) -> dict[str, Bools | None]:
    """Masks of the items that are not among those the request wants; nothing where it wants all."""
    masks: dict[str, Bools | None] = {}
    if rules.allow_item_ids:
        masks["not_allowed"] = _except(table, marked(table, rules.allow_item_ids))
    if rules.categories:
        masks["other_category"] = _except(table, in_categories(table, rules.categories))
    if rules.languages:
        masks["other_language"] = _except(table, in_languages(table, rules.languages))
    if rules.max_age_ms:
        masks["too_old"] = table.published_at_ms < max(instant_ms - rules.max_age_ms, 0)
    return masks


def in_categories(table: ItemTable, categories: Iterable[str]) -> Bools | None:
    """The items of these categories; None for none."""
    return _coded(table.category_code, table.category_index, categories)


def in_languages(table: ItemTable, languages: Iterable[str]) -> Bools | None:
    """The items in these languages; None for none."""
    return _coded(table.language_code, table.language_index, languages)


def by_creators(table: ItemTable, creators: Iterable[str]) -> Bools | None:
    """The items of these creators; None for none."""
    return _coded(table.creator_code, table.creator_index, creators)


def _coded(code_I: Int32s, index: Mapping[str, int], names: Iterable[str]) -> Bools | None:
    codes = [index[name] for name in names if name in index]
    if not codes:
        return None
    named_K = np.zeros(len(index), np.bool_)
    named_K[codes] = True
    marked_I: Bools = named_K.take(code_I)
    return marked_I


def seen_since(table: ItemTable, seen: Mapping[str, int], since_ms: int) -> Bools | None:
    """The items seen after the instant; None for none."""
    if not isinstance(seen, TimesById):
        return marked(table, [item_id for item_id, seen_ms in seen.items() if seen_ms > since_ms])
    return _some(table.mask_of_hashes(seen.hash_N[seen.time_ms_N > since_ms]))


def marked(table: ItemTable, item_ids: Collection[str]) -> Bools | None:
    """These items; None where the table knows none of them."""
    return _some(table.mask_of(item_ids))


def _some(marked_I: Bools) -> Bools | None:
    return marked_I if marked_I.any() else None


def either(one_I: Bools | None, other_I: Bools | None) -> Bools | None:
    """The items of either mask."""
    return one_I if other_I is None else other_I if one_I is None else one_I | other_I


def _except(table: ItemTable, wanted_I: Bools | None) -> Bools:
    return np.ones(len(table), np.bool_) if wanted_I is None else ~wanted_I
