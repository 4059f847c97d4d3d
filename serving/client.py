"""A small blocking client of the ranking service: connection reuse, deadline, retry. Needs grpcio and protobuf only.

Where the caller uses OpenTelemetry and a span is current, the service's spans continue its trace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from features.events import Event
from serving import ranking_pb2 as pb
from serving import ranking_pb2_grpc
from serving.tls import ClientTls
from serving.trace_context import trace_metadata

DEFAULT_TIMEOUT_S = 1.0
_RETRY = (
    '{"methodConfig": [{"name": [{"service": "millrace.ranking.v1.RankingService"}], "retryPolicy": {'
    '"maxAttempts": 3, "initialBackoff": "0.05s", "maxBackoff": "0.5s", "backoffMultiplier": 2, '
    '"retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]}'
)
"""All calls may be sent again, within the deadline: they only read, or send events whose ids make them count once.
gRPC adds jitter to the backoff, and waits as long as the service says in `grpc-retry-pushback-ms` (gRFC A6)."""


class RankingError(RuntimeError):
    """The service refused or did not answer; `code` is the gRPC status's name, such as `INVALID_ARGUMENT`."""

    def __init__(self, code: str, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retry_after_ms = retry_after_ms
        """After how long the service would take the call again, where it says so."""


@dataclass(frozen=True, kw_only=True)
class RerankMove:
    """One step of the rerank stage; the fields are those of `RerankMove` in ranking.proto."""

    step: str
    from_position: int
    to_position: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RankedItem:
    """One item of a slate; the fields are those of `RankedItem` in ranking.proto."""

    item_id: str
    score: float
    head_probabilities: Mapping[str, float]
    sources: tuple[str, ...]
    position: int
    propensity: float
    category: str
    creator_id: str
    explored: bool = False
    """Known only if the request asked for an explanation."""
    contributions: Mapping[str, float] = field(default_factory=dict)
    """Head to its share of the score; empty unless the request asked for an explanation."""
    features: Mapping[str, float] = field(default_factory=dict)
    """Windowed features that the ranker read; empty unless the request asked for an explanation."""
    rank_by_score: int | None = None
    """Position by score alone; None unless the request asked for an explanation."""
    source_ranks: Mapping[str, int] = field(default_factory=dict)
    """Rank within each source; empty unless the request asked for an explanation."""
    moves: tuple[RerankMove, ...] = ()
    """The steps of the rerank stage that moved it; empty unless the request asked for an explanation."""


@dataclass(frozen=True, kw_only=True)
class Slate:
    """One answer; the fields are those of `Slate` in ranking.proto."""

    request_id: str
    items: tuple[RankedItem, ...]
    bundle_id: str
    experiment_arm: str
    served_at_ms: int
    newest_event_time_ms: int | None
    newest_event_age_ms: int | None
    item_snapshot_time_ms: int
    degraded: Mapping[str, str]
    """Stage to why it fell back; several reasons are joined."""
    stage_ms: Mapping[str, float]
    candidates_retrieved: int
    candidates_scored: int
    unknown_item_ids: tuple[str, ...]
    next_page_token: str = ""
    """Gives the next page to `recommend`; empty where the scroll ends."""


@dataclass(frozen=True, kw_only=True)
class ItemTrace:
    """What became of one item; the fields are those of `ItemTrace` in ranking.proto."""

    item_id: str
    shown: bool
    dropped_by: str
    reason: str
    score: float | None
    needed_score: float | None
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RequestExplanation:
    """A past answer, its items explained; the fields are those of `RequestExplanation` in ranking.proto."""

    slate: Slate
    traces: tuple[ItemTrace, ...]
    full_features: bool


@dataclass(frozen=True, kw_only=True)
class EventRefusal:
    """An event that was not taken; the fields are those of `EventRefusal` in ranking.proto."""

    index: int
    reason: str
    retry: bool


@dataclass(frozen=True, kw_only=True)
class FeedbackResult:
    """What became of the events; the fields are those of `FeedbackResponse` in ranking.proto."""

    accepted: int
    refused: tuple[EventRefusal, ...]


def open_channel(address: str, tls: ClientTls | None) -> grpc.Channel:
    """A connection that retries; without `tls` in the clear. Raises `TlsError` when a file cannot be used."""
    options = (("grpc.service_config", _RETRY), ("grpc.enable_retries", 1))
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls.credentials(), options=options)


class RankingClient:
    """One channel to one service; safe for use by several threads. Close it, or use it as a context manager."""

    def __init__(
        self,
        address: str,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        *,
        api_key: str = "",
        tls: ClientTls | None = None,
    ) -> None:
        """`address` is `host:port`; `api_key` goes with each call; without `tls` the connection is in the clear.

        Connects at the first call. Raises `TlsError` when a file cannot be used.
        """
        self._channel = open_channel(address, tls)
        self._key = (("x-api-key", api_key),) if api_key else ()
        self._stub = ranking_pb2_grpc.RankingServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._timeout_s = timeout_s

    def recommend(
        self,
        user_id: str,
        count: int = 10,
        *,
        surface: str = "",
        device: str = "",
        locale: str = "",
        explore: bool = True,
        arm: str = "",
        categories: Sequence[str] = (),
        allow_item_ids: Sequence[str] = (),
        block_item_ids: Sequence[str] = (),
        block_categories: Sequence[str] = (),
        languages: Sequence[str] = (),
        max_age_ms: int = 0,
        page_token: str = "",
        explain: bool = False,
        timeout_s: float | None = None,
    ) -> Slate:
        """A slate for a user. Raises `RankingError`."""
        request = pb.RecommendRequest(
            user_id=user_id,
            surface=surface,
            device=device,
            locale=locale,
            count=count,
            disable_exploration=not explore,
            filter=pb.ItemFilter(
                allow_item_ids=allow_item_ids,
                block_item_ids=block_item_ids,
                categories=categories,
                block_categories=block_categories,
                languages=languages,
                max_age_ms=max_age_ms,
            ),
            experiment_arm=arm,
            explain=explain,
            page_token=page_token,
        )
        return self._called(self._stub.Recommend, request, timeout_s)

    def rank(
        self,
        user_id: str,
        item_ids: Sequence[str],
        *,
        surface: str = "",
        device: str = "",
        locale: str = "",
        explain: bool = False,
        timeout_s: float | None = None,
    ) -> Slate:
        """The caller's own items by score. Raises `RankingError`."""
        request = pb.RankRequest(
            user_id=user_id, surface=surface, device=device, locale=locale, item_ids=item_ids, explain=explain
        )
        return self._called(self._stub.Rank, request, timeout_s)

    def similar(
        self,
        item_id: str,
        count: int = 10,
        *,
        user_id: str = "",
        surface: str = "",
        locale: str = "",
        categories: Sequence[str] = (),
        languages: Sequence[str] = (),
        explain: bool = False,
        timeout_s: float | None = None,
    ) -> Slate:
        """Items like an item; with a user, none that they have seen or hidden. Raises `RankingError`."""
        request = pb.SimilarRequest(
            item_id=item_id,
            user_id=user_id,
            surface=surface,
            locale=locale,
            count=count,
            filter=pb.ItemFilter(categories=categories, languages=languages),
            explain=explain,
        )
        return self._called(self._stub.Similar, request, timeout_s)

    def explain(
        self, request_id: str, item_ids: Sequence[str] = (), *, timeout_s: float | None = None
    ) -> RequestExplanation:
        """A past answer explained, with traces of more items. Raises `RankingError`."""
        request = pb.ExplainRequest(request_id=request_id, item_ids=item_ids)
        found: pb.RequestExplanation = self._answer(self._stub.Explain, request, timeout_s)
        traces = tuple(_trace(each) for each in found.traces)
        return RequestExplanation(slate=_slate(found.slate), traces=traces, full_features=found.full_features)

    def feedback(self, events: Sequence[Event], *, timeout_s: float | None = None) -> FeedbackResult:
        """Sends at most 500 events; those refused with `retry` may be sent again. Raises `RankingError`."""
        request = pb.FeedbackRequest(events=[pb.UserEvent(**_set_fields(event)) for event in events])
        got: pb.FeedbackResponse = self._answer(self._stub.Feedback, request, timeout_s)
        refused = (EventRefusal(index=each.index, reason=each.reason, retry=each.retry) for each in got.refused)
        return FeedbackResult(accepted=got.accepted, refused=tuple(refused))

    def serving(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """Whether the service is there and has a bundle."""
        try:
            answer = self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _called(
        self,
        method: "grpc.UnaryUnaryMultiCallable[pb.RecommendRequest | pb.RankRequest | pb.SimilarRequest, pb.Slate]",
        request: pb.RecommendRequest | pb.RankRequest | pb.SimilarRequest,
        timeout_s: float | None,
    ) -> Slate:
        return _slate(self._answer(method, request, timeout_s))

    def _answer(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        """The method's own answer message; grpcio knows no types of a method."""
        try:
            timeout_s = self._timeout_s if timeout_s is None else timeout_s
            return method(request, timeout=timeout_s, metadata=(*self._key, *trace_metadata()))
        except grpc.RpcError as error:
            hint = dict(error.trailing_metadata() or ()).get("retry-after-ms")
            retry_after_ms = None if hint is None else int(hint)
            raise RankingError(error.code().name, error.details() or "no details", retry_after_ms) from error


def _slate(slate: pb.Slate) -> Slate:
    degraded: dict[str, str] = {}
    for note in slate.degraded:
        degraded[note.stage] = "; ".join(filter(None, (degraded.get(note.stage), note.reason)))
    known = slate.HasField("newest_event_time_ms")
    return Slate(
        request_id=slate.request_id,
        items=tuple(_item(item) for item in slate.items),
        bundle_id=slate.bundle_id,
        experiment_arm=slate.experiment_arm,
        served_at_ms=slate.served_at_ms,
        newest_event_time_ms=slate.newest_event_time_ms if known else None,
        newest_event_age_ms=slate.newest_event_age_ms if known else None,
        item_snapshot_time_ms=slate.item_snapshot_time_ms,
        degraded=degraded,
        stage_ms={stage.stage: stage.ms for stage in slate.stage_times},
        candidates_retrieved=slate.candidates_retrieved,
        candidates_scored=slate.candidates_scored,
        unknown_item_ids=tuple(slate.unknown_item_ids),
        next_page_token=slate.next_page_token,
    )


def _item(item: pb.RankedItem) -> RankedItem:
    made = RankedItem.__new__(RankedItem)  # a frozen dataclass's own constructor takes as long as all the rest
    fields = made.__dict__
    fields["item_id"] = item.item_id
    fields["score"] = item.score
    predicted = item.head_probabilities
    # A dict made of the map at once takes twice as long.
    fields["head_probabilities"] = {head: predicted[head] for head in predicted}
    fields["sources"] = tuple(item.sources)
    fields["position"] = item.position
    fields["propensity"] = item.propensity
    fields["category"] = item.category
    fields["creator_id"] = item.creator_id
    if item.HasField("explanation"):
        fields.update(_explained(item.explanation))
    else:
        fields.update(explored=False, contributions={}, features={}, rank_by_score=None, source_ranks={}, moves=())
    return made


def _explained(explanation: pb.Explanation) -> dict[str, Any]:
    return {
        "explored": explanation.explored,
        "contributions": dict(explanation.contributions),
        "features": dict(explanation.features),
        "rank_by_score": explanation.rank_by_score,
        "source_ranks": dict(explanation.source_ranks),
        "moves": tuple(
            RerankMove(step=m.step, from_position=m.from_position, to_position=m.to_position, reason=m.reason)
            for m in explanation.moves
        ),
    }


def _trace(found: pb.ItemTrace) -> ItemTrace:
    return ItemTrace(
        item_id=found.item_id,
        shown=found.shown,
        dropped_by=found.dropped_by,
        reason=found.reason,
        score=found.score if found.HasField("score") else None,
        needed_score=found.needed_score if found.HasField("needed_score") else None,
        sources=tuple(found.sources),
    )


def _set_fields(event: Event) -> dict[str, Any]:
    """The fields of the event that are on the wire; the service knows the schema's version."""
    fields = {name: value for name, value in vars(event).items() if value is not None and name != "schema_version"}
    return {**fields, "event_type": str(event.event_type)}
