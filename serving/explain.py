"""What stood behind a past answer, from the request log: the slate again, explained, and traces of other items."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import numpy as np

from features.slates import SlateItem, SlateRecord
from models.bundle import Bundle, BundleError, loaded
from serving import ranking_pb2 as pb
from serving.answer import contributions, proto_move
from serving.call_error import CallError
from serving.past_request import PastRequest, PastRequestError, past_request
from serving.request_log import RequestLogError, RequestLogReader
from serving.stages import STAGES
from serving.trace import Trace, trace
from serving.view import LiveView

MAX_WAITING = 8
"""Calls that wait for the one before; beyond, they are refused."""
WRITTEN_S = 0.3
"""A request may be asked for before the thread that logs it has come to it: so long it is looked for again, while
other calls go on."""
FIRST_PAUSE_S = 0.02
"""Between the first two looks; it doubles."""


class Explainer:
    """Answers `Explain` in a thread of its own, one call after the other, so that no slate waits for it long."""

    def __init__(self, log: RequestLogReader, view: Callable[[], LiveView | None], bundles_dir: Path) -> None:
        self._log = log
        self._bundles = PastBundles(view, bundles_dir)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._waiting = 0

    async def answer(self, request: pb.ExplainRequest, timeout_s: float) -> pb.RequestExplanation:
        """The explanation, without the event loop's waiting for it. Raises as `explain` does, and `CallError`
        RESOURCE_EXHAUSTED when many wait.
        """
        if self._waiting >= MAX_WAITING:
            reason = f"{self._waiting} explanations wait already; ask again later"
            raise CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        until_s = perf_counter() + timeout_s
        await self._written(request.request_id, perf_counter() + min(WRITTEN_S, timeout_s / 2))
        if self._waiting >= MAX_WAITING:
            reason = f"{self._waiting} explanations wait already; ask again later"
            raise CallError(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self.explain, request, until_s)
        finally:
            self._waiting -= 1

    async def _written(self, request_id: str, until_s: float) -> None:
        """Waits for the request to be in the log, for others' calls to go on meanwhile."""
        loop, pause_s = asyncio.get_running_loop(), FIRST_PAUSE_S
        while not await loop.run_in_executor(self._thread, self._is_found, request_id) and perf_counter() < until_s:
            await asyncio.sleep(min(pause_s, max(until_s - perf_counter(), 0)))
            pause_s *= 2

    def _is_found(self, request_id: str) -> bool:
        try:
            return self._log.has(request_id)
        except RequestLogError:
            return True  # then `explain` says why it cannot be read

    def explain(self, request: pb.ExplainRequest, until_s: float) -> pb.RequestExplanation:
        """The explanation, with the needed scores that can be found until then (by `perf_counter`).

        Raises `CallError` NOT_FOUND for a request that the log does not have, or that cannot be explained any more, and
        UNAVAILABLE when the log cannot be read.
        """
        record = self._find(request.request_id)
        try:
            past = past_request(record, self._bundles.get(record.bundle_id))
        except (BundleError, PastRequestError) as error:
            raise CallError(grpc.StatusCode.NOT_FOUND, f"it cannot be explained any more: {error}") from error
        traces = [trace(past, item_id, lambda: perf_counter() < until_s) for item_id in request.item_ids]
        return pb.RequestExplanation(
            slate=explained_slate(past),
            traces=[proto_trace(each) for each in traces],
            full_features=past.evidence.full_features,
        )

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _find(self, request_id: str) -> SlateRecord:
        try:
            found = self._log.find(request_id)
        except RequestLogError as error:
            raise CallError(grpc.StatusCode.UNAVAILABLE, str(error)) from error
        if found is None:
            reason = f"request_id: the log of the last day has no {request_id!r}; ask for a newer request"
            raise CallError(grpc.StatusCode.NOT_FOUND, reason)
        return found


class PastBundles:
    """The bundles in use, and the last other one that was asked for."""

    def __init__(self, view: Callable[[], LiveView | None], bundles_dir: Path) -> None:
        self._view = view
        self._bundles_dir = bundles_dir
        self._other: Bundle | None = None

    def get(self, bundle_id: str) -> Bundle:
        """The bundle, loaded and verified if need be. Raises `BundleError`."""
        view = self._view()
        if view is not None and (found := view.of(bundle_id)) is not None:
            return found.bundle
        if self._other is None or self._other.bundle_id != bundle_id:
            self._other = loaded(self._bundles_dir, bundle_id)
        return self._other


def explained_slate(past: PastRequest) -> pb.Slate:
    """The answer as it was given, each item with its explanation."""
    record, evidence = past.record, past.evidence
    slate = pb.Slate(
        request_id=record.request_id,
        bundle_id=record.bundle_id,
        experiment_arm=record.arm,
        served_at_ms=record.served_at_ms,
        item_snapshot_time_ms=record.snapshot_instant_ms,
        candidates_retrieved=evidence.candidates_retrieved,
        candidates_scored=len(record.candidates),
        unknown_item_ids=evidence.unknown_item_ids,
        next_page_token=evidence.next_page_token,
    )
    if record.newest_event_ms is not None:
        slate.newest_event_time_ms = record.newest_event_ms
        slate.newest_event_age_ms = max(record.served_at_ms - record.newest_event_ms, 0)
    for note in record.degraded:
        stage, _, reason = note.partition(": ")
        slate.degraded.add(stage=stage, reason=reason)
    for stage in STAGES:
        if stage in evidence.stage_ms:
            slate.stage_times.add(stage=stage, ms=evidence.stage_ms[stage])
    moves = past.moves()
    rank_of = {row: rank for rank, row in enumerate(np.argsort(-past.score_C, kind="stable").tolist())}
    for item, row, explored in zip(
        record.items, past.served.row_S.tolist(), past.served.explored_S.tolist(), strict=True
    ):
        ranks = past.retrieved.source_ranks(int(past.item_index_C[row]))
        explanation = pb.Explanation(
            rank_by_score=rank_of[row],
            contributions=contributions(item.probabilities, past.arm.value_weights),
            features={**record.user_features, **record.item_features(item.position)},
            explored=explored,
            source_ranks=ranks,
            moves=[proto_move(move) for move in moves if move.row == row],
        )
        slate.items.add(explanation=explanation, **_item_fields(item))
    return slate


def _item_fields(item: SlateItem) -> dict[str, Any]:
    """The returned item as the fields of `RankedItem`, without its explanation."""
    return {
        "item_id": item.item_id,
        "score": item.score,
        "head_probabilities": item.probabilities,
        "sources": item.sources,
        "position": item.position,
        "propensity": item.propensity,
        "category": item.category,
        "creator_id": item.creator_id,
    }


def proto_trace(found: Trace) -> pb.ItemTrace:
    """The trace on the wire."""
    return pb.ItemTrace(
        item_id=found.item_id,
        shown=found.position is not None,
        dropped_by=found.dropped_by,
        reason=found.reason,
        score=found.score,
        needed_score=found.needed_score,
        sources=list(found.source_ranks),
    )
