"""The edges of the contract in serving/ranking.proto, one row each: what is asked, what is broken, what comes back.

The servicer and the pipeline answer over gRPC on a tiny bundle; the store is a fake, since it has to fail.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import numpy as np
import pytest

from features.events import EventType
from features.user_state import Interaction, UserState
from models.bundle import Bundle
from models.ranker_inputs import RankerInputs
from models.sources import Candidates
from serving import admission, ranking_pb2_grpc, workers
from serving import ranking_pb2 as pb
from serving.answer import Answer
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.metrics import Metrics
from serving.sunk_scores import SUNK_SCORE
from serving.user_read_error import UserReadError
from serving.users import unknown_user
from serving.view import LiveView
from tests.observed_service import observed_service
from tests.serving_bundle import START_MS, tiny_items, write_tiny_bundle

NOW_MS = START_MS + 60_000
ALL = len(tiny_items())
OK, INVALID = "OK", "INVALID_ARGUMENT"
CLOCK_AHEAD_MS = 3_600_000
"""How far another machine's clock is ahead of ours."""


class Store:
    """What the store says of a user, by the user's id."""

    def __init__(self) -> None:
        self.goes_on = Event()

    def read(self, user_id: str, instant_ms: int, timeout_ms: float) -> UserState:
        if user_id == "store-down":
            raise UserReadError("the store failed: StoreUnavailableError", "failed")
        if user_id == "slow-store":
            assert 0 < timeout_ms <= 25
            raise UserReadError("the store did not answer within 25 ms", "timeout")
        if user_id == "hangs":
            self.goes_on.wait(10)
        if user_id == "bug":
            raise ZeroDivisionError
        known = unknown_user(user_id, instant_ms)
        if user_id == "brand-new":
            return _clicked(known, NOW_MS - 1_000)
        if user_id == "from-the-future":
            return _clicked(known, NOW_MS + CLOCK_AHEAD_MS)
        if user_id == "seen-it-all":
            return replace(known, seen={item.item_id: NOW_MS for item in tiny_items()})
        return known


def _clicked(state: UserState, time_ms: int) -> UserState:
    """The user with one click, on sport00."""
    click = Interaction(
        event_id="e", event_type=EventType.CLICK, event_time_ms=time_ms, user_id=state.user_id, item_id="sport00",
        category="sport", creator_id="sport-0",
    )  # fmt: skip
    return replace(state, history=(click,), seen={"sport00": time_ms}, newest_event_ms=time_ms)


class Failing:
    """A source, or a ranker, that breaks."""

    def __init__(self, layout: object = None) -> None:
        self.layout = layout

    def candidates(self, *_: object) -> Candidates:
        raise RuntimeError("broken")

    def score(self, *_: object) -> Mapping[str, Any]:
        raise RuntimeError("broken")


class Sick(Failing):
    """A ranker that says nothing finite."""

    def score(self, inputs: RankerInputs) -> Mapping[str, Any]:
        return {"click": np.full(len(inputs.candidate_CF), np.nan, np.float32)}


class Empty:
    """A source without candidates."""

    def candidates(self, *_: object) -> Candidates:
        return Candidates(item_index=np.empty(0, np.int32), score=np.empty(0, np.float32))


class KafkaDown:
    """A slate log whose broker is away."""

    def submit(self, _: Answer) -> str | None:
        return "the slate waits to be logged: Kafka does not answer"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles")))


@pytest.fixture(scope="module")
def view(bundle: Bundle) -> LiveView:
    live = Live(ItemSnapshot().finalise_all(NOW_MS))
    live.switch(bundle)
    assert live.view is not None
    return live.view


@dataclass
class Running:
    """A service under test."""

    stub: ranking_pb2_grpc.RankingServiceStub
    metrics: Metrics
    store: Store

    def call(self, request: Any, timeout_s: float = 5.0) -> tuple[str, pb.Slate | None, grpc.RpcError | None]:
        """The status, and the slate or the error."""
        method = {pb.RecommendRequest: "Recommend", pb.RankRequest: "Rank", pb.SimilarRequest: "Similar"}[type(request)]
        try:
            return OK, getattr(self.stub, method)(request, timeout=timeout_s), None
        except grpc.RpcError as error:
            return error.code().name, None, error

    def slate(self, request: Any, timeout_s: float = 5.0) -> pb.Slate:
        status, slate, error = self.call(request, timeout_s)
        assert slate is not None, (status, error)
        return slate

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def _running(view: LiveView | Callable[[], LiveView | None] | None, **service: Any) -> Iterator[Running]:
    metrics, store = Metrics(), Store()
    with (
        observed_service(view, store, metrics=metrics, clock_ms=lambda: NOW_MS, **service) as address,
        grpc.insecure_channel(address) as channel,
    ):
        try:
            yield Running(ranking_pb2_grpc.RankingServiceStub(channel), metrics, store)
        finally:
            store.goes_on.set()


@pytest.fixture(scope="module")
def service(view: LiveView) -> Iterator[Running]:
    with _running(view) as running:
        yield running


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A request, and what must come back."""

    name: str
    request: Any
    status: str = OK
    items: int = 0
    stages: tuple[str, ...] = ()
    """Of the stages that fell back."""
    says: str = ""
    """Within the error, or within a degraded stage's reason."""
    check: Callable[[pb.Slate], bool] = field(default=lambda _: True)


def _recommend(count: int = 10, **fields: Any) -> pb.RecommendRequest:
    return pb.RecommendRequest(count=count, **fields)


def _ids(slate: pb.Slate) -> list[str]:
    return [item.item_id for item in slate.items]


EDGES = (
    Edge(name="unknown user", request=_recommend(user_id="nobody"), items=10,
         check=lambda slate: not slate.HasField("newest_event_time_ms") and _ids(slate)[0] == "art00"),
    Edge(name="brand-new user", request=_recommend(100, user_id="brand-new"), items=100,
         check=lambda slate: slate.newest_event_age_ms == 1_000 and "sport00" not in _ids(slate)
         and any({"als", "item2item"} & set(item.sources) for item in slate.items)),
    Edge(name="anonymous user", request=_recommend(), items=10),
    Edge(name="k of 0", request=_recommend(0, user_id="u")),
    Edge(name="k beyond the candidates", request=_recommend(500, user_id="u"), items=ALL),
    Edge(name="k beyond what is allowed", request=_recommend(501), status=INVALID, says="count: got 501; allowed:"),
    Edge(name="unknown allowed item", request=_recommend(filter=pb.ItemFilter(allow_item_ids=["nope"]))),
    Edge(name="empty allowed id", request=_recommend(filter=pb.ItemFilter(allow_item_ids=[""])), status=INVALID,
         says="filter.allow_item_ids[0]"),
    Edge(name="everything filtered", request=_recommend(filter=pb.ItemFilter(categories=["none"])),
         check=lambda slate: slate.candidates_scored == 0),
    Edge(name="everything seen", request=_recommend(user_id="seen-it-all")),
    Edge(name="store down", request=_recommend(user_id="store-down"), items=10, stages=("hydrate",),
         says="the store failed"),
    Edge(name="slow store", request=_recommend(user_id="slow-store"), items=10, stages=("hydrate",),
         says="did not answer within 25 ms"),
    Edge(name="a bug in the pipeline", request=_recommend(user_id="bug"), items=10,
         stages=("hydrate", "rerank", "retrieve", "score")),
    Edge(name="clock skew", request=_recommend(user_id="from-the-future"), items=10,
         check=lambda slate: slate.newest_event_age_ms == 0
         and slate.newest_event_time_ms == NOW_MS + CLOCK_AHEAD_MS and "sport00" not in _ids(slate)),
    Edge(name="no items", request=pb.RankRequest(user_id="u")),
    Edge(name="duplicate items", request=pb.RankRequest(item_ids=["cats01", "art00", "cats01", "nope", "nope"]),
         items=2, check=lambda slate: list(slate.unknown_item_ids) == ["nope"]),
    Edge(name="only unknown items", request=pb.RankRequest(item_ids=["x", "y"]),
         check=lambda slate: list(slate.unknown_item_ids) == ["x", "y"]),
    Edge(name="10,000 items", request=pb.RankRequest(item_ids=["art00", *(f"x{k}" for k in range(9_999))]), items=1,
         check=lambda slate: len(slate.unknown_item_ids) == 9_999),
    Edge(name="10,001 items", request=pb.RankRequest(item_ids=[f"x{k}" for k in range(10_001)]), status=INVALID,
         says="item_ids: got '10001 values'; allowed: at most 10000"),
    Edge(name="an item of no length", request=pb.RankRequest(item_ids=["art00", ""]), status=INVALID,
         says="item_ids[1]"),
)  # fmt: skip


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.name)
def test_edge(service: Running, edge: Edge) -> None:
    status, slate, error = service.call(edge.request)
    assert status == edge.status, error
    if slate is None:
        assert error is not None and edge.says in error.details()
        return
    assert len(slate.items) == edge.items
    assert {note.stage for note in slate.degraded} == set(edge.stages), slate.degraded
    assert edge.says in " ".join(note.reason for note in slate.degraded)
    assert edge.check(slate), slate


# What is broken in the view.


def _without(view: LiveView, **changed: object) -> LiveView:
    return replace(view, bundle=replace(view.bundle, **changed))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A view with a broken part, and what must come back when as many items are asked for as there are."""

    name: str
    of: Callable[[LiveView], LiveView | None]
    status: str = OK
    stages: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    """The only sources of the slate, if any are named."""
    check: Callable[[pb.Slate], bool] = field(default=lambda _: True)


def _every_source(view: LiveView, source: object) -> LiveView:
    return _without(view, sources=dict.fromkeys(view.bundle.sources, source))


def _busy_items(view: LiveView) -> LiveView:
    """The item features say that cats07 trends and song03 is popular; every source is broken."""
    trending_I, impressions_I = np.zeros(ALL, np.float32), np.zeros(ALL, np.float32)
    trending_I[view.item_table.index["cats07"]] = 3.0
    impressions_I[view.item_table.index["song03"]] = 900.0
    broken = _every_source(view, Failing())
    return replace(broken, trending_score_I=trending_I, impressions_I=impressions_I)


def _not_a_number(view: LiveView) -> LiveView:
    return replace(view, items=replace(view.items, values_XF=np.full_like(view.items.values_XF, np.nan)))


BROKEN = (
    Broken(name="bundle missing", of=lambda _: None, status="UNAVAILABLE"),
    Broken(name="one source empty", of=lambda view: _without(view, sources={**view.bundle.sources, "als": Empty()})),
    Broken(name="every source empty", of=lambda view: _every_source(view, Empty()), sources=("catalogue",)),
    Broken(name="one source broken", stages=("retrieve",),
           of=lambda view: _without(view, sources={**view.bundle.sources, "als": Failing()})),
    Broken(name="every source broken", of=lambda view: _every_source(view, Failing()), stages=("retrieve",),
           sources=("catalogue",)),
    Broken(name="every source broken, features at hand", of=_busy_items, stages=("retrieve",),
           sources=("catalogue", "popular", "trending"),
           check=lambda slate: {"cats07", "song03"} <= set(_ids(slate))),
    Broken(name="no source in the bundle", of=lambda view: _without(view, sources={}), stages=("retrieve",),
           sources=("catalogue",)),
    Broken(name="ranker broken", stages=("score",),
           of=lambda view: _without(view, ranker=Failing(view.bundle.ranker.layout)),
           check=lambda slate: not slate.items[0].head_probabilities),
    Broken(name="non-finite feature", of=_not_a_number,
           check=lambda slate: all(item.score > SUNK_SCORE for item in slate.items)),
    Broken(name="non-finite scores", stages=("score",),
           of=lambda view: _without(view, ranker=Sick(view.bundle.ranker.layout)),
           check=lambda slate: all(item.score == SUNK_SCORE for item in slate.items)),
)  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_broken_view(view: LiveView, broken: Broken) -> None:
    with _running(broken.of(view)) as running:
        status, slate, error = running.call(_recommend(ALL, user_id="u"))
    assert status == broken.status, error
    if slate is None:
        return
    assert len(slate.items) == ALL
    assert {note.stage for note in slate.degraded} == set(broken.stages), slate.degraded
    if broken.sources:
        assert {source for item in slate.items for source in item.sources} == set(broken.sources)
    assert all(np.isfinite(item.score) for item in slate.items)
    assert broken.check(slate), slate


def test_kafka_down(view: LiveView) -> None:
    with _running(view, slates=KafkaDown()) as running:
        slate = running.slate(_recommend(user_id="u"))
    assert len(slate.items) == 10 and [note.stage for note in slate.degraded] == ["side_effects"]


def test_a_bundle_swapped_in_the_middle_of_a_request(bundle: Bundle, tmp_path: Path) -> None:
    """A request that waits for the store goes on with the bundle that it began with; the next has the new one."""
    second = Bundle.load(write_tiny_bundle(tmp_path, "second"))
    live = Live(ItemSnapshot().finalise_all(NOW_MS))
    live.switch(bundle)
    with _running(lambda: live.view) as running:
        under_way = running.stub.Recommend.future(_recommend(user_id="hangs"), timeout=10)
        _wait_until(lambda: running.metric("ranking_in_flight") == 1)
        live.switch(second)
        running.store.goes_on.set()
        assert under_way.result().bundle_id == bundle.bundle_id
        assert running.slate(_recommend(user_id="u")).bundle_id == second.bundle_id


def _wait_until(condition: Callable[[], bool]) -> None:
    from tests.conftest import wait_for

    wait_for(condition, "the service", timeout_s=10, every_s=0.005)


# Time and load.


def test_a_deadline_that_has_passed_is_an_error(service: Running) -> None:
    status, _, _ = service.call(_recommend(user_id="u"), timeout_s=0.0)
    assert status == "DEADLINE_EXCEEDED"


def test_a_request_that_nothing_can_save_is_refused_at_once(view: LiveView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "FIRST_RESORT_MS", 5_000.0)
    monkeypatch.setattr(admission, "RESORT_HALF_LIFE_S", 1_000.0)
    with _running(view) as running:
        status, _, error = running.call(_recommend(user_id="u"), timeout_s=2.0)
        assert status == "DEADLINE_EXCEEDED"
        assert error is not None and "too little for any answer" in str(error.details())
        assert running.slate(_recommend(user_id="u"), timeout_s=8.0).items


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for the last resort on a machine that is busy with other work."""
    monkeypatch.setattr(workers, "LAST_RESORT_S", 1.0)


@pytest.mark.usefixtures("patient")
def test_a_store_that_hangs_longer_than_the_deadline_costs_no_answer(view: LiveView) -> None:
    with _running(view) as running:
        slate = running.slate(_recommend(user_id="hangs"), timeout_s=1.5)
        assert len(slate.items) == 10 and "hydrate" in {note.stage for note in slate.degraded}
        assert running.metric("ranking_last_resort_total") == 1
        running.store.goes_on.set()
        _wait_until(lambda: running.metric("ranking_in_flight") == 0)


@pytest.mark.usefixtures("patient")
def test_a_request_that_waits_too_long_for_a_thread_is_answered_from_memory(view: LiveView) -> None:
    logged: list[str] = []

    class Slates:
        def submit(self, answer: Answer) -> str | None:
            logged.append(answer.query.user_id)
            return None

    with _running(view, slates=Slates()) as running:
        first = running.stub.Recommend.future(_recommend(user_id="hangs"), timeout=10)
        _wait_until(lambda: running.metric("ranking_in_flight") == 1)
        slate = running.slate(_recommend(user_id="waits"), timeout_s=1.5)
        assert len(slate.items) == 10 and logged == ["waits"]
        running.store.goes_on.set()
        assert len(first.result().items) == 10
        _wait_until(lambda: running.metric("ranking_in_flight") == 0)
    assert logged == ["waits", "hangs"], "each request is logged once, whoever answered it"


def test_more_than_is_allowed_at_once_is_shed_with_a_hint(view: LiveView) -> None:
    with _running(view, max_in_flight=3) as running:
        futures = [running.stub.Recommend.future(_recommend(user_id="hangs"), timeout=10) for _ in range(3)]
        _wait_until(lambda: running.metric("ranking_in_flight") == 3)
        status, _, error = running.call(_recommend(user_id="u"))
        assert status == "RESOURCE_EXHAUSTED" and error is not None and "3 requests are under way" in error.details()
        hints = dict(error.trailing_metadata())
        assert hints["retry-after-ms"] == hints["grpc-retry-pushback-ms"] and int(hints["retry-after-ms"]) >= 1
        running.store.goes_on.set()
        assert {future.code() for future in futures} == {grpc.StatusCode.OK}
        assert running.metric("ranking_shed_total") == 1
        _wait_until(lambda: running.metric("ranking_in_flight") == 0)
        assert running.call(_recommend(user_id="u"))[0] == OK


def test_many_at_once_get_whole_slates(service: Running) -> None:
    futures = [service.stub.Recommend.future(_recommend(user_id=f"u{k}"), timeout=10) for k in range(8)]
    assert all(len(future.result().items) == 10 for future in futures)
