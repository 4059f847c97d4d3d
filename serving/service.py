"""The gRPC servicer: checks and bounds requests, and runs the pipeline in worker threads."""

import asyncio
import contextvars
import logging
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter

import grpc

from serving import ranking_pb2 as pb
from serving import ranking_pb2_grpc
from serving.answer import Answer, to_proto
from serving.experiments import Experiments
from serving.metrics import Metrics
from serving.observation import observed
from serving.pipeline import Pipeline
from serving.query import Query, RequestError, rank_query, recommend_query, similar_query
from serving.stages import Progress
from serving.view import LiveView

_log = logging.getLogger(__name__)

DEFAULT_DEADLINE_S = 1.0
"""For callers that set none."""
MAX_DEADLINE_S = 10.0
ANSWER_RESERVE_S = 0.002
"""Kept of the caller's deadline for the way back."""
RETRY_AFTER_MS = 50
"""The hint to a caller that is shed."""

Run = Callable[[LiveView, Query, Progress], Answer]
Parse = Callable[[str, Experiments], Query]


class RankingServicer(ranking_pb2_grpc.RankingServiceServicer):
    """Recommend, Rank and Similar. At most `max_in_flight` requests at once; more are refused at once."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        view: Callable[[], LiveView | None],
        metrics: Metrics,
        max_in_flight: int,
        workers: int,
        admitted: Callable[[Query], Query] = lambda query: query,
    ) -> None:
        """`admitted` takes the user out of a query who must not be known (`serving.door`)."""
        self._pipeline = pipeline
        self._view = view
        self._metrics = metrics
        self._admitted = admitted
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        self._last_request_s = perf_counter()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="pipeline")

    async def Recommend(  # noqa: N802 - gRPC's name
        self, request: pb.RecommendRequest, context: grpc.aio.ServicerContext
    ) -> pb.Slate:
        """A slate for a user."""
        return await self._answer(context, partial(recommend_query, request), self._pipeline.recommend)

    async def Rank(self, request: pb.RankRequest, context: grpc.aio.ServicerContext) -> pb.Slate:  # noqa: N802
        """The caller's own items."""
        return await self._answer(context, partial(rank_query, request), self._pipeline.rank)

    async def Similar(self, request: pb.SimilarRequest, context: grpc.aio.ServicerContext) -> pb.Slate:  # noqa: N802
        """Items like an item."""
        return await self._answer(context, partial(similar_query, request), self._pipeline.similar)

    def quiet_s(self) -> float:
        """Seconds since the last request came or was answered; 0 while one is under way."""
        return 0.0 if self._in_flight else perf_counter() - self._last_request_s

    def close(self) -> None:
        """Ends the worker threads; call it after the server has stopped."""
        self._threads.shutdown(wait=True)

    async def _answer(self, context: grpc.aio.ServicerContext, parse: Parse, run: Run) -> pb.Slate:
        started_s = self._last_request_s = perf_counter()
        if self._in_flight >= self._max_in_flight:
            self._metrics.shed.inc()
            context.set_trailing_metadata((("retry-after-ms", str(RETRY_AFTER_MS)),))
            reason = f"{self._in_flight} requests are under way; retry after {RETRY_AFTER_MS} ms"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        view = self._view()
        if view is None:
            reason = "no bundle has been promoted yet; train and promote one, then try again"
            await context.abort(grpc.StatusCode.UNAVAILABLE, reason)
            raise AssertionError  # abort has raised
        left_s = context.time_remaining()
        left_s = DEFAULT_DEADLINE_S if left_s is None else min(left_s, MAX_DEADLINE_S)
        if left_s <= 0:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline had passed on arrival")
        try:
            query = self._admitted(parse(uuid.uuid4().hex, view.experiments))
        except RequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        seen = observed()
        seen.request_id, seen.wanted = query.request_id, query.count
        seen.progress = progress = Progress(monotonic_s=perf_counter, deadline_s=started_s + left_s - ANSWER_RESERVE_S)
        seen.slate = await self._run(run, view, query, progress)
        return seen.slate

    async def _run(self, run: Run, view: LiveView, query: Query, progress: Progress) -> pb.Slate:
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        try:
            # In a copy of the context, so that what the thread logs carries the request's ids.
            work = asyncio.get_running_loop().run_in_executor(
                self._threads, contextvars.copy_context().run, lambda: to_proto(run(view, query, progress))
            )
            return await work
        finally:
            self._in_flight -= 1
            self._last_request_s = perf_counter()
            self._metrics.in_flight.set(self._in_flight)
