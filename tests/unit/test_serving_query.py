"""Wire requests become queries, or errors that name the field, what was got and what is allowed."""

import pytest

from serving import ranking_pb2 as pb
from serving.query import MAX_COUNT, MAX_ITEM_IDS, RequestError, rank_query, recommend_query


def test_defaults() -> None:
    query = recommend_query(pb.RecommendRequest(count=5), "r")
    assert (query.user_id, query.surface, query.arm.name, query.count) == ("", "home", "millrace", 5)
    assert query.explore and not query.explain and query.language is None and query.item_ids is None


def test_everything_is_read() -> None:
    request = pb.RecommendRequest(
        user_id="u1",
        surface="feed",
        device="tv",
        locale="pt-BR",
        count=3,
        disable_exploration=True,
        experiment_arm="popular",
        explain=True,
        filter=pb.ItemFilter(allow_item_ids=["a"], block_item_ids=["b"], categories=["c"], block_categories=["d"]),
    )
    query = recommend_query(request, "r")
    assert (query.surface, query.device, query.language, query.arm.name) == ("feed", "tv", "pt", "popular")
    assert not query.explore and query.explain
    assert (query.rules.allow_item_ids, query.rules.block_item_ids) == (frozenset("a"), frozenset("b"))
    assert (query.rules.categories, query.rules.block_categories) == (frozenset("c"), frozenset("d"))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.RecommendRequest(count=MAX_COUNT + 1), "count"),
        (pb.RecommendRequest(user_id="a b"), "user_id"),
        (pb.RecommendRequest(user_id="u" * 129), "user_id"),
        (pb.RecommendRequest(surface="ho me"), "surface"),
        (pb.RecommendRequest(device="d" * 33), "device"),
        (pb.RecommendRequest(locale="e"), "locale"),
        (pb.RecommendRequest(locale="en_"), "locale"),
        (pb.RecommendRequest(experiment_arm="nope"), "experiment_arm"),
        (pb.RecommendRequest(filter=pb.ItemFilter(block_item_ids=["a", ""])), "filter.block_item_ids[1]"),
        (pb.RecommendRequest(filter=pb.ItemFilter(categories=["c"] * 1001)), "filter.categories"),
    ],
)
def test_bad_recommend_requests_name_the_field(request_: pb.RecommendRequest, field: str) -> None:
    with pytest.raises(RequestError) as raised:
        recommend_query(request_, "r")
    assert raised.value.field == field
    assert "got" in str(raised.value) and "allowed" in str(raised.value) and field in str(raised.value)


def test_rank_keeps_the_callers_order_and_drops_duplicates() -> None:
    assert rank_query(pb.RankRequest(item_ids=["b", "a", "b"]), "r").item_ids == ("b", "a")
    assert rank_query(pb.RankRequest(), "r").item_ids == ()


def test_rank_bounds_its_items() -> None:
    rank_query(pb.RankRequest(item_ids=[f"i{i}" for i in range(MAX_ITEM_IDS)]), "r")
    with pytest.raises(RequestError, match=r"item_ids: got .*10001.* allowed: at most 10000"):
        rank_query(pb.RankRequest(item_ids=["i"] * (MAX_ITEM_IDS + 1)), "r")
