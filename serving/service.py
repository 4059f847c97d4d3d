"""The gRPC servicer: checks requests, admits them or sheds them, and has the pipeline answer them in time."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import TypeVar

import grpc

from serving import ranking_pb2 as pb
from serving import ranking_pb2_grpc
from serving.admission import Admission, AdmissionConfig
from serving.answer import Answer, to_proto
from serving.call_error import CallError
from serving.experiments import Experiments
from serving.explain import Explainer
from serving.feedback import Feedback
from serving.metrics import Metrics
from serving.observation import observed
from serving.pipeline import Pipeline
from serving.query import Query, RequestError, check_explain, check_feedback, rank_query, recommend_query, similar_query
from serving.refusals import refuse_for_now
from serving.stages import Progress
from serving.view import LiveView
from serving.workers import LateError, Workers

DEFAULT_DEADLINE_S = 1.0
"""For callers that set none."""
MAX_DEADLINE_S = 10.0
ANSWER_RESERVE_S = 0.002
"""Kept of the caller's deadline for the way back."""

Run = Callable[[LiveView, Query, Progress], Answer]
Parse = Callable[[str, Experiments], Query]
Answered = TypeVar("Answered")


class RankingServicer(ranking_pb2_grpc.RankingServiceServicer):
    """All methods; slates as many at once as `serving.admission` lets in."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        view: Callable[[], LiveView | None],
        metrics: Metrics,
        admission: AdmissionConfig,
        explainer: Explainer | None = None,
        feedback: Feedback | None = None,
        admitted: Callable[[Query], Query] = lambda query: query,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """`admitted` takes the user out of a query who must not be known (`serving.door`); `after` is called in the
        event loop once an answer is on its way.
        """
        self._pipeline = pipeline
        self._view = view
        self._metrics = metrics
        self._admitted = admitted
        self._after = after
        self._explainer = explainer
        self._feedback = feedback
        self._admission = Admission(admission, perf_counter)
        self._workers = Workers(self._admission, self._count_in_flight)
        self._aside_in_flight = 0
        """Explain and Feedback, which wait for the log and for Kafka and take no pipeline thread."""
        self._last_request_s = perf_counter()

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

    async def Explain(  # noqa: N802
        self, request: pb.ExplainRequest, context: grpc.aio.ServicerContext
    ) -> pb.RequestExplanation:
        """What stood behind a past answer."""

        async def work(left_s: float) -> pb.RequestExplanation:
            check_explain(request)
            if self._explainer is None:
                raise CallError(grpc.StatusCode.NOT_FOUND, "the service keeps no request log; give it --request-log")
            return await self._explainer.answer(request, left_s)

        return await self._aside(context, work)

    async def Feedback(self, request: pb.FeedbackRequest, context: grpc.aio.ServicerContext) -> pb.FeedbackResponse:  # noqa: N802
        """User events in."""

        async def work(left_s: float) -> pb.FeedbackResponse:
            check_feedback(request)
            if self._feedback is None:
                raise CallError(grpc.StatusCode.UNAVAILABLE, "the service runs without Kafka; give it an address")
            return await self._feedback.take(request, left_s)

        return await self._aside(context, work)

    def quiet_s(self) -> float:
        """Seconds since the last request came or was answered; 0 while one is under way."""
        return 0.0 if self._admission.in_flight or self._aside_in_flight else perf_counter() - self._last_request_s

    def close(self) -> None:
        """Ends the worker threads; call it after the server has stopped."""
        self._workers.close()
        if self._explainer is not None:
            self._explainer.close()
        if self._feedback is not None:
            self._feedback.close()

    async def _answer(self, context: grpc.aio.ServicerContext, parse: Parse, run: Run) -> pb.Slate:
        started_s = self._last_request_s = perf_counter()
        if self._admission.full:
            self._metrics.shed.inc()
            why = f"{self._admission.in_flight} requests are under way"
            await refuse_for_now(context, why, self._admission.retry_after_ms())
        view = self._view()
        if view is None:
            reason = "no bundle has been promoted yet; train and promote one, then try again"
            await context.abort(grpc.StatusCode.UNAVAILABLE, reason)
            raise AssertionError  # abort has raised
        left_s = context.time_remaining()
        left_s = DEFAULT_DEADLINE_S if left_s is None else min(left_s, MAX_DEADLINE_S)
        if left_s <= 0:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline had passed on arrival")
        if self._admission.hopeless((left_s - ANSWER_RESERVE_S) * 1000):
            reason = f"{left_s * 1000:.0f} ms of the deadline are left: too little for any answer"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, reason)
        try:
            query = self._admitted(parse(uuid.uuid4().hex, view.experiments))
        except RequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        progress = Progress(monotonic_s=perf_counter, deadline_s=started_s + left_s - ANSWER_RESERVE_S)
        seen = observed()
        seen.request_id, seen.wanted, seen.progress = query.request_id, query.count, progress
        self._admit(progress)
        try:
            outcome = await self._workers.run(lambda attempt: self._slate(run, view, query, attempt), progress)
        except LateError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before a thread was free")
        if outcome.progress is not progress:
            self._metrics.guard.last_resort.inc()
        seen.progress, seen.slate = outcome.progress, outcome.result
        asyncio.get_running_loop().call_soon(self._after)  # in its next turn, when gRPC has the answer
        return seen.slate

    async def _aside(self, context: grpc.aio.ServicerContext, work: Callable[[float], Awaitable[Answered]]) -> Answered:
        """Runs what is no ranking, and needs no bundle, within the caller's deadline; as many at once as slates."""
        self._last_request_s = perf_counter()
        if self._aside_in_flight >= self._admission.config.max_in_flight:
            self._metrics.shed.inc()
            why = f"{self._aside_in_flight} requests are under way"
            await refuse_for_now(context, why, self._admission.retry_after_ms())
        left_s = context.time_remaining()
        left_s = DEFAULT_DEADLINE_S if left_s is None else min(left_s, MAX_DEADLINE_S)
        self._aside_in_flight += 1
        try:
            return await work(left_s - ANSWER_RESERVE_S)
        except RequestError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except CallError as error:
            await context.abort(error.code, str(error))
        finally:
            self._aside_in_flight -= 1
            self._last_request_s = perf_counter()
        raise AssertionError  # abort has raised

    def _admit(self, progress: Progress) -> None:
        """Takes a place for the request and says how much of it is done."""
        self._admission.enter()
        self._count_in_flight()
        progress.share = self._admission.share()
        self._metrics.guard.candidate_share.set(progress.share)

    def _count_in_flight(self) -> None:
        self._last_request_s = perf_counter()
        self._metrics.in_flight.set(self._admission.in_flight)

    def _slate(self, run: Run, view: LiveView, query: Query, progress: Progress) -> pb.Slate:
        answer = run(view, query, progress)
        finished_s = progress.monotonic_s()
        slate = to_proto(answer)
        self._pipeline.answer_cost.observe("", len(slate.items), (progress.monotonic_s() - finished_s) * 1000)
        return slate
