"""Candidate sources by name. Reading them needs numpy, and faiss for a large catalogue."""

from models.sources.als import AlsSource
from models.sources.base import EMPTY, Candidates, RetrievalRequest, Source
from models.sources.content import ContentSource
from models.sources.exploration import ExplorationSource
from models.sources.follow import FollowSource
from models.sources.item2item import Item2ItemSource
from models.sources.popular import PopularSource
from models.sources.trending import TrendingSource, trending_scores

SOURCE_TYPES: dict[str, type[Source]] = {
    source.name: source
    for source in (
        AlsSource,
        Item2ItemSource,
        PopularSource,
        TrendingSource,
        ContentSource,
        FollowSource,
        ExplorationSource,
    )
}

__all__ = ["EMPTY", "SOURCE_TYPES", "Candidates", "RetrievalRequest", "Source", "trending_scores"]
