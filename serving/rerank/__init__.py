"""From scores to a slate: boosts, languages, freshness, deduplication, spread, exploration and pins, in this order."""

from serving.rerank.config import RerankConfig
from serving.rerank.contenders import Boost, Contenders, Likeness, Pin, RuleEffects
from serving.rerank.explore import draw_rng
from serving.rerank.rows import Move, RankedRows, by_score
from serving.rerank.steps import rerank

__all__ = [
    "Boost",
    "Contenders",
    "Likeness",
    "Move",
    "Pin",
    "RankedRows",
    "RerankConfig",
    "RuleEffects",
    "by_score",
    "draw_rng",
    "rerank",
]
