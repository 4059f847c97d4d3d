"""Items like an item: neighbours by co-occurrence, ALS factors and content, merged by reciprocal rank."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from models.sources.als import AlsSource
from models.sources.base import Candidates, RetrievalRequest, Source
from models.sources.content import ContentSource
from models.sources.item2item import Item2ItemSource
from models.sources.merge import merge
from serving.arms import POPULAR
from serving.retrieve import Retrieved, ask, retrieve
from serving.stages import RETRIEVE, Progress

MIN_NEIGHBOURS = 100
"""Asked of each source at least, so that what several of them name comes first."""

Neighbours = Callable[[RetrievalRequest, int, int], Candidates]
"""At most so many allowed items like the item of this index."""


def similar_items(
    sources: Mapping[str, Source], request: RetrievalRequest, item_index: int | None, wanted: int, progress: Progress
) -> Retrieved:
    """The allowed neighbours of an item; None is one that the catalogue does not know.

    A source that fails degrades the stage. Without any neighbour, what is popular comes, and the stage says so.
    """
    by_source: dict[str, Candidates] = {}
    for name, neighbours in _neighbours(sources).items() if item_index is not None else ():
        found = ask(name, partial(neighbours, request, item_index or 0, max(wanted, MIN_NEIGHBOURS)), progress)
        if found is not None and len(found):
            by_source[name] = found
    if by_source:
        return Retrieved(merged=merge(by_source), by_source=by_source)
    why = "the catalogue does not know the item" if item_index is None else "no other eligible item is like it"
    progress.degrade(RETRIEVE, f"{why}: items are in the order of popularity")
    return retrieve(sources, request, POPULAR.quotas, wanted, 0.0, progress)


def _neighbours(sources: Mapping[str, Source]) -> dict[str, Neighbours]:
    found: dict[str, Neighbours] = {}
    for name, source in sources.items():
        if isinstance(source, AlsSource):
            found[name] = source.similar
        elif isinstance(source, ContentSource):
            found[name] = _of_content(source)
        elif isinstance(source, Item2ItemSource):
            found[name] = _of_co_occurrence(source)
    return found


def _of_co_occurrence(source: Item2ItemSource) -> Neighbours:
    def neighbours(request: RetrievalRequest, item_index: int, count: int) -> Candidates:
        stored = source.similar(item_index)
        kept = np.flatnonzero(request.allowed_I[stored.item_index])[:count]
        return Candidates(item_index=stored.item_index[kept], score=stored.score[kept])

    return neighbours


def _of_content(source: ContentSource) -> Neighbours:
    def neighbours(request: RetrievalRequest, item_index: int, count: int) -> Candidates:
        alone = replace(
            request,
            history_index_L=np.array([item_index], np.int32),
            history_weight_L=np.ones(1, np.float32),
            history_age_ms_L=np.zeros(1, np.int64),
        )
        return source.candidates(alone, count)

    return neighbours
