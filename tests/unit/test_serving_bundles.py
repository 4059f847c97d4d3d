"""Several bundles at once: which answers, how one takes the place of another, and what a challenger says of it."""

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import generate_latest
from scipy.stats import spearmanr

from models.bundle import CHAMPION, Bundle
from models.bundle_writer import reweighted
from models.champions import set_champion
from models.value import DEFAULT_WEIGHTS
from serving import priority
from serving.answer import Answer, to_proto
from serving.arms import MILLRACE, Arm
from serving.bundles import HAND_OVER_S, BundleWatcher
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.metrics import Metrics
from serving.pipeline import Pipeline, PipelineConfig
from serving.query import Query
from serving.rerank import RerankConfig
from serving.shadow import ShadowScorer, rank_correlation, top_overlap
from serving.stages import Progress
from serving.users import unknown_user
from serving.view import LiveView
from tests.conftest import wait_for
from tests.serving_bundle import START_MS, promote, tiny_items, write_tiny_bundle

NOW_MS = START_MS + 60_000


class NoEvents:
    def read(self, user_id: str, instant_ms: int, *_: float) -> object:
        return unknown_user(user_id, instant_ms)


@dataclass(frozen=True)
class Bundles:
    """Three bundles: of all items, with other weights, and of other items at other indices."""

    directory: Path
    first: str
    weighted: str
    smaller: str

    def load(self, bundle_id: str) -> Bundle:
        return Bundle.load(self.directory / bundle_id)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    directory = tmp_path_factory.mktemp("bundles")
    first = write_tiny_bundle(directory)
    weighted = reweighted(first, {**DEFAULT_WEIGHTS, "click": 5.0, "like": 7.0}, 0)
    smaller = write_tiny_bundle(directory, "smaller", items=[item for item in tiny_items() if item.category > "c"])
    return Bundles(directory, first.name, weighted.name, smaller.name)


@pytest.fixture
def live() -> Live:
    return Live(ItemSnapshot().finalise_all(NOW_MS))


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def published() -> list[set[str]]:
    """The arms of the experiments at each change of the champion."""
    return []


@pytest.fixture
def watch(
    live: Live, tmp_path: Path, bundles: Bundles, clock: Clock, published: list[set[str]]
) -> Callable[[], BundleWatcher]:
    """Makes watchers over copies of the three bundles, so that a test may spoil its own."""
    for bundle_id in (bundles.first, bundles.weighted, bundles.smaller):
        shutil.copytree(bundles.directory / bundle_id, tmp_path / bundle_id)
    return lambda: BundleWatcher(
        live=live,
        bundles_dir=tmp_path,
        threads=1,
        on_switch=lambda *_: published.append(_arms(live)),
        experiments_file=tmp_path / "experiments.toml",
        clock_ms=clock,
    )


def _pipeline(shadow: ShadowScorer | None = None, rerank: RerankConfig | None = None) -> Pipeline:
    config = PipelineConfig(rerank=rerank or RerankConfig(epsilon=0))
    users: object = NoEvents()
    return Pipeline(users=users, slates=None, config=config, clock_ms=lambda: NOW_MS, shadow=shadow)  # type: ignore[arg-type]


def _answer(view: LiveView | None, arm: Arm = MILLRACE, pipeline: Pipeline | None = None, request: str = "r") -> Answer:
    assert view is not None
    ticks = count(step=1e-6)
    progress = Progress(monotonic_s=lambda: next(ticks), deadline_s=10.0)
    query = Query(request_id=request, user_id="u", count=10, arm=arm)
    return (pipeline or _pipeline()).recommend(view, query, progress)


def _slate(answer: Answer) -> tuple[tuple[str, float], ...]:
    return tuple((item.item_id, item.score) for item in to_proto(answer).items)


def _experiments(bundle_id: str | None = None, extra: str = "") -> str:
    named = "" if bundle_id is None else f'bundle = "{bundle_id}"\n'
    return (
        f'[[experiments]]\nname = "e"\nsalt = "e"\n{extra}[[experiments.arms]]\nname = "control"\nshare = 0.5\n'
        f'[[experiments.arms]]\nname = "new"\nshare = 0.5\n{named}'
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_loading_gives_way_to_requests_unless_it_starts_the_rankers_threads(
    live: Live, bundles: Bundles, tmp_path: Path, threads: int
) -> None:
    shutil.copytree(bundles.directory / bundles.first, tmp_path / bundles.first)
    promote(tmp_path, bundles.first)
    own, usual_s, found = _niceness(), sys.getswitchinterval(), list[tuple[int, float]]()
    watcher = BundleWatcher(
        live=live,
        bundles_dir=tmp_path,
        threads=threads,
        on_switch=lambda *_: found.append((_niceness(), sys.getswitchinterval())),
    )
    watcher.start()
    wait_for(lambda: found, "the bundle")
    watcher.stop()
    assert found == [(max(own, priority.LOW) if threads == 1 else own, pytest.approx(HAND_OVER_S))]
    assert sys.getswitchinterval() == pytest.approx(usual_s)


def _niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


# Arms.


def test_an_arms_settings_are_the_ones_that_answer(live: Live, bundles: Bundles) -> None:
    live.switch(bundles.load(bundles.first))
    arm = Arm(
        name="e/new", quotas={"popular": 120}, value_weights={"click": 9.0}, rerank=RerankConfig(creator_penalty=3.0)
    )
    usual, own = _answer(live.view), _answer(live.view, arm)
    assert own.arm.value_weights == {**DEFAULT_WEIGHTS, "click": 9.0}
    assert own.arm.rerank == RerankConfig(creator_penalty=3.0) and own.arm.bundle_id == bundles.first
    assert set(own.retrieved.by_source) == {"popular"} and len(usual.retrieved.by_source) > 1
    slate = to_proto(own)
    assert slate.experiment_arm == "e/new" and not slate.degraded
    for item in slate.items:
        expected = sum(own.arm.value_weights[head] * p for head, p in item.head_probabilities.items())
        assert item.score == pytest.approx(expected, abs=1e-5)
    assert [item.item_id for item in slate.items] != [item.item_id for item in to_proto(usual).items]


def test_an_arms_bundle_answers_or_the_champion_does_and_says_so(live: Live, bundles: Bundles) -> None:
    arm = Arm(name="e/new", quotas=MILLRACE.quotas, bundle_id=bundles.smaller)
    live.switch(bundles.load(bundles.first))
    fallen = _answer(live.view, arm)
    assert to_proto(fallen).bundle_id == fallen.arm.bundle_id == bundles.first and fallen.arm.name == "e/new"
    [note] = fallen.progress.degraded
    assert note.reason == f"the bundle {bundles.smaller} of the arm e/new is not loaded: the champion answers"
    assert live.view is not None
    live.run(live.view.experiments, [bundles.load(bundles.smaller)])
    own = _answer(live.view, arm)
    assert own.view.bundle.bundle_id == bundles.smaller and not own.progress.degraded
    assert _slate(own) != _slate(fallen) == _slate(_answer(live.view))


def test_new_items_reach_every_bundle(live: Live, bundles: Bundles) -> None:
    live.switch(bundles.load(bundles.first))
    assert live.view is not None
    live.run(live.view.experiments, [bundles.load(bundles.smaller)])
    live.apply_items([tiny_items()[0].to_json().replace(b"art00", b"brand-new")])
    assert live.view is not None
    views = [live.view, live.view.beside[bundles.smaller]]
    assert all("brand-new" in view.item_table.index for view in views)
    assert len({view.item_table.index["brand-new"] for view in views}) == 2


# Promotions.


def test_no_answer_is_mixed_or_fails_while_promotions_go_back_and_forth(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path
) -> None:
    ids = (bundles.first, bundles.weighted, bundles.smaller)
    expected = {}
    for bundle_id in ids:
        alone = Live(ItemSnapshot().finalise_all(NOW_MS))
        alone.switch(bundles.load(bundle_id))
        expected[bundle_id] = _slate(_answer(alone.view))
    assert len(set(expected.values())) == 3
    watcher, done, wrong, seen = watch(), threading.Event(), list[object](), set[str]()

    def ask() -> None:
        while not done.is_set():
            try:
                slate = to_proto(answer := _answer(live.view))
                if _slate(answer) != expected[slate.bundle_id] or slate.degraded:
                    wrong.append(slate)
                seen.add(slate.bundle_id)
            except Exception as error:
                wrong.append(error)

    promote(tmp_path, bundles.first)
    watcher.look()
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(15):
            promote(tmp_path, ids[turn % 3])
            watcher.look()
            live.apply_snapshot(ItemSnapshot().finalise_all(NOW_MS))
        wait_for(lambda: wrong or seen == set(ids), "answers of every bundle")
    finally:
        done.set()
        for thread in threads:
            thread.join(10)
    assert not wrong and watcher.refused == 0


def test_a_roll_back_loads_nothing_and_what_nothing_names_is_let_go(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path
) -> None:
    watcher = watch()
    for bundle_id in (bundles.first, bundles.weighted):
        promote(tmp_path, bundle_id)
        watcher.look()
    assert watcher.loaded == {bundles.first, bundles.weighted}
    (tmp_path / bundles.first / "ranker.onnx").write_bytes(b"rubbish")
    promote(tmp_path, bundles.first)
    watcher.look()
    assert live.bundle_id == bundles.first and watcher.refused == 0, "it was read again"
    promote(tmp_path, bundles.smaller)
    watcher.look()
    assert watcher.loaded == {bundles.first, bundles.smaller}


def _spoil(bundle: Path) -> None:
    (bundle / "ranker.onnx").write_bytes(b"rubbish")


def test_at_the_start_the_newest_earlier_champion_that_loads_answers_and_says_so(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path
) -> None:
    for bundle_id in (bundles.first, bundles.smaller, bundles.weighted):
        set_champion(tmp_path, bundle_id)
    _spoil(tmp_path / bundles.weighted)
    _spoil(tmp_path / bundles.smaller)
    watcher = watch()
    watcher.look()
    answer = _answer(live.view)
    assert answer.view.bundle.bundle_id == bundles.first and watcher.on_earlier_champion and watcher.refused == 1
    [note] = answer.progress.degraded
    assert note.reason == f"the champion {bundles.weighted} cannot be served: {bundles.first} answers"
    set_champion(tmp_path, bundles.first, "rollback")
    watcher.look()
    assert not _answer(live.view).progress.degraded and not watcher.on_earlier_champion


def test_a_rolled_back_bundle_is_the_last_resort(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path
) -> None:
    for bundle_id in (bundles.first, bundles.weighted, bundles.smaller):
        set_champion(tmp_path, bundle_id)
    set_champion(tmp_path, bundles.weighted, "rollback")
    _spoil(tmp_path / bundles.weighted)
    watch().look()
    assert live.bundle_id == bundles.first, "the champion that was rolled back answers again"


@pytest.mark.parametrize("text", [None, "rubbish", '{"bundle_id": "gone"}'])
def test_without_any_bundle_there_is_no_view(
    watch: Callable[[], BundleWatcher], live: Live, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / CHAMPION).write_text(text)
    watcher = watch()
    watcher.look()
    assert live.view is None and watcher.refused == (text is not None)


# The experiments file.


def _write(tmp_path: Path, text: str) -> None:
    new = tmp_path / "experiments.new"
    new.write_text(text)
    new.replace(tmp_path / "experiments.toml")


def _arms(live: Live) -> set[str]:
    assert live.view is not None
    return set(live.view.experiments.arms) - {"millrace", "popular", "random"}


def test_a_changed_file_is_taken_and_a_wrong_one_refused(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path
) -> None:
    watcher = watch()
    promote(tmp_path, bundles.first)
    watcher.look()
    assert _arms(live) == set()
    _write(tmp_path, _experiments(bundles.smaller))
    watcher.look()
    assert _arms(live) == {"e/control", "e/new"} and live.view is not None
    own = live.view.experiments.arms["e/new"]
    assert to_proto(_answer(live.view, own)).bundle_id == bundles.smaller
    _spoil(tmp_path / bundles.weighted)
    for refused, wrong in enumerate(
        ("[[experiment]]", _experiments(bundles.weighted), _experiments("bundle-gone")), start=1
    ):
        _write(tmp_path, wrong)
        watcher.look()
        watcher.look()
        assert watcher.experiments_refused == refused and live.view.experiments.arms["e/new"] is own
        assert watcher.loaded == {bundles.first, bundles.smaller}
    (tmp_path / "experiments.toml").unlink()
    watcher.look()
    assert _arms(live) == set() and not live.view.beside and watcher.loaded == {bundles.first}


def test_at_the_start_an_arm_without_its_bundle_falls_back_until_it_comes(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path
) -> None:
    promote(tmp_path, bundles.first)
    _write(tmp_path, _experiments(bundles.smaller))
    (tmp_path / bundles.smaller).rename(tmp_path / "elsewhere")
    watcher = watch()
    watcher.look()
    watcher.look()
    assert live.view is not None and watcher.experiments_refused == 1
    arm = live.view.experiments.arms["e/new"]
    assert to_proto(_answer(live.view, arm)).degraded[0].reason.endswith("is not loaded: the champion answers")
    (tmp_path / "elsewhere").rename(tmp_path / bundles.smaller)
    watcher.look()
    assert _answer(live.view, arm).view.bundle.bundle_id == bundles.smaller


def test_the_first_answer_is_of_the_users_arm_already(
    live: Live, bundles: Bundles, tmp_path: Path, watch: Callable[[], BundleWatcher], published: list[set[str]]
) -> None:
    promote(tmp_path, bundles.first)
    _write(tmp_path, _experiments(bundles.smaller))
    watch().look()
    assert published == [{"e/control", "e/new"}]


def test_experiments_begin_and_end_by_the_clock(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path, clock: Clock
) -> None:
    promote(tmp_path, bundles.first)
    _write(tmp_path, _experiments(extra="start = 2030-01-01T00:00:00Z\nend = 2030-01-02T00:00:00Z\n"))
    watcher, running = watch(), []
    for now_ms in (1_893_455_999_999, 1_893_456_000_000, 1_893_542_400_000):
        clock.now_ms = now_ms
        watcher.look()
        assert live.view is not None
        running.append(len(live.view.experiments.running))
    assert running == [0, 1, 0]


def test_the_champion_may_be_an_arms_bundle_too(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path
) -> None:
    promote(tmp_path, bundles.first)
    _write(tmp_path, _experiments(bundles.smaller))
    watcher = watch()
    watcher.look()
    promote(tmp_path, bundles.smaller)
    watcher.look()
    assert live.view is not None and live.view.bundle.bundle_id == bundles.smaller and not live.view.beside
    assert not _answer(live.view, live.view.experiments.arms["e/new"]).progress.degraded


# The challenger.


@dataclass
class Shadowed:
    scorer: ShadowScorer
    metrics: Metrics
    busy: bool = False

    def metric(self, name: str) -> float:
        lines = generate_latest(self.metrics.registry).decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture
def shadowed() -> Iterator[Shadowed]:
    metrics = Metrics()
    made = Shadowed(ShadowScorer(metrics, busy=lambda: made.busy), metrics)
    yield made
    made.scorer.close()


def _challenge(
    watch: Callable[[], BundleWatcher], bundles: Bundles, tmp_path: Path, challenger: str, share: float = 1.0
) -> None:
    promote(tmp_path, bundles.first)
    _write(tmp_path, f'[shadow]\nbundle = "{challenger}"\nshare = {share}\n')
    watch().look()


def test_a_challenger_scores_the_same_candidates_and_says_how_it_differs(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path, shadowed: Shadowed
) -> None:
    twin = reweighted(tmp_path / bundles.first, {**DEFAULT_WEIGHTS, "completion": 0.051}, 0)
    _challenge(watch, bundles, tmp_path, twin.name)
    _answer(live.view, pipeline=_pipeline(shadowed.scorer))
    wait_for(lambda: shadowed.metric('ranking_shadow_total{fate="scored"}') == 1, "the challenger's scores")
    assert shadowed.metric('ranking_shadow_rank_correlation_bucket{le="0.99"}') == 0
    assert shadowed.metric("ranking_shadow_top_overlap_sum") == pytest.approx(1.0)
    opposed = reweighted(tmp_path / bundles.first, {"click": -1.0, "like": 0.5}, 0)
    _challenge(watch, bundles, tmp_path, opposed.name)
    _answer(live.view, pipeline=_pipeline(shadowed.scorer))
    wait_for(lambda: shadowed.metric('ranking_shadow_total{fate="scored"}') == 2, "the challenger's scores")
    assert shadowed.metric('ranking_shadow_rank_correlation_bucket{le="-0.5"}') == 1
    assert shadowed.metric("ranking_shadow_rank_correlation_count") == 2
    assert shadowed.metric("ranking_shadow_top_overlap_sum") == pytest.approx(1.0)


def test_a_busy_service_skips_the_challenger(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path, shadowed: Shadowed
) -> None:
    _challenge(watch, bundles, tmp_path, bundles.weighted)
    shadowed.busy = True
    pipeline = _pipeline(shadowed.scorer)
    for k in range(3):
        _answer(live.view, pipeline=pipeline, request=f"r{k}")
    wait_for(lambda: shadowed.metric('ranking_shadow_total{fate="skipped"}') == 3, "what was skipped")
    assert shadowed.metric('ranking_shadow_total{fate="scored"}') == 0


def test_a_challenger_that_fails_is_counted(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, shadowed: Shadowed, tmp_path: Path
) -> None:
    _challenge(watch, bundles, tmp_path, bundles.weighted)
    assert live.view is not None
    object.__setattr__(live.view.beside[bundles.weighted].bundle, "ranker", None)
    _answer(live.view, pipeline=_pipeline(shadowed.scorer))
    wait_for(lambda: shadowed.metric('ranking_shadow_total{fate="failed"}') == 1, "the failure's count")


class Recorded(ShadowScorer):
    """Keeps which answers come to be scored."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []
        super().__init__(Metrics(), busy=lambda: False)

    def _score(self, answer: Answer, *_: LiveView) -> None:
        self.got.append((answer.query.request_id, answer.arm.name))


def test_only_the_share_of_the_champions_own_slates_is_drawn(
    watch: Callable[[], BundleWatcher], live: Live, bundles: Bundles, tmp_path: Path
) -> None:
    _challenge(watch, bundles, tmp_path, bundles.weighted, share=0.25)
    assert live.view is not None and live.view.experiments.shadow is not None
    takes = live.view.experiments.shadow.takes
    draws = {f"r{k}": takes(f"r{k}") for k in range(400)}
    assert sum(draws.values()) == pytest.approx(100, abs=40)
    drawn, other = (next(request for request, taken in draws.items() if taken is which) for which in (True, False))
    scorer = Recorded()
    pipeline = _pipeline(scorer)
    try:
        for arm in (
            Arm(name="p", quotas={"popular": 9}, ranked=False),
            Arm(name="v", quotas=MILLRACE.quotas, value_weights={"click": 9.0}),
            Arm(name="w", quotas=MILLRACE.quotas, bundle_id=bundles.weighted),
        ):
            _answer(live.view, arm, pipeline, drawn)
        for request in (other, drawn):
            _answer(live.view, MILLRACE, pipeline, request)
        wait_for(lambda: (drawn, "millrace") in scorer.got, "the last answer")
        assert scorer.got == [(drawn, "millrace")]
    finally:
        scorer.close()


def test_agreement_is_spearmans_rho_and_the_overlap_of_the_best() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.integers(0, 12, (2, rng.integers(2, 40))).astype(float)
        expected = spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else None
        assert rank_correlation(a, b) == pytest.approx(expected)
    up = np.arange(10.0)
    assert rank_correlation(up, -up) == pytest.approx(-1.0)
    assert (top_overlap(up, -up, 4), top_overlap(up, -up, 6)) == (0.0, 2 / 6)
    assert (top_overlap(up, up, 50), top_overlap(up, up, 0), rank_correlation(up[:1], up[:1])) == (1.0, None, None)
