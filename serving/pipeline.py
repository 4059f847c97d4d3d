"""The fixed stages of a request: hydrate, retrieve, filter, score, rerank, side effects.

Each stage has a limit within the caller's deadline and a fallback; what fell back is in the answer.

| stage | limit | fallback |
|---|---|---|
| hydrate | `hydrate_ms`, at most half of what is left; not begun below `min_hydrate_ms` | a user without events |
| retrieve | no further source once `score_reserve_ms` is all that is left | the other sources, popular, newest |
| filter | in memory | none: without the user's state there is nothing seen or hidden to filter |
| score | not begun below `min_score_ms`, nor when it would end late by what it has cost | the retrieval's order |
| rerank | not begun past the deadline | the order of the scores, without pins |
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
from serving.arms import Arm
from serving.cost import Cost
from serving.filters import SEEN_WINDOW_MS, Bools, Exclusions, exclusions
from serving.paging import ItemHashes
from serving.query import Query
from serving.rerank import Contenders, RankedRows, RerankConfig, by_score, draw_rng, rerank
from serving.rerank_inputs import contenders
from serving.retrieve import Retrieved, of_request, retrieve
from serving.rule_index import PinnedItem, RuleIndex, RuleIndexes
from serving.rules import NO_RULES, Audience, Rules
from serving.score import Scored, score, unranked
from serving.similar import similar_items
from serving.stages import ADMIT, FILTER, HYDRATE, RERANK, RETRIEVE, SCORE, SIDE_EFFECTS, Progress
from serving.user_read_error import UserReadError
from serving.users import unknown_user
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
    seen_window_ms: int = SEEN_WINDOW_MS
    rerank: RerankConfig = field(default_factory=RerankConfig)

    def __post_init__(self) -> None:
        if not 0 < self.min_candidates <= self.max_candidates:
            raise ValueError(
                f"pipeline: got min_candidates={self.min_candidates}, max_candidates={self.max_candidates}; "
                "allowed: 0 < min_candidates <= max_candidates."
            )
        if self.seen_window_ms < 0:
            raise ValueError(f"pipeline: got seen_window_ms={self.seen_window_ms}; allowed: from 0.")

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


class Shadows(Protocol):
    """What scores answers again in the shadow (`serving.shadow.ShadowScorer`)."""

    def offer(self, answer: Answer) -> None:
        """Takes the answer, or not, at once."""
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
    rules: RuleIndex
    audience: Audience
    rng: np.random.Generator
    """Of the retrieval, seeded by the request id, so that a replay of the request draws the same."""


class Pipeline:
    """Answers queries from a view. Keeps only what requests would make anew, so it may run in several threads."""

    def __init__(
        self,
        *,
        users: Users,
        slates: Slates | None,
        config: PipelineConfig,
        clock_ms: Callable[[], int],
        rules: Callable[[], Rules] = lambda: NO_RULES,
        shadow: Shadows | None = None,
    ) -> None:
        self._users = users
        self._shadow = shadow
        self._slates = slates
        self._config = config
        self._clock_ms = clock_ms
        self._score_cost = Cost()
        self.answer_cost = Cost()
        """Of a finished request, from its last stage to its message, by the items in it."""
        self._rules = rules
        self._rule_indexes = RuleIndexes()
        self._hashes = ItemHashes()

    def recommend(self, view: LiveView, query: Query, progress: Progress) -> Answer:
        """A slate of the best eligible items. Never fails for a part that fails."""
        request = self._hydrate(view, query, progress)
        view = request.view
        with progress.stage(FILTER):
            excluded = self._exclusions(request, "scrolled", self._hashes.shown(view.item_table.item_ids, query.scroll))
            pinned = self._pinned(request, excluded)
            excluded = excluded.but_for(pin.item_index for pin in pinned)
        with progress.stage(RETRIEVE):
            retrieved = self._retrieve(request, excluded).with_pinned([pin.item_index for pin in pinned])
        with progress.stage(FILTER):
            item_index_C, retrieval_score_C = self._kept(request, retrieved, excluded, pinned)
        with progress.stage(SCORE):
            scored = self._score(request, item_index_C, retrieval_score_C)
        with progress.stage(RERANK):
            rows, contended = self._rerank(request, retrieved, item_index_C, scored, pinned)
            if request.arm.uniform:
                rows = uniform(rows, excluded.eligible)
        token = _next_page_token(request, excluded, item_index_C, rows)
        return self._finished(
            request, retrieved, item_index_C, scored, rows, excluded=excluded, contenders=contended, token=token
        )

    def similar(self, view: LiveView, query: Query, progress: Progress) -> Answer:
        """The neighbours of an item, in the order of the merge; what is popular for an item without any."""
        request = self._hydrate(view, query, progress)
        view = request.view
        index = None if query.similar_to is None else view.item_table.index.get(query.similar_to)
        with progress.stage(FILTER):
            itself_I = None if index is None else np.arange(len(view.item_table)) == index
            excluded = self._exclusions(request, "itself", itself_I)
        with progress.stage(RETRIEVE):
            asked = self._asked(request, excluded)
            retrieved = similar_items(view.bundle.sources, asked, index, query.count, progress)
        with progress.stage(FILTER):
            item_index_C, retrieval_score_C = self._kept(request, retrieved, excluded, ())
        with progress.stage(RERANK):
            scored = unranked(retrieval_score_C)
            rows = by_score(scored.score_C, query.count)
        return self._finished(request, retrieved, item_index_C, scored, rows, excluded=excluded)

    def rank(self, view: LiveView, query: Query, progress: Progress) -> Answer:
        """The caller's own items by score; without the ranker in the caller's order."""
        request = self._hydrate(view, query, progress)
        with progress.stage(RETRIEVE):
            asked = query.item_ids or ()
            found = request.view.item_table.indices(asked)
            unknown = tuple(item_id for item_id, index in zip(asked, found, strict=True) if index == UNKNOWN)
            retrieved = of_request(found[found != UNKNOWN])
        item_index_C = retrieved.merged.item_index_C
        with progress.stage(SCORE):
            scored = self._score(request, item_index_C, retrieved.merged.score_C)
        with progress.stage(RERANK):
            rows = by_score(scored.score_C, query.count)
        return self._finished(request, retrieved, item_index_C, scored, rows, unknown_item_ids=unknown)

    def _hydrate(self, view: LiveView, query: Query, progress: Progress) -> _Hydrated:
        view, instant_ms = _chosen(view, query, progress), self._clock_ms()
        with progress.stage(HYDRATE):
            state = self._user(query.user_id, instant_ms, progress)
            history = user_history(state.history, view.item_table)
        for note in view.notes:
            progress.degrade(RETRIEVE, note)
        audience = Audience(
            surface=query.surface,
            language=query.language,
            device=query.device,
            interests=frozenset(state.categories),
            instant_ms=instant_ms,
        )
        return _Hydrated(
            rules=self._rule_indexes.of(self._rules(), view.item_table),
            audience=audience,
            view=view,
            query=query,
            arm=query.arm.effective(view.bundle.bundle_id, view.bundle.value_weights, self._config.rerank),
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

    def _exclusions(self, request: _Hydrated, reason: str, mask_I: Bools | None) -> Exclusions:
        """What is filtered out, with what one more reason leaves out."""
        excluded = exclusions(
            request.view.item_table,
            request.state,
            request.query.rules,
            seen_window_ms=self._config.seen_window_ms,
            more={"rule": request.rules.blocked(request.audience), reason: mask_I},
        )
        request.progress.filtered = excluded.dropped
        return excluded

    def _pinned(self, request: _Hydrated, excluded: Exclusions) -> tuple[PinnedItem, ...]:
        query = request.query
        if not (request.arm.reranked and query.scroll.is_first_page):
            return ()
        return request.rules.pinned(request.audience, excluded, query.count)

    def _kept(
        self, request: _Hydrated, retrieved: Retrieved, excluded: Exclusions, pinned: tuple[PinnedItem, ...]
    ) -> tuple[Int32s, Float32s]:
        """The candidates that pass the filters and their retrieval scores, up to the limit, the pinned ones first."""
        row_C = np.flatnonzero(excluded.keep(retrieved.merged.item_index_C))
        limit = self._limit(request, len(row_C))
        if pinned:
            pinned_C = np.isin(retrieved.merged.item_index_C[row_C], [pin.item_index for pin in pinned])
            row_C = row_C[np.argsort(~pinned_C, kind="stable")]
        return retrieved.merged.item_index_C[row_C[:limit]], retrieved.merged.score_C[row_C[:limit]]

    def _retrieve(self, request: _Hydrated, excluded: Exclusions) -> Retrieved:
        view, arm = request.view, request.arm
        wanted = max(request.query.count, self._config.min_candidates) if arm.reranked else request.query.count
        reserve_ms = self._config.score_reserve_ms if arm.ranked else 0.0
        asked = self._asked(request, excluded)
        quotas = arm.quotas_for(self._config.max_candidates)
        return retrieve(view.bundle.sources, asked, quotas, wanted, reserve_ms, request.progress)

    def _asked(self, request: _Hydrated, excluded: Exclusions) -> RetrievalRequest:
        view, instant_ms = request.view, request.state.instant_ms
        return RetrievalRequest(
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
        )

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
            weights = request.arm.value_weights
            scored = score(request.view, request.state, request.history, item_index_C, query.device, weights)
        except Exception as error:  # noqa: BLE001 - a ranker that fails must not fail the answer
            _log.exception("the ranker failed")
            progress.degrade(SCORE, f"the ranker failed ({type(error).__name__}): items are in the order of retrieval")
            return fallback
        spent_ms = (progress.monotonic_s() - started_s) * 1000
        self._score_cost.observe(bundle_id, len(item_index_C), spent_ms)
        if scored.sunk:
            progress.degrade(SCORE, f"{scored.sunk} of {len(item_index_C)} scores were not finite and sank")
        return scored

    def _rerank(
        self,
        request: _Hydrated,
        retrieved: Retrieved,
        item_index_C: Int32s,
        scored: Scored,
        pinned: tuple[PinnedItem, ...],
    ) -> tuple[RankedRows, Contenders | None]:
        query, progress = request.query, request.progress
        if not request.arm.reranked:
            return by_score(scored.score_C, query.count), None
        if progress.remaining_ms() <= 0:
            progress.degrade(RERANK, "no time left: items are in the order of their scores")
            return by_score(scored.score_C, query.count), None
        try:
            effects = request.rules.effects(request.audience, item_index_C, pinned)
            instant_ms = request.state.instant_ms
            contended = contenders(request.view, item_index_C, scored, retrieved, effects, instant_ms, query.language)
            rows = rerank(
                contended,
                query.count,
                request.arm.rerank or self._config.rerank,
                draw_rng(query.request_id) if query.explore else None,
                explain=query.explain,
            )
        except Exception as error:  # noqa: BLE001 - a slate in the order of the scores is better than none
            _log.exception("the rerank failed", extra={"request_id": query.request_id})
            progress.degrade(RERANK, f"it failed ({type(error).__name__}): items are in the order of their scores")
            return by_score(scored.score_C, query.count), None
        explored = int(np.count_nonzero(rows.explored_S))
        progress.placed = {"explored": explored, "pinned": len(effects.pins), "deduplicated": rows.deduplicated}
        return rows, contended

    def _finished(
        self,
        request: _Hydrated,
        retrieved: Retrieved,
        item_index_C: Int32s,
        scored: Scored,
        rows: RankedRows,
        *,
        excluded: Exclusions | None = None,
        contenders: Contenders | None = None,
        unknown_item_ids: tuple[str, ...] = (),
        token: str = "",
    ) -> Answer:
        request.progress.claim.take()
        answer = Answer(
            query=request.query,
            arm=request.arm,
            view=request.view,
            state=request.state,
            progress=request.progress,
            served_at_ms=self._clock_ms(),
            newest_event_ms=request.state.newest_event_ms,
            retrieved=retrieved,
            item_index_C=item_index_C,
            scored=scored,
            rows=rows,
            excluded=excluded,
            contenders=contenders,
            unknown_item_ids=unknown_item_ids,
            next_page_token=token,
            rules_version=request.rules.rules.version,
        )
        with request.progress.stage(SIDE_EFFECTS):
            lost = None if self._slates is None else self._slates.submit(answer)
            if self._shadow is not None:
                self._shadow.offer(answer)
        if lost is not None:
            request.progress.degrade(SIDE_EFFECTS, lost)
        return answer


def _chosen(view: LiveView, query: Query, progress: Progress) -> LiveView:
    """The view of the bundle that the arm names; the champion's while that bundle is not loaded."""
    wanted = query.arm.bundle_id
    found = view if wanted is None else view.of(wanted)
    if found is None:
        why = f"the bundle {wanted} of the arm {query.arm.name} is not loaded: the champion answers"
        progress.degrade(RETRIEVE, why)
    return found or view


def uniform(rows: RankedRows, eligible: int) -> RankedRows:
    """The propensities of a draw without replacement: one in what is left at each position."""
    left_S = np.maximum(eligible - np.arange(len(rows.row_S)), 1)
    return replace(rows, propensity_S=1.0 / left_S)


def _next_page_token(request: _Hydrated, excluded: Exclusions, item_index_C: Int32s, rows: RankedRows) -> str:
    """Where the scroll goes on; empty when nothing eligible is left, or nothing could be returned."""
    query, returned = request.query, len(rows.row_S)
    if excluded.eligible <= returned or (query.count and not returned):
        return ""
    item_ids = request.view.item_table.item_ids
    return query.scroll.next_token(query.user_id, [item_ids[i] for i in item_index_C[rows.row_S].tolist()])
