"""Experiment arms: what differs between two ways of answering the same request."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from serving.rerank import RerankConfig

_RERANK = TypeAdapter(RerankConfig)

QUOTAS_FOR = 300
"""The number of scored candidates that the quotas are made for: sources overlap, and rerank needs a choice."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of answering: all that the pipeline needs to know of it."""

    name: str
    """What the answer and the log say: `<experiment>/<arm>` in an experiment."""
    quotas: Mapping[str, int]
    """Candidates asked of each source, by its name."""
    ranked: bool = True
    """Whether the bundle's ranker orders the candidates; otherwise the only source's own score does."""
    reranked: bool = True
    """Whether the rerank stage applies."""
    bundle_id: str | None = None
    """The bundle that answers; None: the champion."""
    value_weights: Mapping[str, float] = field(default_factory=dict)
    """Value weights by head; heads that are not named keep the bundle's."""
    rerank: RerankConfig | None = None
    """Settings of the rerank stage; None: the service's."""

    @property
    def uniform(self) -> bool:
        """Whether items are drawn uniformly, which propensities then say."""
        return not self.ranked and set(self.quotas) == {"random"}

    def effective(self, bundle_id: str, value_weights: Mapping[str, float], rerank: RerankConfig) -> "Arm":
        """The arm with nothing left open: on the bundle that answers, its weights and the service's rerank settings."""
        return replace(
            self,
            bundle_id=bundle_id,
            value_weights={**value_weights, **self.value_weights},
            rerank=self.rerank or rerank,
        )

    def to_json(self) -> dict[str, Any]:
        """The arm as JSON holds it."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        found |= {"quotas": dict(self.quotas), "value_weights": dict(self.value_weights)}
        return found | {"rerank": None if self.rerank is None else _RERANK.dump_python(self.rerank, mode="json")}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Arm":
        """Reads what `to_json` gave. Raises `TypeError` or `ValueError` for anything else."""
        rerank = values.get("rerank")
        return Arm(**{**values, "rerank": None if rerank is None else _RERANK.validate_python(rerank)})

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
"""The arms outside experiments. Nobody is assigned to the last two: they are asked for by name."""


def changed_rerank(changes: Mapping[str, Any], base: RerankConfig) -> RerankConfig:
    """The settings with some fields changed. Raises `ValueError` naming an unknown field or a value not allowed."""
    known = [each.name for each in fields(RerankConfig)]
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"unknown rerank setting {', '.join(unknown)}; allowed: {', '.join(known)}")
    try:
        return _RERANK.validate_python({**_RERANK.dump_python(base), **changes})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(["rerank", *map(str, first["loc"])])
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')} (got {dict(changes)})") from None
