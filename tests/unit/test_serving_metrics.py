"""What the service counts: each request once by its outcome, each source's part, and the state of its parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Event

import grpc
import pytest
from prometheus_client import Gauge

from features.user_state import UserState
from models.bundle import Bundle
from models.sources import Candidates
from serving import ranking_pb2 as pb
from serving.client import RankingClient
from serving.gauges import Gauges
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.metrics import Metrics
from serving.user_read_error import UserReadError
from serving.users import unknown_user
from serving.view import LiveView
from tests.conftest import wait_for
from tests.observed_service import observed_service
from tests.serving_bundle import START_MS, tiny_items, write_tiny_bundle

NOW_MS = START_MS + 60_000


class Users:
    """Nobody is known; a user called after a kind of store error meets that error; `boom` meets a bug; `slow` waits."""

    def __init__(self) -> None:
        self.goes_on = Event()

    def read(self, user_id: str, instant_ms: int, *_: float) -> UserState:
        if user_id in UserReadError.KINDS:
            raise UserReadError("the store said nothing", user_id)
        if user_id == "slow":
            assert self.goes_on.wait(10)
        if user_id == "boom":
            raise ZeroDivisionError
        return unknown_user(user_id, instant_ms)


class Failing:
    """A source that breaks."""

    name = "als"

    def candidates(self, *_: object) -> Candidates:
        raise RuntimeError("broken")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles")))


@pytest.fixture
def live(bundle: Bundle) -> Live:
    live = Live(ItemSnapshot().finalise_all(NOW_MS))
    live.switch(bundle)
    return live


def _samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The samples of a name that have any, by their label values in the order of the labels' names."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    found = [sample for sample in samples if sample.name == name and (sample.value or "info" in name)]
    return {tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in found}


def _served(view: LiveView | None, *calls: tuple[str, object]) -> tuple[Metrics, list[pb.Slate | None]]:
    """The metrics and answers after calls of methods by name; a request may be raw bytes."""
    metrics, answers = Metrics(), []
    with observed_service(view, Users(), metrics=metrics) as address, grpc.insecure_channel(address) as channel:
        for method, request in calls:
            path = f"/millrace.ranking.v1.RankingService/{method}"
            body = request if isinstance(request, bytes) else request.SerializeToString()  # type: ignore[attr-defined]
            try:
                answers.append(pb.Slate.FromString(channel.unary_unary(path)(body, timeout=10)))
            except grpc.RpcError:
                answers.append(None)
    return metrics, answers


def test_each_request_is_counted_once_by_its_outcome(live: Live) -> None:
    metrics, answers = _served(
        live.view,
        ("Recommend", pb.RecommendRequest(count=3)),
        ("Recommend", pb.RecommendRequest(count=501)),
        ("Recommend", pb.RecommendRequest(user_id="boom", count=1)),
        ("Recommend", b"\xff\xff"),
        ("Rank", pb.RankRequest(item_ids=["art00", "nope"])),
    )
    assert [answer is not None for answer in answers] == [True, False, True, False, True]
    assert _samples(metrics, "ranking_last_resort_total") == {(): 1}, "the request that meets a bug"
    assert _samples(metrics, "ranking_requests_total") == {
        ("OK", "Recommend"): 2,
        ("INVALID_ARGUMENT", "Recommend"): 2,
        ("OK", "Rank"): 1,
    }
    assert _samples(metrics, "ranking_request_seconds_count") == {("Recommend",): 2, ("Rank",): 1}
    assert _samples(metrics, "ranking_slate_items_sum") == {("Recommend",): 4, ("Rank",): 1}
    unready, _ = _served(None, ("Recommend", pb.RecommendRequest()))
    assert _samples(unready, "ranking_requests_total") == {("UNAVAILABLE", "Recommend"): 1}


def test_a_caller_that_goes_away_is_counted_too(live: Live) -> None:
    metrics, users = Metrics(), Users()
    with observed_service(live.view, users, metrics=metrics) as address, RankingClient(address) as client:
        under_way = client._stub.Recommend.future(pb.RecommendRequest(user_id="slow"), timeout=10)
        wait_for(lambda: metrics.registry.get_sample_value("ranking_in_flight"), "the request")
        under_way.cancel()
        outcome = {"method": "Recommend", "code": "CANCELLED"}
        wait_for(lambda: metrics.registry.get_sample_value("ranking_requests_total", outcome), "its count")
        users.goes_on.set()


def test_the_sources_parts_are_counted(live: Live, bundle: Bundle) -> None:
    assert live.view is not None
    missing = {name: source for name, source in bundle.sources.items() if name != "trending"}
    broken = replace(live.view, bundle=replace(bundle, sources={**missing, "als": Failing()}))
    metrics, (slate,) = _served(broken, ("Recommend", pb.RecommendRequest(count=5, user_id="u")))
    assert slate is not None
    calls, found = _samples(metrics, "ranking_source_calls_total"), _samples(metrics, "ranking_source_candidates_total")
    assert calls["failed", "als"] == 1 and calls["absent", "trending"] == 1 and calls["empty", "follow"] == 1
    assert not {("als",), ("trending",), ("follow",)} & set(found)
    assert calls["found", "popular"] >= 1 and found["popular",] >= len(slate.items)
    timed = _samples(metrics, "ranking_source_seconds_count")
    assert timed == {(source,): sum(n for (_, s), n in calls.items() if s == source) for _, source in calls}


def test_an_empty_slate_is_one_that_should_not_be(live: Live) -> None:
    nothing = pb.ItemFilter(categories=["none"])
    metrics, _ = _served(
        live.view,
        ("Recommend", pb.RecommendRequest(count=0)),
        ("Recommend", pb.RecommendRequest(count=5, filter=nothing)),
        ("Recommend", pb.RecommendRequest(count=5)),
        ("Rank", pb.RankRequest()),
        ("Rank", pb.RankRequest(item_ids=["nope"])),
    )
    assert _samples(metrics, "ranking_empty_slates_total") == {("Recommend",): 1, ("Rank",): 1}


def test_store_errors_are_counted_by_kind(live: Live) -> None:
    asked = [("Recommend", pb.RecommendRequest(user_id=kind, count=1)) for kind in UserReadError.KINDS]
    metrics, _ = _served(live.view, *asked, ("Recommend", pb.RecommendRequest(user_id="u", count=1)))
    assert _samples(metrics, "ranking_store_errors_total") == {(kind,): 1 for kind in UserReadError.KINDS}
    assert _samples(metrics, "ranking_degraded_total") == {("hydrate",): len(UserReadError.KINDS)}


@dataclass
class Parts:
    """Stands for the watcher, the follower and the slate log."""

    refused: int = 0
    loaded: frozenset[str] = frozenset({"a", "b"})
    on_earlier_champion: bool = True
    experiments_refused: int = 3
    tiles_refused: int = 0
    connected: Mapping[str, bool] | bool = field(default_factory=dict)


def test_gauges_follow_the_parts(bundle: Bundle) -> None:
    metrics, now, live = Metrics(), [NOW_MS], Live(ItemSnapshot().finalise_all(NOW_MS))
    watcher, follower, slates = Parts(), Parts(), Parts(connected=True)
    gauges = Gauges(
        metrics=metrics,
        live=live,
        watcher=watcher,  # type: ignore[arg-type]
        follower=follower,  # type: ignore[arg-type]
        slates=slates,  # type: ignore[arg-type]
        clock_ms=lambda: now[0],
    )

    def value(name: str, **labels: str) -> float | None:
        gauges.refresh()
        return metrics.registry.get_sample_value(name, labels)

    assert value("ranking_start_time_seconds") == NOW_MS / 1000
    assert (value("ranking_bundles_loaded"), value("ranking_on_earlier_champion")) == (2, 1)
    assert value("ranking_experiments_refused") == 3
    assert value("ranking_item_snapshot_age_seconds") == 0 and value("ranking_kafka_connected", topic="items") is None
    live.switch(bundle)
    now[0] += 5_000
    assert value("ranking_catalogue_items") == len(bundle.item_table) and value("ranking_catalogue_age_seconds") == 0
    now[0] += 2_000
    assert value("ranking_catalogue_age_seconds") == 2 and value("ranking_item_snapshot_age_seconds") == 7
    live.apply_snapshot(ItemSnapshot().finalise_all(now[0]))
    assert value("ranking_catalogue_age_seconds") == 2, "new features are no new catalogue"
    assert value("ranking_item_snapshot_age_seconds") == 0
    live.apply_items([replace(tiny_items()[0], available=False).to_json(), b"no item"])
    assert value("ranking_catalogue_age_seconds") == 0 and value("ranking_records_refused", topic="items") == 1
    watcher.refused, follower.tiles_refused = 2, 3
    follower.connected, slates.connected = {"items": True, "tiles": False}, False
    assert value("ranking_bundles_refused") == 2 and value("ranking_records_refused", topic="tiles") == 3
    connected = [value("ranking_kafka_connected", topic=topic) for topic in ("items", "tiles", "slates")]
    assert connected == [1, 0, 0]


def test_one_bundle_is_in_use() -> None:
    metrics = Metrics()
    metrics.use_bundle("one", 0.3)
    metrics.use_bundle("two", 0.7)
    assert _samples(metrics, "ranking_bundle_info") == {("one",): 0, ("two",): 1}
    metrics.use_bundle("one")
    assert _samples(metrics, "ranking_bundle_info") == {("one",): 1, ("two",): 0}
    assert _samples(metrics, "ranking_bundle_switch_seconds_count") == {(): 2}


def test_what_alerts_watch_is_there_before_it_happens() -> None:
    for name, labels in {
        "ranking_slates_total": {"fate": "dropped"},
        "ranking_spans_total": {"fate": "failed"},
        "ranking_degraded_total": {"stage": "hydrate"},
        "ranking_store_errors_total": {"kind": "timeout"},
    }.items():
        assert Metrics().registry.get_sample_value(name, labels) == 0


def test_each_gauge_says_how_processes_are_merged() -> None:
    gauges = {name: found for name, found in vars(Metrics()).items() if isinstance(found, Gauge)}
    assert gauges
    for name, gauge in gauges.items():
        assert gauge._multiprocess_mode != "all", f"{name} would come once a process: give it a multiprocess_mode"
