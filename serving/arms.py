"""Experiment arms: what differs between two ways of answering the same request."""

from collections.abc import Mapping
from dataclasses import dataclass

QUOTAS_FOR = 300
"""The number of scored candidates that the quotas are made for: sources overlap, and rerank needs a choice."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of answering."""

    name: str
    quotas: Mapping[str, int]
    """Candidates asked of each source, by its name."""
    ranked: bool = True
    """Whether the bundle's ranker orders the candidates; otherwise the only source's own score does."""
    reranked: bool = True
    """Whether spread, freshness and exploration apply."""

    def quotas_for(self, max_candidates: int) -> Mapping[str, int]:
        """The quotas, more or fewer where another number of candidates than `QUOTAS_FOR` is scored at most."""
        if max_candidates == QUOTAS_FOR:
            return self.quotas
        return {name: -(-quota * max_candidates // QUOTAS_FOR) for name, quota in self.quotas.items()}


MILLRACE = Arm(
    name="millrace",
    quotas={
        "als": 120,
        "item2item": 100,
        "content": 60,
        "trending": 60,
        "popular": 60,
        "follow": 40,
        "exploration": 30,
    },
)
POPULAR = Arm(name="popular", quotas={"popular": 500}, ranked=False, reranked=False)
RANDOM = Arm(name="random", quotas={"random": 500}, ranked=False, reranked=False)

ARMS: Mapping[str, Arm] = {arm.name: arm for arm in (MILLRACE, POPULAR, RANDOM)}
DEFAULT_ARM = MILLRACE.name
