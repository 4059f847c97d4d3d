"""Candidates of the bundle's sources, merged with provenance. I items of the live table, C candidates."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from models.sources.base import EMPTY, Candidates, Int32s, RetrievalRequest, Source, top
from models.sources.merge import Merged, merge
from serving.stages import RETRIEVE, Progress

_log = logging.getLogger(__name__)

CATALOGUE = "catalogue"
"""Provenance of eligible items that no source proposed: the newest first, to fill a slate."""
RANDOM = "random"
REQUEST = "request"
"""Provenance of items that the caller named."""
PINNED = "pinned"
"""Provenance of items that a rule put into the slate."""


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """Distinct candidates, best first by reciprocal rank, and what each source proposed."""

    merged: Merged
    by_source: Mapping[str, Candidates]

    def source_ranks(self, item_index: int) -> dict[str, int]:
        """The sources that proposed the item with its rank in each, best rank first."""
        ranks: dict[str, int] = {}
        for name, found in self.by_source.items():
            at = np.flatnonzero(found.item_index == item_index)
            if at.size:
                ranks[name] = int(at[0])
        return dict(sorted(ranks.items(), key=itemgetter(1)))

    def with_pinned(self, item_index: Sequence[int]) -> "Retrieved":
        """The same with pinned items among the candidates."""
        if not item_index:
            return self
        pinned = Candidates(item_index=np.array(item_index, np.int32), score=np.zeros(len(item_index), np.float32))
        by_source = {PINNED: pinned, **self.by_source}
        return Retrieved(merged=merge(by_source), by_source=by_source)


def retrieve(
    sources: Mapping[str, Source],
    request: RetrievalRequest,
    quotas: Mapping[str, int],
    wanted: int,
    reserve_ms: float,
    progress: Progress,
) -> Retrieved:
    """Asks each source for its quota; a source that fails, or has no time left, degrades the stage.

    Below `wanted` candidates the popular source, then the newest eligible items, fill up: a slate is short only
    when the catalogue is. `reserve_ms` is what the stages after this one need.
    """
    by_source: dict[str, Candidates] = {}
    for name, quota in quotas.items():
        if progress.remaining_ms() < reserve_ms:
            progress.degrade(RETRIEVE, f"no time left for the source {name}")
            progress.asked(name, "no_time", progress.monotonic_s())
            continue
        found = _candidates(sources, name, request, quota, progress)
        if found is not None and len(found):
            by_source[name] = found
    merged = merge(by_source)
    if len(merged.item_index_C) < wanted:
        by_source = {**by_source, **_filled(sources, request, merged.item_index_C, wanted, progress)}
        merged = merge(by_source)
    return Retrieved(merged=merged, by_source=by_source)


def of_request(item_index_C: Int32s) -> Retrieved:
    """The caller's own items as candidates, in their order."""
    named = Candidates(item_index=item_index_C, score=np.zeros(len(item_index_C), np.float32))
    return Retrieved(merged=merge({REQUEST: named}), by_source={REQUEST: named})


def _candidates(
    sources: Mapping[str, Source], name: str, request: RetrievalRequest, quota: int, progress: Progress
) -> Candidates | None:
    if name == RANDOM:
        return top(request.rng.random(len(request.item_table)), request.allowed_I, quota)
    if name not in sources:
        progress.degrade(RETRIEVE, f"the bundle has no source {name}")
        progress.asked(name, "absent", progress.monotonic_s())
        return None
    return ask(name, lambda: sources[name].candidates(request, quota), progress)


def ask(name: str, source: Callable[[], Candidates], progress: Progress) -> Candidates | None:
    """What a source proposes; None, and the stage degrades, where it fails."""
    started_s = progress.monotonic_s()
    try:
        found = source()
    except Exception as error:  # noqa: BLE001 - one source's failure must not fail the answer
        progress.degrade(RETRIEVE, f"the source {name} failed: {type(error).__name__}")
        progress.asked(name, "failed", started_s)
        _log.exception("the source %s failed", name)
        return None
    progress.asked(name, "found" if len(found) else "empty", started_s, len(found))
    return found


def _filled(
    sources: Mapping[str, Source], request: RetrievalRequest, found_C: Int32s, wanted: int, progress: Progress
) -> dict[str, Candidates]:
    """The popular source's candidates, and the trending one's where nothing was found at all; should they fail, what
    is popular and trending by the item features in memory; then the newest items.
    """
    more: dict[str, Candidates] = {}
    for name in ("popular",) if len(found_C) else ("trending", "popular"):
        found = _candidates(sources, name, request, wanted, progress)
        if found is None:
            progress.degrade(RETRIEVE, f"what is {name} is taken from the item features in memory")
            found = _from_memory(name, request, wanted)
        if len(found):
            more[name] = found
    for found in more.values():
        found_C = np.union1d(found_C, found.item_index)
    if len(found_C) < wanted:
        left_I = request.allowed_I.copy()
        left_I[found_C] = False
        newest = top(request.item_table.published_at_ms.astype(np.float64), left_I, wanted - len(found_C))
        if len(newest):
            more[CATALOGUE] = newest
    return more


def _from_memory(name: str, request: RetrievalRequest, wanted: int) -> Candidates:
    """The allowed items with most clicks of late, or with most impressions; none where the features say nothing."""
    count_I = request.trending_score_I if name == "trending" else request.impressions_I
    return EMPTY if count_I is None else top(count_I, request.allowed_I & (count_I > 0), wanted)
