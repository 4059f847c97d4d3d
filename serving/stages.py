"""What a request carries from stage to stage: its deadline, its milliseconds a stage and what degraded."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

HYDRATE = "hydrate"
RETRIEVE = "retrieve"
FILTER = "filter"
SCORE = "score"
RERANK = "rerank"
SIDE_EFFECTS = "side_effects"
STAGES = (HYDRATE, RETRIEVE, FILTER, SCORE, RERANK, SIDE_EFFECTS)


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """A stage that fell back, and why, in one clause."""

    stage: str
    reason: str


@dataclass(kw_only=True)
class Progress:
    """The clockwork of one request. `monotonic_s` is any clock that never goes back."""

    monotonic_s: Callable[[], float]
    deadline_s: float
    """When the answer must be on its way, on that clock."""
    degraded: list[Degradation] = field(default_factory=list)
    stage_ms: dict[str, float] = field(default_factory=dict)
    filtered: Mapping[str, int] = field(default_factory=dict)
    """Items of the catalogue that each reason left out (`serving.filters.REASONS`)."""
    placed: Mapping[str, int] = field(default_factory=dict)
    """Positions of the slate that were "explored" or "pinned", and candidates that were "deduplicated"."""

    def remaining_ms(self) -> float:
        """Milliseconds to the deadline; negative past it."""
        return (self.deadline_s - self.monotonic_s()) * 1000

    def degrade(self, stage: str, reason: str) -> None:
        """Notes a fallback, once for each stage and reason."""
        note = Degradation(stage=stage, reason=reason)
        if note not in self.degraded:
            self.degraded.append(note)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to the stage's."""
        started_s = self.monotonic_s()
        try:
            yield
        finally:
            self.stage_ms[name] = self.stage_ms.get(name, 0.0) + (self.monotonic_s() - started_s) * 1000
