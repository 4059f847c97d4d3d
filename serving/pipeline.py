"""The fixed stages of a request: hydrate, retrieve, filter, score, rerank, side effects.

Each stage has a limit within the caller's deadline and a fallback; what fell back is in the answer.

| stage | limit | fallback |
|---|---|---|
| hydrate | `hydrate_ms`, at most half of what is left; not begun below `min_hydrate_ms` | a user without events |
| retrieve | no further source once `score_reserve_ms` is all that is left | the other sources, popular, newest |
| filter | in memory | none: without the user's state there is nothing seen or hidden to filter |
| score | not begun below `min_score_ms`, nor when it would end late by what it has cost | the retrieval's order |
| rerank | not begun past the deadline | the order of the scores |
| side effects | never waits | counted, and named in the answer |

C candidates, L items of the history, I items of the live table.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from features.user_state import UserState
from models.history import UserHistory, user_history
from models.item_table import UNKNOWN, Int32s
from models.sources.base import Float32s, RetrievalRequest
from serving.answer import Answer
from serving.arms import ARMS, Arm
from serving.arms import RANDOM as RANDOM_ARM
from serving.cost import Cost
from serving.filters import Exclusions, exclusions
from serving.query import Query
from serving.rerank import RankedRows, RerankConfig, by_score, rerank
from serving.retrieve import Retrieved, of_request, retrieve
from serving.score import Scored, score, unranked
from serving.stages import ADMIT, FILTER, HYDRATE, RERANK, RETRIEVE, SCORE, SIDE_EFFECTS, Progress
from serving.users import UserReadError, unknown_user
from serving.view import LiveView

_log = logging.getLogger(__name__)

HEADROOM = 0.8
"""Of the time left for scoring, what candidates are cut to fit: some goes by before it begins."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Limits of the stages."""

    max_candidates: int = 300
    """How many candidates are scored at most, unless the caller wants more items."""
    min_candidates: int = 100
    """Below it the popular source and the catalogue fill up."""
    hydrate_ms: float = 25.0
    min_hydrate_ms: float = 1.0
    """With less there is no use in asking the store."""
    score_reserve_ms: float = 8.0
    min_score_ms: float = 3.0
    rerank: RerankConfig = field(default_factory=RerankConfig)

    def __post_init__(self) -> None:
        if not 0 < self.min_candidates <= self.max_candidates:
            raise ValueError(
                f"pipeline: got min_candidates={self.min_candidates}, max_candidates={self.max_candidates}; "
                "allowed: 0 < min_candidates <= max_candidates."
            )

    def limit(self, share: float) -> int:
        """How many candidates are scored at most while the service has room for that share of the optional ones."""
        return self.min_candidates + round(share * (self.max_candidates - self.min_candidates))


class Users(Protocol):
    """Where the state of users comes from (`serving.users.UserReader`)."""

    def read(self, user_id: str, instant_ms: int, timeout_ms: float) -> UserState:
        """The user's state. Raises `UserReadError` within the timeout."""
        ...


class Slates(Protocol):
    """Where served slates go (`serving.slate_log.SlateLog`)."""

    def submit(self, answer: Answer) -> str | None:
        """Takes the answer at once; returns why it may be lost, or None."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Hydrated:
    """What every stage after hydration reads."""

    view: LiveView
    query: Query
    arm: Arm
    progress: Progress
    state: UserState
    history: UserHistory
    rng: np.random.Generator
    """Seeded by the request id, so that a replay of the request draws the same."""


class Pipeline:
    """Answers queries from a view. Holds no state but what scoring has cost, so it may run in several threads."""

    def __init__(
        self,
        *,
        users: Users,
        slates: Slates | None,
        config: PipelineConfig,
        clock_ms: Callable[[], int],
    ) -> None:
        self._users = users
        self._slates = slates
        self._config = config
        self._clock_ms = clock_ms
        self._score_cost = Cost()
        self.answer_cost = Cost()
        """Of a finished request, from its last stage to its message, by the items in it."""

    def recommend(self, view: LiveView, query: Query, progress: Progress) -> Answer:
        """A slate of the best eligible items. Never fails for a part that fails."""
        request = self._hydrate(view, query, progress)
        with progress.stage(FILTER):
            excluded = exclusions(view.item_table, request.state, query.rules)
        with progress.stage(RETRIEVE):
            retrieved = self._retrieve(request, excluded)
        with progress.stage(FILTER):
            kept = excluded.keep(retrieved.merged.item_index_C)
            limit = self._limit(request, int(np.count_nonzero(kept)))
            item_index_C = retrieved.merged.item_index_C[kept][:limit]
            retrieval_score_C = retrieved.merged.score_C[kept][:limit]
        with progress.stage(SCORE):
            scored = self._score(request, item_index_C, retrieval_score_C)
        with progress.stage(RERANK):
            rows = self._rerank(request, retrieved, item_index_C, scored)
            if request.arm is RANDOM_ARM:
                rows = _uniform(rows, excluded.eligible)
        return self._finished(request, retrieved, item_index_C, scored, rows)

    def rank(self, view: LiveView, query: Query, progress: Progress) -> Answer:
        """The caller's own items by score; without the ranker in the caller's order."""
        request = self._hydrate(view, query, progress)
        with progress.stage(RETRIEVE):
            asked = query.item_ids or ()
            found = view.item_table.indices(asked)
            unknown = tuple(item_id for item_id, index in zip(asked, found, strict=True) if index == UNKNOWN)
            retrieved = of_request(found[found != UNKNOWN])
        item_index_C = retrieved.merged.item_index_C
        with progress.stage(SCORE):
            scored = self._score(request, item_index_C, retrieved.merged.score_C)
        with progress.stage(RERANK):
            rows = by_score(scored.score_C, query.count)
        return self._finished(request, retrieved, item_index_C, scored, rows, unknown)

    def _hydrate(self, view: LiveView, query: Query, progress: Progress) -> _Hydrated:
        instant_ms = self._clock_ms()
        with progress.stage(HYDRATE):
            state = self._user(query.user_id, instant_ms, progress)
            history = user_history(state.history, view.item_table)
        for note in view.notes:
            progress.degrade(RETRIEVE, note)
        return _Hydrated(
            view=view,
            query=query,
            arm=ARMS[query.arm],
            progress=progress,
            state=state,
            history=history,
            rng=np.random.default_rng(int.from_bytes(query.request_id.encode())),
        )

    def _user(self, user_id: str, instant_ms: int, progress: Progress) -> UserState:
        if progress.user is not None:
            return progress.user
        if not user_id:
            return unknown_user(user_id, instant_ms)
        timeout_ms = min(self._config.hydrate_ms, progress.remaining_ms() / 2)
        try:
            if timeout_ms < self._config.min_hydrate_ms:
                raise UserReadError("no time left to read the user", "no_time")
            progress.user = self._users.read(user_id, instant_ms, timeout_ms)
        except UserReadError as error:
            progress.degrade(HYDRATE, str(error), error.kind)
            return unknown_user(user_id, instant_ms)
        return progress.user

    def _limit(self, request: _Hydrated, eligible: int) -> int:
        """How many of the eligible candidates are scored: fewer when the service is busy or the deadline near, but
        never fewer than the caller wants, and no fewer than `min_candidates` because it is busy.
        """
        config, query, progress = self._config, request.query, request.progress
        plenty = min(max(config.max_candidates, query.count), eligible)
        limit = min(max(config.limit(progress.share), query.count), plenty)
        if limit < plenty and request.arm.ranked:
            progress.degrade(ADMIT, f"the service is busy: {plenty - limit} of {plenty} candidates were not scored")
        if not request.arm.ranked:
            return plenty
        left_ms = self._score_ms(request) * HEADROOM
        fitting = self._score_cost.fitting(request.view.bundle.bundle_id, limit, left_ms)
        if min(query.count, limit) <= fitting < limit:
            progress.degrade(SCORE, f"little time left: {limit - fitting} of {limit} candidates were not scored")
            return fitting
        return limit

    def _score_ms(self, request: _Hydrated) -> float:
        """How long scoring may take so that the answer is on time, by what finishing it has cost."""
        return request.progress.remaining_ms() - self.answer_cost.estimate_ms("", request.query.count)

    def _retrieve(self, request: _Hydrated, excluded: Exclusions) -> Retrieved:
        view, arm, instant_ms = request.view, request.arm, request.state.instant_ms
        wanted = max(request.query.count, self._config.min_candidates) if arm.reranked else request.query.count
        asked = RetrievalRequest(
            instant_ms=instant_ms,
            item_table=view.item_table,
            history_index_L=request.history.item_index_L,
            history_weight_L=request.history.weight_L,
            history_age_ms_L=np.maximum(instant_ms - request.history.time_ms_L, 0),
            excluded_I=excluded.excluded_I,
            rng=request.rng,
            followed_creators=request.state.followed,
            trending_score_I=view.trending_score_I,
            impressions_I=view.impressions_I,
            language=request.query.language,
        )
        reserve_ms = self._config.score_reserve_ms if arm.ranked else 0.0
        return retrieve(view.bundle.sources, asked, arm, wanted, reserve_ms, request.progress)

    def _score(self, request: _Hydrated, item_index_C: Int32s, retrieval_score_C: Float32s) -> Scored:
        fallback = unranked(retrieval_score_C)
        progress, query = request.progress, request.query
        if not request.arm.ranked:
            return fallback
        bundle_id, left_ms = request.view.bundle.bundle_id, self._score_ms(request)
        fitting = self._score_cost.fitting(bundle_id, len(item_index_C), left_ms)
        if fitting < len(item_index_C) or left_ms < self._config.min_score_ms:
            progress.degrade(SCORE, "no time left for the ranker: items are in the order of retrieval")
            return fallback
        started_s = progress.monotonic_s()
        try:
            scored = score(request.view, request.state, request.history, item_index_C, query.device)
        except Exception as error:  # noqa: BLE001 - a ranker that fails must not fail the answer
            _log.exception("the ranker failed")
            progress.degrade(SCORE, f"the ranker failed ({type(error).__name__}): items are in the order of retrieval")
            return fallback
        spent_ms = (progress.monotonic_s() - started_s) * 1000
        self._score_cost.observe(bundle_id, len(item_index_C), spent_ms)
        if scored.sunk:
            progress.degrade(SCORE, f"{scored.sunk} of {len(item_index_C)} scores were not finite and sank")
        return scored

    def _rerank(self, request: _Hydrated, retrieved: Retrieved, item_index_C: Int32s, scored: Scored) -> RankedRows:
        query, table = request.query, request.view.item_table
        if not request.arm.reranked:
            return by_score(scored.score_C, query.count)
        if request.progress.remaining_ms() <= 0:
            request.progress.degrade(RERANK, "no time left: items are in the order of their scores")
            return by_score(scored.score_C, query.count)
        explorable = retrieved.by_source.get("exploration")
        return rerank(
            score_C=scored.score_C,
            category_C=table.category_code[item_index_C].astype(np.int64),
            creator_C=table.creator_code[item_index_C].astype(np.int64),
            age_ms_C=request.state.instant_ms - table.published_at_ms[item_index_C],
            explorable_C=np.isin(item_index_C, [] if explorable is None else explorable.item_index),
            count=query.count,
            config=self._config.rerank,
            rng=request.rng if query.explore else None,
        )

    def _finished(
        self,
        request: _Hydrated,
        retrieved: Retrieved,
        item_index_C: Int32s,
        scored: Scored,
        rows: RankedRows,
        unknown_item_ids: tuple[str, ...] = (),
    ) -> Answer:
        request.progress.claim.take()
        answer = Answer(
            query=request.query,
            view=request.view,
            progress=request.progress,
            served_at_ms=self._clock_ms(),
            newest_event_ms=request.state.newest_event_ms,
            retrieved=retrieved,
            item_index_C=item_index_C,
            scored=scored,
            rows=rows,
            unknown_item_ids=unknown_item_ids,
        )
        with request.progress.stage(SIDE_EFFECTS):
            lost = None if self._slates is None else self._slates.submit(answer)
        if lost is not None:
            request.progress.degrade(SIDE_EFFECTS, lost)
        return answer


def _uniform(rows: RankedRows, eligible: int) -> RankedRows:
    """The propensities of a draw without replacement: one in what is left at each position."""
    left_S = np.maximum(eligible - np.arange(len(rows.row_S)), 1)
    return replace(rows, propensity_S=1.0 / left_S)
