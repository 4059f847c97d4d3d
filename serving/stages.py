"""What a request carries from stage to stage: its deadline, its milliseconds a stage and what degraded.

The same record is what metrics, traces and logs say of the request once it is over.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Self

from features.user_state import UserState

ADMIT = "admit"
HYDRATE = "hydrate"
RETRIEVE = "retrieve"
FILTER = "filter"
SCORE = "score"
RERANK = "rerank"
SIDE_EFFECTS = "side_effects"
STAGES = (ADMIT, HYDRATE, RETRIEVE, FILTER, SCORE, RERANK, SIDE_EFFECTS)


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """A stage that fell back, and why, in one clause."""

    stage: str
    reason: str
    kind: str = ""
    """One word of a bounded set, for counters: such as `timeout` for the store; empty where the stage says it all."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A stretch of a stage's time, on the clock of `Progress`."""

    stage: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class SourceCall:
    """What one candidate source was asked and gave. `outcome` is one of `SOURCE_OUTCOMES`."""

    source: str
    outcome: str
    candidates: int = 0
    start_s: float
    end_s: float


SOURCE_OUTCOMES = ("found", "empty", "failed", "absent", "no_time")
"""With candidates, without, broken, not in the bundle, and not asked since the deadline was near."""


class SupersededError(RuntimeError):
    """Another attempt at the same request has answered it: this one must have no effects."""


class Claim:
    """The right to answer a request, which is given once. Threads may share it."""

    def __init__(self) -> None:
        self._taken = Lock()

    def take(self) -> None:
        """Takes the right. Raises `SupersededError` when it is gone."""
        if not self._taken.acquire(blocking=False):
            raise SupersededError


@dataclass(kw_only=True)
class Progress:
    """The clockwork of one request. `monotonic_s` is any clock that never goes back."""

    monotonic_s: Callable[[], float]
    deadline_s: float
    """When the answer must be on its way, on that clock."""
    degraded: list[Degradation] = field(default_factory=list)
    stage_ms: dict[str, float] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    """In the order in which they ended; a stage may have several."""
    source_calls: list[SourceCall] = field(default_factory=list)
    filtered: Mapping[str, int] = field(default_factory=dict)
    """Items of the catalogue that each reason left out (`serving.filters.REASONS`)."""
    placed: Mapping[str, int] = field(default_factory=dict)
    """Positions of the slate that were "explored" or "pinned", and candidates that were "deduplicated"."""
    share: float = 1.0
    """Of the optional candidates, how many a busy service scores (`serving.admission`)."""
    claim: Claim = field(default_factory=Claim)
    user: UserState | None = None
    """What the store said of the user, once it has."""

    def remaining_ms(self) -> float:
        """Milliseconds to the deadline; negative past it."""
        return (self.deadline_s - self.monotonic_s()) * 1000

    def degrade(self, stage: str, reason: str, kind: str = "") -> None:
        """Notes a fallback, once for each stage and reason."""
        note = Degradation(stage=stage, reason=reason, kind=kind)
        if note not in self.degraded:
            self.degraded.append(note)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to the stage's."""
        started_s = self.monotonic_s()
        try:
            yield
        finally:
            self.took(name, started_s)

    def took(self, name: str, started_s: float) -> None:
        """Adds the time from `started_s` until now to the stage's."""
        ended_s = self.monotonic_s()
        self.stage_ms[name] = self.stage_ms.get(name, 0.0) + (ended_s - started_s) * 1000
        self.blocks.append(Block(stage=name, start_s=started_s, end_s=ended_s))

    def hurried(self) -> Self:
        """Another attempt at the same request with no time left: it reads what is in memory, and what the first has
        heard from the store. Only one of the two may answer.
        """
        return type(self)(
            monotonic_s=self.monotonic_s,
            deadline_s=self.monotonic_s(),
            degraded=list(self.degraded),
            claim=self.claim,
            user=self.user,
        )

    def asked(self, source: str, outcome: str, started_s: float, candidates: int = 0) -> None:
        """Notes a call of a source that began at `started_s` and ends now."""
        self.source_calls.append(
            SourceCall(
                source=source, outcome=outcome, candidates=candidates, start_s=started_s, end_s=self.monotonic_s()
            )
        )
