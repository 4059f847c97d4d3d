"""Which items come back, and where, through the whole pipeline: rules, pages, Similar, and the edges of each."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count as ticks
from pathlib import Path
from typing import Any

import pytest

from features.user_state import UserState
from models.bundle import Bundle
from serving import ranking_pb2 as pb
from serving.answer import Answer, to_proto
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.pipeline import Pipeline, PipelineConfig
from serving.query import RequestError, recommend_query, similar_query
from serving.rerank import RerankConfig
from serving.rules import NO_RULES, Rules, read_rules
from serving.stages import Progress
from serving.users import unknown_user
from serving.view import LiveView
from tests.serving_bundle import START_MS, tiny_items, write_tiny_bundle

NOW_MS = START_MS + 60_000
PLAIN = RerankConfig(category_penalty=0, creator_penalty=0, similarity_penalty=0, fresh_bonus=0, epsilon=0)
PIN = "[[pin]]\nname='{item}'\nitem='{item}'\nposition={at}\n"


class Users:
    """One user has seen and hidden what is given; nobody else has."""

    def __init__(self, **state: Any) -> None:
        self.state = state

    def read(self, user_id: str, instant_ms: int, *_: float) -> UserState:
        return replace(unknown_user(user_id, instant_ms), **(self.state if user_id == "u" else {}))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_tiny_bundle(tmp_path_factory.mktemp("bundles")))


@pytest.fixture(scope="module")
def view(bundle: Bundle) -> LiveView:
    return _view(bundle)


def _view(bundle: Bundle, *changed: bytes) -> LiveView:
    live = Live(ItemSnapshot().finalise_all(NOW_MS))
    live.switch(bundle)
    live.apply_items(changed)
    assert live.view is not None
    return live.view


def _progress() -> Progress:
    clock = ticks(step=1e-6)
    return Progress(monotonic_s=lambda: next(clock), deadline_s=10.0)


def _pipeline(rules: Rules = NO_RULES, config: RerankConfig = PLAIN, **state: Any) -> Pipeline:
    config_ = PipelineConfig(rerank=config)
    return Pipeline(users=Users(**state), slates=None, config=config_, clock_ms=lambda: NOW_MS, rules=lambda: rules)


def _recommend(view: LiveView, pipeline: Pipeline, request_id: str = "r", **fields: Any) -> pb.Slate:
    request = pb.RecommendRequest(**{"user_id": "u", "count": 10, **fields})
    return to_proto(pipeline.recommend(view, recommend_query(request, request_id), _progress()))


def _similar(view: LiveView, pipeline: Pipeline, item_id: str, **fields: Any) -> Answer:
    request = pb.SimilarRequest(**{"item_id": item_id, "count": 10, **fields})
    return pipeline.similar(view, similar_query(request, "r"), _progress())


def _ids(slate: pb.Slate) -> list[str]:
    return [item.item_id for item in slate.items]


@pytest.fixture
def rules(tmp_path: Path) -> Callable[[str], Rules]:
    def read(text: str) -> Rules:
        file = tmp_path / "rules.toml"
        file.write_text(text)
        return read_rules(file)

    return read


# Rules.


def test_a_pin_stands_at_its_position_with_its_provenance_and_reason(
    view: LiveView, rules: Callable[[str], Rules]
) -> None:
    pinned = rules(PIN.format(item="song39", at=2))
    slate = _recommend(view, _pipeline(pinned), explain=True)
    assert _ids(slate) == ["art00", "art01", "song39", *(f"art{k:02d}" for k in range(2, 9))]
    item = slate.items[2]
    assert item.sources[0] == "pinned" and item.propensity == 1 and item.head_probabilities
    assert [(move.step, move.to_position, move.reason) for move in item.explanation.moves] == [
        ("pin", 2, "rule song39")
    ]
    answer = _pipeline(pinned).recommend(view, recommend_query(pb.RecommendRequest(count=1), "r"), _progress())
    assert answer.rules_version == pinned.version


def test_a_pinned_item_is_in_even_where_candidates_are_few(view: LiveView, rules: Callable[[str], Rules]) -> None:
    config = PipelineConfig(rerank=PLAIN, max_candidates=5, min_candidates=5)
    pipeline = Pipeline(
        users=Users(), slates=None, config=config, clock_ms=lambda: NOW_MS,
        rules=lambda: rules(PIN.format(item="song39", at=0)),
    )  # fmt: skip
    slate = _recommend(view, pipeline, count=3)
    assert _ids(slate)[0] == "song39" and slate.candidates_scored == 5


@pytest.mark.parametrize(
    ("more", "state", "fields"),
    [
        ("", {"seen": {"song39": NOW_MS}}, {}),
        ("repeat = true", {"hidden": frozenset({"song39"})}, {}),
        ("", {}, {"filter": pb.ItemFilter(block_item_ids=["song39"])}),
        ("", {}, {"filter": pb.ItemFilter(categories=["art"])}),
        ("", {}, {"surface": "kids", "filter": pb.ItemFilter()}),
        ("", {}, {"experiment_arm": "popular"}),
        ("", {}, {"count": 2}),
        ("languages_of_users = ['pt']", {}, {"locale": "en-GB"}),
        ("[[block]]\nname='b'\nitems=['song39']", {}, {}),
    ],
)
def test_a_pin_that_does_not_hold_leaves_no_trace(
    view: LiveView, rules: Callable[[str], Rules], more: str, state: dict[str, Any], fields: dict[str, Any]
) -> None:
    text = PIN.format(item="song39", at=2) + "surfaces = ['home']\n" + more
    with_pin = _recommend(view, _pipeline(rules(text), **state), **fields)
    without = _recommend(view, _pipeline(**state), **fields)
    assert _ids(with_pin) == _ids(without)
    assert all("pinned" not in item.sources for item in with_pin.items)


def test_a_pin_of_an_unavailable_item_does_not_hold(bundle: Bundle, rules: Callable[[str], Rules]) -> None:
    gone = next(item for item in tiny_items() if item.item_id == "song39")
    view = _view(bundle, replace(gone, available=False).to_json())
    assert "song39" not in _ids(_recommend(view, _pipeline(rules(PIN.format(item="song39", at=0)))))


def test_seen_items_come_back_where_a_pin_repeats_and_only_there(view: LiveView, rules: Callable[[str], Rules]) -> None:
    pinned = rules(PIN.format(item="art00", at=4) + "repeat = true")
    slate = _recommend(view, _pipeline(pinned, seen={"art00": NOW_MS, "art01": NOW_MS}))
    assert _ids(slate).index("art00") == 4 and _ids(slate).count("art00") == 1 and "art01" not in _ids(slate)


@pytest.mark.parametrize("arm", ["millrace", "popular", "random"])
def test_blocked_items_leave_every_arm(view: LiveView, rules: Callable[[str], Rules], arm: str) -> None:
    blocked = rules("[[block]]\nname='b'\nsurfaces=['home']\ncategories=['art', 'cats']\nitems=['song00']")
    ids = _ids(_recommend(view, _pipeline(blocked), experiment_arm=arm, count=500))
    assert len(ids) == 119 and not any(item_id.startswith(("art", "cats", "song00")) for item_id in ids)
    assert len(_ids(_recommend(view, _pipeline(blocked), experiment_arm=arm, count=500, surface="other"))) == 200


def test_boosts_change_the_order_and_say_so(view: LiveView, rules: Callable[[str], Rules]) -> None:
    boosted = rules("[[boost]]\nname='local'\ncreators=['art-2']\nadd=10")
    slate = _recommend(view, _pipeline(boosted), explain=True)
    assert {item.creator_id for item in slate.items} == {"art-2"}
    move = slate.items[0].explanation.moves[0]
    assert (move.step, move.reason, move.to_position) == ("boost", "rule local", 0)
    assert move.from_position == slate.items[0].explanation.rank_by_score > 0


def test_of_versions_one_is_on_a_page(view: LiveView, rules: Callable[[str], Rules]) -> None:
    same = rules("[[versions]]\nname='v'\nitems=['art01', 'art02', 'art05']")
    ids = _ids(_recommend(view, _pipeline(same)))
    assert len(ids) == 10 and [item_id for item_id in ids if item_id in ("art01", "art02", "art05")] == ["art01"]


def test_a_rerank_that_breaks_leaves_the_order_of_the_scores(view: LiveView) -> None:
    none = replace(view.items, values_XF=view.items.values_XF[:, :0])
    slate = _recommend(replace(view, items=none), _pipeline(), explain=True)
    assert [note.stage for note in slate.degraded] == ["score", "rerank"], "the ranker needs the features, too"
    assert slate.degraded[1].reason.startswith("it failed (IndexError)")
    assert [item.explanation.rank_by_score for item in slate.items] == list(range(10))


# Pages.


def _pages(view: LiveView, pipeline: Pipeline, page: int, **fields: Any) -> Iterator[list[str]]:
    token, pages = "", 0
    while pages == 0 or token:
        slate = _recommend(view, pipeline, f"page{pages}", page_token=token, count=page, **fields)
        assert [item.position for item in slate.items] == list(range(len(slate.items)))
        token, pages = slate.next_page_token, pages + 1
        yield _ids(slate)


@pytest.mark.parametrize("page", [7, 50, 200, 500])
@pytest.mark.parametrize("arm", ["millrace", "popular", "random"])
def test_scrolling_returns_every_eligible_item_once(view: LiveView, page: int, arm: str) -> None:
    config = RerankConfig(epsilon=1.0)
    pipeline = _pipeline(config=config, seen={"art03": NOW_MS}, hidden=frozenset({"cats05"}))
    filter_ = pb.ItemFilter(block_item_ids=["song07"])
    pages = list(_pages(view, pipeline, page, experiment_arm=arm, filter=filter_))
    scrolled = [item_id for ids in pages for item_id in ids]
    assert len(scrolled) == len(set(scrolled))
    assert set(scrolled) == set(view.item_table.item_ids) - {"art03", "cats05", "song07"}
    assert all(len(ids) == page for ids in pages[:-1])


def test_a_scroll_ends_at_the_bound(view: LiveView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.paging.MAX_SCROLLED", 30)
    assert [len(ids) for ids in _pages(view, _pipeline(), 20)] == [20, 20]


def test_a_pin_is_on_the_first_page_only_and_is_not_repeated(view: LiveView, rules: Callable[[str], Rules]) -> None:
    pages = list(_pages(view, _pipeline(rules(PIN.format(item="song39", at=0))), 20))
    assert [ids.count("song39") for ids in pages] == [1] + [0] * (len(pages) - 1)
    assert pages[0][0] == "song39"


def test_an_empty_page_keeps_the_scroll_where_it_is(view: LiveView) -> None:
    first = _recommend(view, _pipeline())
    none = _recommend(view, _pipeline(), count=0, page_token=first.next_page_token)
    assert not none.items and none.next_page_token == first.next_page_token
    assert not set(_ids(first)) & set(_ids(_recommend(view, _pipeline(), page_token=none.next_page_token)))


def test_a_page_token_of_another_user_is_refused_by_its_field(view: LiveView) -> None:
    token = _recommend(view, _pipeline()).next_page_token
    for fields in ({"user_id": "v", "page_token": token}, {"page_token": token[:-4]}, {"page_token": "x"}):
        with pytest.raises(RequestError, match=r"^page_token: got .*; allowed: ") as refused:
            _recommend(view, _pipeline(), **fields)
        assert refused.value.field == "page_token"


def test_with_everything_filtered_the_slate_is_empty_and_ends_the_scroll(
    view: LiveView, rules: Callable[[str], Rules]
) -> None:
    nothing = rules("[[block]]\nname='b'\ncategories=['art', 'cats', 'news', 'song', 'sport']")
    slate = _recommend(view, _pipeline(nothing))
    assert (len(slate.items), slate.next_page_token, slate.candidates_scored) == (0, "", 0)
    assert not _similar(view, _pipeline(nothing), "art00").rows.row_S.size


def test_what_filters_and_rules_did_is_counted(view: LiveView, rules: Callable[[str], Rules]) -> None:
    both = rules(PIN.format(item="song39", at=0) + "[[block]]\nname='b'\ncategories=['art']")
    query, progress = recommend_query(pb.RecommendRequest(user_id="u", count=5), "r"), _progress()
    _pipeline(both, seen={"cats00": NOW_MS}).recommend(view, query, progress)
    assert {reason: items for reason, items in progress.filtered.items() if items} == {"seen": 1, "rule": 40}
    assert progress.placed == {"explored": 0, "pinned": 1, "deduplicated": 0}


# Similar.


def test_similar_items_come_by_the_sources_that_name_them(view: LiveView) -> None:
    slate = to_proto(_similar(view, _pipeline(), "sport03", count=20))
    assert not slate.degraded and len(slate.items) == 20 and not slate.next_page_token
    assert all(item.category == "sport" for item in slate.items) and "sport03" not in _ids(slate)
    assert set(slate.items[0].sources) == {"als", "item2item", "content"}
    assert [item.score for item in slate.items] == sorted((item.score for item in slate.items), reverse=True)
    assert not slate.items[0].head_probabilities and slate.items[0].propensity == 1


def test_similar_leaves_out_what_the_user_has_seen_or_filters_exclude(
    view: LiveView, rules: Callable[[str], Rules]
) -> None:
    blocked = rules("[[block]]\nname='b'\nitems=['sport04']")
    pipeline = _pipeline(blocked, seen={"sport05": NOW_MS}, hidden=frozenset({"sport06"}))
    english = pb.ItemFilter(languages=["en"])
    ids = _ids(to_proto(_similar(view, pipeline, "sport00", count=500, user_id="u", filter=english)))
    assert set(ids) == {f"sport{k:02d}" for k in range(1, 40, 2)} - {"sport05"}
    anybody = _ids(to_proto(_similar(view, pipeline, "sport00", count=500)))
    assert {"sport05", "sport06"} <= set(anybody) and "sport04" not in anybody


@pytest.mark.parametrize(
    ("item_id", "why"),
    [("nope", "the catalogue does not know the item"), ("lonely", "no other eligible item is like it")],
)
def test_without_neighbours_what_is_popular_comes_and_the_answer_says_so(
    bundle: Bundle, item_id: str, why: str
) -> None:
    lonely = replace(tiny_items()[0], item_id="lonely", category="other", creator_id="nobody", language="xx")
    slate = to_proto(_similar(_view(bundle, lonely.to_json()), _pipeline(), item_id))
    assert _ids(slate) == [f"art{k:02d}" for k in range(10)]
    assert [(note.stage, note.reason.split(":")[0]) for note in slate.degraded] == [("retrieve", why)]


def test_a_new_item_has_neighbours_by_content_alone(bundle: Bundle) -> None:
    new = replace(tiny_items()[0], item_id="new")
    slate = to_proto(_similar(_view(bundle, new.to_json()), _pipeline(), "new"))
    assert {source for item in slate.items for source in item.sources} == {"content"} and not slate.degraded
    assert all(item.category == "art" for item in slate.items)


def test_similar_does_without_a_source_that_breaks(view: LiveView, bundle: Bundle) -> None:
    als = replace(bundle.sources["als"], item_factors_ID=None)  # type: ignore[type-var]
    broken = replace(view, bundle=replace(bundle, sources={**bundle.sources, "als": als}))
    slate = to_proto(_similar(broken, _pipeline(), "art00"))
    assert len(slate.items) == 10 and slate.degraded[0].reason.startswith("the source als failed: TypeError")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"item_id": ""}, "item_id"),
        ({"item_id": "i" * 129}, "item_id"),
        ({"count": 501}, "count"),
        ({"user_id": "a b"}, "user_id"),
        ({"locale": "?"}, "locale"),
        ({"filter": pb.ItemFilter(languages=["x"] * 101)}, "filter.languages"),
        ({"filter": pb.ItemFilter(languages=["en", ""])}, "filter.languages[1]"),
    ],
)
def test_wrong_similar_requests_name_the_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as refused:
        similar_query(pb.SimilarRequest(**{"item_id": "art00", "count": 3, **fields}), "r")
    assert refused.value.field == field
