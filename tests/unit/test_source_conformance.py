"""What every candidate source owes its callers, run for each of them."""

from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from features.events import EVENT_TYPES
from features.items import Item
from features.names import MS_PER_DAY
from models.als import AlsConfig
from models.history import collapse
from models.item_table import ItemTable
from models.lake import EventLog
from models.sources import SOURCE_TYPES, RetrievalRequest, Source
from models.sources.als import AlsSource
from models.sources.base import top
from models.sources.exploration import ExplorationSource
from models.sources.kept import Kept
from models.sources.merge import merge
from models.sources.popular import PopularSource
from models.train_sources import SourcesConfig, train_sources
from tests.synthetic_lake import START_MS, synthetic_lake

NOW_MS = START_MS + 11 * MS_PER_DAY
NAMES = sorted(SOURCE_TYPES)


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, Source], ItemTable]:
    from models.item_table import train_item_table
    from models.lake import index_in

    lake = synthetic_lake(seed=1, users=40, items=80, slates=5)
    table = train_item_table(lake.items)
    users = lake.events.column("user_id").combine_chunks().dictionary_encode()
    log = EventLog(
        user_ids=tuple(users.dictionary.to_pylist()),
        user_N=users.indices.to_numpy().astype(np.int64),
        item_N=index_in(lake.events.column("item_id"), table.item_ids),
        type_N=index_in(lake.events.column("event_type"), EVENT_TYPES).astype(np.int8),
        time_ms_N=lake.events.column("event_time_ms").to_numpy(),
    )
    assert collapse(log.user_N, log.item_N, log.type_N, log.time_ms_N).row_N.size > 50
    return train_sources(
        log, table, SourcesConfig(als=AlsConfig(embedding_dim=8, epochs=3), neighbours=20), seed=0
    ), table


@pytest.fixture
def request_of(trained: tuple[dict[str, Source], ItemTable]) -> RetrievalRequest:
    """A request in which every source has something to say; the catalogue has grown since training."""
    new = [
        Item(
            item_id=f"new{n}",
            category="c0" if n else "brand-new",
            creator_id="k0",
            language="en",
            duration_ms=60_000,
            published_at_ms=NOW_MS - 1_000,
        )
        for n in range(3)
    ]
    table = trained[1].with_items(new)
    rng = np.random.default_rng(3)
    available = table.available.copy()
    available[[4, 5]] = False
    table = replace(table, available=available)
    excluded_I = rng.random(len(table)) < 0.2
    excluded_I[-1] = True
    return RetrievalRequest(
        instant_ms=NOW_MS,
        item_table=table,
        history_index_L=np.array([0, len(table) - 1, 7, 9], np.int32),
        history_weight_L=np.array([1.0, 2.0, 3.0, 1.0], np.float32),
        history_age_ms_L=np.array([1_000, 60_000, MS_PER_DAY, 9 * MS_PER_DAY]),
        excluded_I=excluded_I,
        rng=np.random.default_rng(5),
        followed_creators=frozenset({"k0", "k3", "a stranger"}),
        trending_score_I=rng.random(len(table)).astype(np.float32),
        impressions_I=rng.integers(0, 100, len(table)).astype(np.float32),
    )


def again(request: RetrievalRequest, **changes: object) -> RetrievalRequest:
    return replace(request, rng=np.random.default_rng(5), **changes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 1, 7, 10_000])
def test_gives_at_most_count_distinct_allowed_finite_items_best_first(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest, name: str, count: int
) -> None:
    found = trained[0][name].candidates(request_of, count)
    assert len(found) <= count
    assert found.item_index.dtype == np.int32 and found.score.dtype == np.float32
    assert len(set(found.item_index.tolist())) == len(found) == len(found.score)
    assert request_of.allowed_I[found.item_index].all()
    assert np.isfinite(found.score).all() and (np.diff(found.score) <= 0).all()
    assert len(found) > 0 or count == 0, "this request gives every source something to say"


@pytest.mark.parametrize("name", NAMES)
def test_a_smaller_count_is_a_prefix_and_the_same_request_gives_the_same_answer(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest, name: str
) -> None:
    source = trained[0][name]
    few, many = (source.candidates(again(request_of), count).item_index for count in (3, 20))
    np.testing.assert_array_equal(few, many[: len(few)])
    np.testing.assert_array_equal(many, source.candidates(again(request_of), 20).item_index)


@pytest.mark.parametrize("name", NAMES)
def test_a_user_about_whom_nothing_is_known_is_no_error(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest, name: str
) -> None:
    nothing = again(
        request_of,
        history_index_L=np.empty(0, np.int32),
        history_weight_L=np.empty(0, np.float32),
        history_age_ms_L=np.empty(0, np.int64),
        followed_creators=frozenset(),
        trending_score_I=None,
        impressions_I=None,
    )
    found = trained[0][name].candidates(nothing, 10)
    assert (len(found) > 0) == (name in ("popular", "exploration"))


@pytest.mark.parametrize("name", NAMES)
def test_everything_excluded_gives_nothing(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest, name: str
) -> None:
    nothing_left = again(request_of, excluded_I=np.ones(len(request_of.item_table), np.bool_))
    assert len(trained[0][name].candidates(nothing_left, 10)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_non_finite_live_values_do_no_harm(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest, name: str
) -> None:
    size = len(request_of.item_table)
    broken = again(
        request_of,
        trending_score_I=np.where(np.arange(size) % 2, np.nan, 1.0).astype(np.float32),
        impressions_I=np.full(size, np.nan, np.float32),
    )
    assert np.isfinite(trained[0][name].candidates(broken, 10).score).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_artefact_survives_its_arrays(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest, name: str
) -> None:
    source = trained[0][name]
    read_back = SOURCE_TYPES[name].from_arrays(source.to_arrays())
    wanted, got = (which.candidates(again(request_of), 10) for which in (source, read_back))
    np.testing.assert_array_equal(wanted.item_index, got.item_index)
    np.testing.assert_array_equal(wanted.score, got.score)


def test_content_serves_items_that_training_never_saw(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest
) -> None:
    table = request_of.item_table
    history_L = np.flatnonzero(table.category_code == table.category_index["c0"])[:3].astype(np.int32)
    asked = again(
        request_of,
        history_index_L=history_L,
        history_weight_L=np.ones(3, np.float32),
        history_age_ms_L=np.zeros(3, np.int64),
        excluded_I=np.zeros(len(table), np.bool_),
    )
    found = trained[0]["content"].candidates(asked, 10).item_index
    assert table.index["new1"] in found and table.index["new2"] in found


def test_follow_gives_the_newest_items_of_followed_creators_only(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest
) -> None:
    table = request_of.item_table
    found = trained[0]["follow"].candidates(again(request_of), 50).item_index
    assert {table.creators[table.creator_code[index]] for index in found} == {"k0", "k3"}
    assert (np.diff(table.published_at_ms[found]) <= 0).all()


def test_exploration_prefers_new_and_little_shown_items(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest
) -> None:
    size = len(request_of.item_table)
    shown_I = np.zeros(size, np.float32)
    shown_I[size - 3] = 10_000
    asked = again(request_of, excluded_I=np.zeros(size, np.bool_), impressions_I=shown_I)
    firsts = [
        trained[0]["exploration"].candidates(replace(asked, rng=np.random.default_rng(n)), 5).item_index.tolist()
        for n in range(100)
    ]
    drawn = np.bincount(np.concatenate(firsts), minlength=size)
    assert drawn[size - 2] > 75 and drawn[size - 3] < 60
    assert len({tuple(first) for first in firsts}) > 50


def test_the_merge_keeps_provenance_quotas_and_order(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest
) -> None:
    answers = {name: source.candidates(again(request_of), 20) for name, source in trained[0].items()}
    merged = merge(answers, {"popular": 2, "als": 0})
    assert len(set(merged.item_index_C.tolist())) == len(merged.item_index_C)
    assert (np.diff(merged.score_C) <= 0).all()
    for row, item_index in enumerate(merged.item_index_C):
        assert merged.sources(row), "every item says who proposed it"
        for name in merged.sources(row):
            assert item_index in answers[name].item_index
    columns = dict(zip(merged.source_names, merged.from_source_CP.sum(axis=0), strict=True))
    assert columns["popular"] == 2 and columns["als"] == 0
    assert len(merge({}).item_index_C) == 0


def test_als_neighbours_are_those_of_the_greatest_cosine(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest
) -> None:
    als = trained[0]["als"]
    assert isinstance(als, AlsSource)
    factors_ID, items = als.item_factors_ID.astype(np.float64), len(als.item_factors_ID)
    for item_index in (0, 7, items - 1):
        cosine = {
            other: factors_ID[other] @ factors_ID[item_index]
            / max(np.linalg.norm(factors_ID[other]) * np.linalg.norm(factors_ID[item_index]), 1e-12)
            for other in np.flatnonzero(request_of.allowed_I[:items]).tolist()
        }  # fmt: skip
        best = sorted((other for other, value in cosine.items() if value > 0), key=lambda other: -cosine[other])[:5]
        found = als.similar(request_of, item_index, 5)
        assert found.score == pytest.approx([cosine[other] for other in best], abs=1e-5)
    assert not len(als.similar(request_of, items, 5)), "an item of the live table that ALS does not know"


def test_unit_factors_have_length_one_or_nothing(trained: tuple[dict[str, Source], ItemTable]) -> None:
    als = trained[0]["als"]
    assert isinstance(als, AlsSource)
    items = len(als.item_factors_ID)
    with_zero = replace(als, item_factors_ID=np.vstack([als.item_factors_ID, np.zeros_like(als.item_factors_ID[:1])]))
    lengths = np.linalg.norm(with_zero.unit_factors(np.array([0, items, items + 1, items + 9], np.int32)), axis=1)
    assert lengths == pytest.approx([1, 0, 0, 0])
    empty = replace(als, item_factors_ID=als.item_factors_ID[:0])
    assert not empty.unit_factors(np.array([0, 3], np.int32)).any()


def test_exploration_draws_in_proportion_to_weight_without_replacement(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest
) -> None:
    """The chance of each pair of first and second is that of drawing from the weights that are left."""
    source, size = ExplorationSource(), len(request_of.item_table)
    excluded_I = np.ones(size, np.bool_)
    excluded_I[[1, size - 3, size - 1]] = False
    asked = again(request_of, excluded_I=excluded_I, impressions_I=np.full(size, 40, np.float32))
    weight_I = np.where(asked.allowed_I, source.weights(asked), 0.0)
    left = np.flatnonzero(asked.allowed_I)
    assert len(left) == 3
    rng, drawn = np.random.default_rng(0), Counter[tuple[int, ...]]()
    for _ in range(4_000):
        drawn[tuple(source.candidates(replace(asked, rng=rng), 2).item_index.tolist())] += 1
    for one, other in permutations(left.tolist(), 2):
        chance = weight_I[one] / weight_I.sum() * weight_I[other] / (weight_I.sum() - weight_I[one])
        error = 4 * np.sqrt(chance * (1 - chance) / 4_000)
        assert abs(drawn[one, other] / 4_000 - chance) <= error, (one, other)
    assert set(source.candidates(replace(asked, rng=rng), 50).item_index.tolist()) == set(left.tolist())


def test_what_is_kept_is_made_again_of_other_parts() -> None:
    kept, one, other = Kept[int](), np.zeros(1), np.zeros(1)
    made = iter(range(9))
    values = [kept.of(parts, lambda: next(made)) for parts in ((5, one), (5, one), (5, other), (6, other), (6, None))]
    assert values == [0, 0, 1, 2, 3]


def test_popular_fills_up_beyond_its_first_items_when_those_are_excluded(
    trained: tuple[dict[str, Source], ItemTable], request_of: RetrievalRequest
) -> None:
    size = len(request_of.item_table)
    score_I = np.random.default_rng(1).permutation(size).astype(np.float32)
    score_I[:3] = np.nan
    source, excluded_I = PopularSource(score_I=score_I), np.zeros(size, np.bool_)
    excluded_I[np.argsort(-np.nan_to_num(score_I, nan=-1))[: size // 2]] = True
    asked = again(request_of, excluded_I=excluded_I)
    for count in (0, 2, size):
        want = top(score_I, asked.allowed_I, count)
        got = source.candidates(asked, count)
        assert got.item_index.tolist() == want.item_index.tolist() and got.score.tolist() == want.score.tolist()
