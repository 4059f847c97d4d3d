"""The pipeline on a real bundle whose ranker's weights are known: what it returns, and how each stage falls back."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from features.events import EventType
from features.slates import parse_slate
from features.specs import Entity, features_of
from features.user_state import Interaction, UserState
from models.bundle import Bundle, BundleError
from models.sources import Candidates
from serving.answer import Answer, to_proto
from serving.arms import POPULAR, RANDOM
from serving.bundles import BundleWatcher, warm_up
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.pipeline import Pipeline, PipelineConfig
from serving.query import ItemRules, Query
from serving.rerank import RerankConfig
from serving.stages import Progress
from serving.sunk_scores import SUNK_SCORE
from serving.user_read_error import UserReadError
from serving.users import unknown_user
from serving.view import LiveView
from tests.past_requests import record_of
from tests.serving_bundle import START_MS, promote, tiny_items, write_tiny_bundle

NOW_MS = START_MS + 60_000
NO_SPREAD = RerankConfig(category_penalty=0, creator_penalty=0, similarity_penalty=0, fresh_bonus=0, epsilon=0)
PLAIN = PipelineConfig(rerank=NO_SPREAD)


class Users:
    """States by user id; any other user is unknown. With `why` set the store fails."""

    def __init__(self, states: Mapping[str, UserState] | None = None, why: str | None = None) -> None:
        self.states, self.why = dict(states or {}), why

    def read(self, user_id: str, instant_ms: int, *_: float) -> UserState:
        if self.why is not None:
            raise UserReadError(self.why)
        return self.states.get(user_id, unknown_user(user_id, instant_ms))


class Failing:
    """A source that breaks."""

    name = "als"

    def candidates(self, *_: object) -> Candidates:
        raise RuntimeError("broken")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles")))


@pytest.fixture(scope="module")
def view(bundle: Bundle) -> LiveView:
    live = Live(ItemSnapshot().finalise_all(NOW_MS))
    live.switch(bundle)
    assert live.view is not None
    return live.view


def _progress(left_s: float = 1.0) -> Progress:
    ticks = count(step=1e-5)
    return Progress(monotonic_s=lambda: next(ticks), deadline_s=left_s)


def _query(**changed: object) -> Query:
    return Query(**{"request_id": "r", "user_id": "u", "count": 10, **changed})  # type: ignore[arg-type]


def _recommend(
    view: LiveView,
    users: Users | None = None,
    progress: Progress | None = None,
    config: PipelineConfig = PLAIN,
    **query: object,
) -> Answer:
    pipeline = Pipeline(users=users or Users(), slates=None, config=config, clock_ms=lambda: NOW_MS)
    answer = pipeline.recommend(view, _query(**query), progress or _progress())
    parse_slate(record_of(answer).to_json())
    return answer


def _ids(answer: Answer) -> list[str]:
    return [item.item_id for item in to_proto(answer).items]


def _stages(answer: Answer) -> list[str]:
    return [note.stage for note in answer.progress.degraded]


def _fan_of(category: str, clicks: int = 5) -> UserState:
    """A user who has clicked items of one category within the last minutes."""
    features = [feature.name for feature in features_of(Entity.USER_CATEGORY)]
    values_KF = unknown_user("u", NOW_MS).empty_category_features_F[None, :].copy()
    for window in ("10m", "1h", "24h"):
        values_KF[0, features.index(f"user_category_clicks_{window}")] = clicks
    history = tuple(
        Interaction(
            event_id=f"e{k}",
            event_type=EventType.CLICK,
            event_time_ms=NOW_MS - 1000 * k,
            user_id="u",
            item_id=f"{category}{k:02d}",
            category=category,
            creator_id=f"{category}-0",
        )
        for k in range(clicks)
    )
    return replace(
        unknown_user("u", NOW_MS),
        categories=(category,),
        category_features_KF=values_KF,
        history=history,
        seen={interaction.item_id: interaction.event_time_ms for interaction in history},
        newest_event_ms=NOW_MS,
    )


def test_an_unknown_user_gets_what_is_popular(view: LiveView, bundle: Bundle) -> None:
    answer = _recommend(view)
    assert _ids(answer) == [f"art{k:02d}" for k in range(10)]
    slate = to_proto(answer)
    assert not slate.degraded and not slate.HasField("newest_event_time_ms") and slate.bundle_id == bundle.bundle_id
    assert [stage.stage for stage in slate.stage_times] == [
        "hydrate", "retrieve", "filter", "score", "rerank", "side_effects",
    ]  # fmt: skip


def test_an_anonymous_user_costs_no_read(view: LiveView) -> None:
    answer = _recommend(view, Users(why="never asked"), user_id="")
    assert len(_ids(answer)) == 10 and not answer.progress.degraded


def test_five_clicks_in_a_new_category_shift_the_slate(view: LiveView) -> None:
    before = _ids(_recommend(view))
    after = _recommend(view, Users({"u": _fan_of("sport")}))
    assert not any(item_id.startswith("sport") for item_id in before)
    assert sum(item_id.startswith("sport") for item_id in _ids(after)) >= 5
    assert not set(_ids(after)) & {f"sport{k:02d}" for k in range(5)}, "clicked items came back"
    sources = {source for item in to_proto(after).items for source in item.sources}
    assert {"als", "content", "item2item"} <= sources


def test_the_score_is_the_weighted_sum_that_is_explained(view: LiveView) -> None:
    slate = to_proto(_recommend(view, Users({"u": _fan_of("sport")}), explain=True))
    for item in slate.items:
        assert item.score == pytest.approx(sum(item.explanation.contributions.values()), abs=1e-6)
        assert item.explanation.rank_by_score == item.position
        assert list(item.explanation.source_ranks) and set(item.explanation.source_ranks) == set(item.sources)
    assert slate.items[0].explanation.features["user_category_clicks_1h"] == 5


def test_spread_costs_no_item_and_mixes_categories(view: LiveView) -> None:
    config = PipelineConfig(rerank=RerankConfig(category_penalty=1.0, epsilon=0))
    slate = to_proto(_recommend(view, config=config))
    assert len({item.category for item in slate.items}) > 1
    assert len({item.item_id for item in slate.items}) == 10


def test_counts_from_none_to_more_than_there_is(view: LiveView) -> None:
    items = len(view.item_table)
    assert [len(_ids(_recommend(view, count=wanted))) for wanted in (0, 1, 150, 500)] == [0, 1, 150, items]


def test_filters_hold_and_narrow_ones_are_filled_from_the_catalogue(view: LiveView) -> None:
    only = _ids(_recommend(view, rules=ItemRules(categories=frozenset({"sport"})), count=30))
    assert len(only) == 30 and all(item_id.startswith("sport") for item_id in only)
    assert _ids(_recommend(view, rules=ItemRules(allow_item_ids=frozenset({"song39"})))) == ["song39"]
    assert _ids(_recommend(view, rules=ItemRules(categories=frozenset({"none"})))) == []


def test_a_new_item_is_served_although_no_model_knows_it(view: LiveView, bundle: Bundle) -> None:
    live = Live(ItemSnapshot().finalise_all(NOW_MS))
    live.switch(bundle)
    new = replace(tiny_items()[0], item_id="brand-new", category="fresh", creator_id="somebody")
    live.apply_items([new.to_json()])
    assert live.view is not None
    answer = _recommend(live.view, rules=ItemRules(categories=frozenset({"fresh"})))
    assert _ids(answer) == ["brand-new"]
    live.apply_items([replace(new, available=False).to_json()])
    assert _ids(_recommend(live.view, rules=ItemRules(categories=frozenset({"fresh"})))) == []
    assert len(view.item_table) == len(bundle.item_table), "a view changed under its readers"


def test_a_store_that_fails_degrades_hydration_only(view: LiveView) -> None:
    answer = _recommend(view, Users(why="the store is away"))
    assert _stages(answer) == ["hydrate"] and len(_ids(answer)) == 10
    assert to_proto(answer).degraded[0].reason == "the store is away"


def test_a_broken_source_degrades_retrieval_only(view: LiveView, bundle: Bundle) -> None:
    broken = replace(view, bundle=replace(bundle, sources={**bundle.sources, "als": Failing()}))
    answer = _recommend(broken)
    assert _stages(answer) == ["retrieve"] and len(_ids(answer)) == 10


def test_with_every_source_broken_the_newest_items_come(view: LiveView, bundle: Bundle) -> None:
    broken = replace(view, bundle=replace(bundle, sources=dict.fromkeys(bundle.sources, Failing())))
    answer = _recommend(broken)
    assert len(_ids(answer)) == 10
    assert {source for item in to_proto(answer).items for source in item.sources} == {"catalogue"}


def test_scores_that_are_not_finite_sink(tmp_path: Path, view: LiveView) -> None:
    sick = Bundle.load(write_tiny_bundle(tmp_path, nan_scores=True))
    answer = _recommend(replace(view, bundle=sick))
    assert _stages(answer) == ["score"]
    assert [item.score for item in to_proto(answer).items] == [SUNK_SCORE] * 10


def test_a_ranker_that_breaks_leaves_the_order_of_retrieval(view: LiveView, bundle: Bundle) -> None:
    weightless = replace(bundle, ranker=None)  # type: ignore[arg-type]
    answer = _recommend(replace(view, bundle=weightless))
    assert _stages(answer) == ["score"] and len(_ids(answer)) == 10
    assert not to_proto(answer).items[0].head_probabilities


def test_past_the_deadline_there_is_still_a_slate(view: LiveView) -> None:
    answer = _recommend(view, progress=_progress(left_s=-1.0))
    assert set(_stages(answer)) == {"hydrate", "retrieve", "score", "rerank"}
    assert len(_ids(answer)) == 10


def test_what_may_be_behind_is_said(view: LiveView) -> None:
    assert _stages(_recommend(replace(view, notes=("the catalogue may be behind",)))) == ["retrieve"]


def test_the_same_request_id_draws_the_same_slate(view: LiveView) -> None:
    config = PipelineConfig(rerank=RerankConfig(epsilon=1.0))
    same = [_ids(_recommend(view, config=config, request_id="same")) for _ in range(2)]
    others = {tuple(_ids(_recommend(view, config=config, request_id=f"r{k}"))) for k in range(10)}
    assert same[0] == same[1] and len(others) > 1


def test_exploration_is_logged_with_its_chance_and_can_be_turned_off(view: LiveView) -> None:
    config = PipelineConfig(rerank=RerankConfig(epsilon=1.0))
    drawn = to_proto(_recommend(view, config=config, explain=True))
    explored = [item for item in drawn.items if item.explanation.explored]
    assert len(explored) == 1 and 0 < explored[0].propensity < 1 and "exploration" in explored[0].sources
    plain = to_proto(_recommend(view, config=config, explain=True, explore=False))
    assert all(item.propensity == 1 and not item.explanation.explored for item in plain.items)


def test_the_other_arms(view: LiveView) -> None:
    assert _ids(_recommend(view, arm=POPULAR, count=3)) == ["art00", "art01", "art02"]
    drawn = to_proto(_recommend(view, arm=RANDOM, count=3))
    assert drawn.experiment_arm == "random" and not drawn.items[0].head_probabilities
    assert [item.propensity for item in drawn.items] == pytest.approx([1 / 200, 1 / 199, 1 / 198])
    shares = [_ids(_recommend(view, arm=RANDOM, count=10, request_id=f"q{k}")) for k in range(40)]
    assert len({item_id for ids in shares for item_id in ids}) > 120


def test_rank_scores_the_callers_items(view: LiveView) -> None:
    pipeline = Pipeline(users=Users({"u": _fan_of("sport")}), slates=None, config=PLAIN, clock_ms=lambda: NOW_MS)
    query = _query(item_ids=("art00", "nobody", "sport01", "art05"), count=4, explore=False)
    slate = to_proto(pipeline.rank(view, query, _progress()))
    assert [item.item_id for item in slate.items] == ["sport01", "art00", "art05"]
    assert list(slate.unknown_item_ids) == ["nobody"] and slate.items[0].sources == ["request"]
    assert not to_proto(pipeline.rank(view, _query(item_ids=(), count=0), _progress())).items


def test_a_corrupt_bundle_is_refused_and_the_old_one_goes_on(tmp_path: Path) -> None:
    live = Live(ItemSnapshot().finalise_all(NOW_MS))
    switched: list[str] = []
    watcher = BundleWatcher(
        live=live, bundles_dir=tmp_path, threads=1, on_switch=lambda bundle_id, _: switched.append(bundle_id)
    )
    watcher.look()
    assert live.view is None and watcher.refused == 0
    one = write_tiny_bundle(tmp_path, "one").name
    promote(tmp_path, one)
    watcher.look()
    assert live.bundle_id == one
    two = write_tiny_bundle(tmp_path, "two")
    (two / "ranker.onnx").write_bytes(b"rubbish")
    sick = write_tiny_bundle(tmp_path, "sick", nan_scores=True)
    for refused, bundle_id in enumerate((two.name, "missing", sick.name), start=1):
        promote(tmp_path, bundle_id)
        watcher.look()
        watcher.look()
        assert (live.bundle_id, watcher.refused) == (one, refused)
    three = write_tiny_bundle(tmp_path, "three").name
    promote(tmp_path, three)
    watcher.look()
    assert live.bundle_id == three and switched == [one, three]


def test_a_bundle_that_cannot_answer_does_not_pass_the_warm_up(view: LiveView, bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="cannot answer: RuntimeError: broken"):
        warm_up(replace(view, bundle=replace(bundle, sources={"als": Failing()})))


def test_a_busy_service_scores_fewer_candidates_and_says_how_many(view: LiveView) -> None:
    whole = to_proto(_recommend(view)).candidates_scored
    scored = []
    for share in (1.0, 0.05, 0.0):
        progress = _progress()
        progress.share = share
        slate = to_proto(_recommend(view, progress=progress))
        scored.append(slate.candidates_scored)
        assert len(slate.items) == 10 and [note.stage for note in slate.degraded] == ["admit"] * (share < 1)
    assert scored == [whole, 110, 100] and whole > 110
    progress = _progress()
    progress.share = 0.0
    slate = to_proto(_recommend(view, progress=progress, config=PLAIN, count=150))
    assert len(slate.items) == 150, "never fewer than were asked for"
    assert slate.degraded[0].reason.startswith("the service is busy: ")


def test_scoring_that_would_end_late_is_cut_or_left_out(view: LiveView) -> None:
    """The ranker takes 5 ms a candidate by what it has cost, and there are 300 ms: for 48 with some headroom."""
    pipeline = Pipeline(users=Users(), slates=None, config=PLAIN, clock_ms=lambda: NOW_MS)
    for _ in range(50):
        pipeline._score_cost.observe(view.bundle.bundle_id, 100, 500.0)
    cut = pipeline.recommend(view, _query(), _progress(0.3))
    assert 40 <= len(cut.item_index_C) <= 50 and _stages(cut) == ["score"] and cut.scored.probabilities
    asked = tuple(item.item_id for item in reversed(tiny_items()))
    named = pipeline.rank(view, _query(item_ids=asked, count=len(asked), explore=False), _progress(0.3))
    assert _stages(named) == ["score"] and not named.scored.probabilities
    assert _ids(named) == list(asked), "Rank drops nothing: the order is the caller's"
    plenty = pipeline.recommend(view, _query(), _progress(10.0))
    assert not plenty.progress.degraded


def test_what_requests_of_a_view_share_is_made_before_the_first_of_them(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(ItemSnapshot().finalise_all(NOW_MS))
    live.switch(replace(bundle, sources={"als": Failing(), **bundle.sources}))  # one that fails holds nothing up
    live.apply_snapshot(ItemSnapshot().finalise_all(NOW_MS + 1_000))

    def too_late(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("models.sources.trending.best_first", too_late)
    monkeypatch.setattr("models.sources.exploration.ExplorationSource.weights", too_late)
    assert live.view is not None and live.view.snapshot_instant_ms == NOW_MS + 1_000
    answer = _recommend(live.view)
    assert not [note for note in answer.progress.degraded if "als" not in note.reason]
    assert answer.retrieved.by_source["exploration"].item_index.size
