"""Reranking: spread against a brute-force oracle, the propensities of exploration by counting, pins, boosts, moves."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.rerank import (
    Boost,
    Contenders,
    Likeness,
    Pin,
    RankedRows,
    RerankConfig,
    RuleEffects,
    by_score,
    draw_rng,
    rerank,
)
from serving.rerank.explore import Rivals, exploration_slots
from serving.rerank.spread import spread_order

PLAIN = RerankConfig(category_penalty=0, creator_penalty=0, similarity_penalty=0, fresh_bonus=0, epsilon=0)
DRAWS = replace(PLAIN, epsilon=0.5, explore_max_loss=100)


def _contenders(score: list[float], **changed: Any) -> Contenders:
    count = len(score)
    likeness = Likeness(
        category_C=np.asarray(changed.pop("category_C", np.arange(count))),
        creator_C=np.asarray(changed.pop("creator_C", np.arange(count))),
        factors_CD=changed.pop("factors_CD", None),
    )
    columns: dict[str, Any] = {
        "age_ms_C": np.zeros(count, np.int64),
        "explorable_C": np.zeros(count, np.bool_),
        "click_probability_C": np.full(count, 0.1),
        "clicks_C": np.zeros(count),
        "impressions_C": np.zeros(count),
    }
    return Contenders(score_C=np.array(score, np.float64), likeness=likeness, **{**columns, **changed})


def _rerank(
    score: list[float],
    config: RerankConfig = PLAIN,
    count: int | None = None,
    rng: np.random.Generator | None = None,
    explain: bool = False,
    **changed: Any,
) -> RankedRows:
    return rerank(_contenders(score, **changed), len(score) if count is None else count, config, rng, explain=explain)


# The order.


def test_by_score_sinks_what_is_not_finite_and_keeps_ties_in_order() -> None:
    rows = by_score(np.array([1.0, np.nan, 2.0, -np.inf, 2.0]), 5)
    assert rows.row_S.tolist() == [2, 4, 0, 1, 3]
    assert rows.propensity_S.tolist() == [1.0] * 5


def test_without_penalties_the_order_is_the_scores() -> None:
    assert _rerank([0.1, 0.4, 0.3]).row_S.tolist() == [1, 2, 0]


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_non_finite_scores_come_last(bad: float) -> None:
    assert _rerank([bad, 0.4, 0.3]).row_S.tolist() == [1, 2, 0]
    assert _rerank([bad, bad]).row_S.tolist() == [0, 1]


def test_a_slate_of_none_of_no_candidates_and_of_more_than_there_are() -> None:
    assert _rerank([0.1, 0.2], count=0).row_S.tolist() == []
    assert _rerank([]).row_S.tolist() == []
    assert _rerank([0.1, 0.2], count=5).row_S.tolist() == [1, 0]


def _spread_by_hand(value: list[float], alike: Likeness, config: RerankConfig) -> list[int]:
    """Greedy maximal marginal relevance as it is defined, pair by pair."""
    chosen: list[int] = []
    left = [row for row in range(len(value)) if np.isfinite(value[row])]
    while left and len(chosen) < config.spread_positions:

        def marginal(row: int) -> float:
            penalty = 0.0
            for other in chosen[-config.spread_window :]:
                penalty += config.category_penalty * (alike.category_C[row] == alike.category_C[other])
                penalty += config.creator_penalty * (alike.creator_C[row] == alike.creator_C[other])
                if alike.factors_CD is not None:
                    penalty += config.similarity_penalty * float(alike.factors_CD[row] @ alike.factors_CD[other])
            return value[row] - penalty

        best = max(left, key=marginal)
        chosen.append(best)
        left.remove(best)
    sunk = [row for row in range(len(value)) if row not in chosen and row not in left]
    return chosen + sorted(left, key=lambda row: -value[row]) + sunk


@pytest.mark.parametrize("seed", range(25))
def test_the_spread_is_the_greedy_order_by_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 40))
    value_C = rng.normal(size=count)
    value_C[rng.random(count) < 0.1] = -np.inf
    factors_CD = rng.normal(size=(count, 4)).astype(np.float32)
    factors_CD /= np.linalg.norm(factors_CD, axis=1, keepdims=True)
    alike = Likeness(
        category_C=rng.integers(0, 4, count),
        creator_C=rng.integers(0, 6, count),
        factors_CD=factors_CD if seed % 3 else None,
    )
    config = RerankConfig(
        category_penalty=rng.random(),
        creator_penalty=rng.random(),
        similarity_penalty=rng.random(),
        spread_window=int(rng.integers(1, 6)),
        spread_positions=int(rng.integers(0, 30)),
    )
    assert spread_order(value_C, alike, config).tolist() == _spread_by_hand(value_C.tolist(), alike, config)


def test_items_of_one_audience_are_spread_although_nothing_else_is_alike() -> None:
    factors_CD = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    config = replace(PLAIN, similarity_penalty=2.0)
    assert _rerank([1.0, 0.9, 0.8], config, factors_CD=factors_CD).row_S.tolist() == [0, 2, 1]


def test_a_fresh_item_gains_and_a_publication_to_come_gains_no_more() -> None:
    config = replace(PLAIN, fresh_bonus=3.0)
    week_ms = 7 * 86_400_000
    assert _rerank([1.0, 0.9], config, age_ms_C=np.array([week_ms, 0])).row_S.tolist() == [1, 0]
    assert _rerank([1.0, 0.9], config, age_ms_C=np.array([0, -week_ms])).row_S.tolist() == [0, 1]


def test_an_item_in_another_language_than_is_stated_loses() -> None:
    foreign_C, config = np.array([True, False, False]), replace(PLAIN, language_penalty=3.0)
    rows = _rerank([1.0, 0.9, 0.8], config, foreign_C=foreign_C, explain=True)
    assert rows.row_S.tolist() == [1, 2, 0]
    assert {(move.row, move.step, move.reason) for move in rows.moves} == {
        (0, "language", "in another language than the caller states"),
        (1, "language", "items in other languages made way"),
        (2, "language", "items in other languages made way"),
    }
    assert _rerank([1.0, 0.9, 0.8], config).row_S.tolist() == [0, 1, 2], "where none is stated nothing is lost"
    assert _rerank([1.0, 0.9, 0.8], replace(PLAIN, language_penalty=0), foreign_C=foreign_C).row_S.tolist() == [0, 1, 2]


# Exploration.


def test_items_in_other_languages_are_not_explored() -> None:
    count = 40
    foreign_C = np.arange(count) % 2 == 1
    for seed in range(20):
        rows = _rerank(
            np.linspace(1, 0, count).tolist(),
            replace(DRAWS, epsilon=1.0, language_penalty=0.1),
            10,
            np.random.default_rng(seed),
            explorable_C=np.ones(count, np.bool_),
            foreign_C=foreign_C,
        )
        assert rows.explored_S.sum() == 1 and not foreign_C[rows.row_S[rows.explored_S]].any()


def test_slots_lie_once_in_each_full_block() -> None:
    config = RerankConfig(explore_every=10, explore_offset=6)
    assert [list(exploration_slots(count, config)) for count in (9, 10, 25)] == [[], [6], [6, 16]]


def test_the_chance_of_the_best_is_that_of_real_beta_draws() -> None:
    a_P, b_P = np.array([2.0, 1.0, 30.0, 0.4]), np.array([18.0, 19.0, 400.0, 7.0])
    draws = np.random.default_rng(0).beta(a_P, b_P, size=(200_000, 4)).argmax(axis=1)
    counted = np.bincount(draws, minlength=4) / len(draws)
    chance = Rivals(a_P, b_P).chance_of_best(np.arange(4))
    assert chance == pytest.approx(counted, abs=0.005)


def test_the_chance_of_the_best_where_it_is_known() -> None:
    rivals = Rivals(np.array([2.0] * 5 + [1e6]), np.array([18.0] * 5 + [1e6]))
    assert rivals.chance_of_best(np.arange(5)) == pytest.approx([0.2] * 5)
    assert rivals.chance_of_best(np.array([0, 5])) == pytest.approx([0, 1], abs=1e-4)
    assert rivals.chance_of_best(np.array([3])).tolist() == [1.0]
    # A uniform X exceeds Y of Beta(1, 3) with chance E[1 - (1 - X)^3].
    uniform = Rivals(np.array([1.0, 1.0]), np.array([1.0, 3.0]))
    assert uniform.chance_of_best(np.arange(2)) == pytest.approx([0.75, 0.25], abs=1e-3)


def test_propensities_are_the_frequencies_of_the_draws_in_every_slot() -> None:
    """Frequency of each item at each position, given the items above, equals what is logged."""
    score = [1.0 - k / 20 for k in range(30)]
    explorable = np.isin(np.arange(30), [22, 24, 26, 28])
    shown = {"clicks_C": np.arange(30) % 3 * 1.0, "impressions_C": np.arange(30) % 7 * 5.0}
    runs = 4_000
    at: Counter[tuple[tuple[int, ...], int]] = Counter()
    above: Counter[tuple[int, ...]] = Counter()
    stated: dict[tuple[tuple[int, ...], int], float] = {}
    for k in range(runs):
        rows = _rerank(score, DRAWS, 20, draw_rng(f"r{k}"), explorable_C=explorable, **shown)
        items = rows.row_S.tolist()
        for position in (6, 7, 16, 19):
            key = (tuple(items[:position]), items[position])
            at[key] += 1
            above[key[0]] += 1
            assert stated.setdefault(key, float(rows.propensity_S[position])) == rows.propensity_S[position]
    for (prefix, item), times in at.items():
        chance, trials = stated[prefix, item], above[prefix]
        assert abs(times / trials - chance) <= 4.5 * np.sqrt(chance * (1 - chance) / trials) + 1e-12
    at_first_slot = {item: chance for (prefix, item), chance in stated.items() if len(prefix) == 6}
    assert set(at_first_slot) == {6, 22, 24, 26, 28} and sum(at_first_slot.values()) == pytest.approx(1.0)


def test_what_is_clicked_more_and_what_is_known_less_is_drawn_more() -> None:
    explorable = np.isin(np.arange(20), [15, 16, 17])
    clicks, impressions = np.zeros(20), np.zeros(20)
    clicks[15], impressions[15], impressions[16] = 30, 60, 500  # clicked often, never clicked, unknown
    drawn: Counter[int] = Counter()
    for k in range(1_000):
        rows = _rerank(
            [0.0] * 20, replace(DRAWS, epsilon=1.0, explore_floor=0.0), 10, draw_rng(str(k)),
            explorable_C=explorable, clicks_C=clicks, impressions_C=impressions,
        )  # fmt: skip
        drawn[int(rows.row_S[6])] += 1
    assert drawn[15] > drawn[17] > drawn[16]


def test_no_propensity_is_below_the_floor() -> None:
    explorable = np.arange(60) >= 40
    impressions = np.where(np.arange(60) == 45, 0.0, 1e6)
    least = DRAWS.epsilon * DRAWS.explore_floor / 20
    for k in range(200):
        rows = _rerank([0.0] * 60, DRAWS, 10, draw_rng(str(k)), explorable_C=explorable, impressions_C=impressions)
        assert (rows.propensity_S >= least - 1e-12).all()


@pytest.mark.parametrize("bad", [np.nan, -5.0, np.inf])
def test_counts_that_cannot_be_do_no_harm(bad: float) -> None:
    explorable = np.arange(20) >= 12
    rows = _rerank(
        [0.0] * 20, replace(DRAWS, epsilon=1.0), 10, draw_rng("r"), explorable_C=explorable,
        clicks_C=np.full(20, bad), impressions_C=np.full(20, bad), click_probability_C=np.full(20, np.nan),
    )  # fmt: skip
    assert rows.explored_S.sum() == 1 and rows.propensity_S[6] == pytest.approx(1 / 8)


def test_exploration_costs_no_more_than_is_stated() -> None:
    config = replace(PLAIN, epsilon=0.5, explore_max_loss=0.5)
    assert (config.explored_share, config.explored_loss) == (0.05, 0.025)
    rng = np.random.default_rng(3)
    explored, lost = 0, 0.0
    for k in range(300):
        score = np.sort(rng.normal(size=100))[::-1]
        explorable = rng.random(100) < 0.3
        rows = _rerank(score.tolist(), config, 50, draw_rng(str(k)), explorable_C=explorable)
        plain = score[:50]
        for position in np.flatnonzero(rows.explored_S):
            due = score[position - int(rows.explored_S[:position].sum())]
            assert due - score[rows.row_S[position]] <= 0.5 * score.std() + 1e-12
        explored += int(rows.explored_S.sum())
        lost += (plain.sum() - score[rows.row_S].sum()) / score.std()
    assert 0 < explored / (300 * 50) <= config.explored_share
    assert 0 < lost / (300 * 50) <= config.explored_loss


def test_without_candidates_to_explore_the_next_best_takes_the_slot() -> None:
    rows = _rerank(list(range(20, 0, -1)), replace(DRAWS, epsilon=1.0), 10, np.random.default_rng(0))
    assert not rows.explored_S.any() and rows.propensity_S.tolist() == [1.0] * 10


def test_the_same_request_draws_the_same() -> None:
    explorable = np.arange(60) >= 30
    one, same, other = (
        _rerank([0.0] * 60, DRAWS, 30, draw_rng(request_id), explorable_C=explorable).row_S.tolist()
        for request_id in ("a", "a", "b")
    )
    assert one == same != other


# Rules.


def test_boosts_of_an_item_work_together_and_lift_negative_scores() -> None:
    def first(score: list[float], *boosts: Boost) -> int:
        return int(_rerank(score, rules=RuleEffects(boosts=boosts)).row_S[0])

    second = np.array([False, True, False])
    double = Boost(rule="double", boosted_C=second, multiply=2.0)
    half = Boost(rule="half", boosted_C=~second, multiply=0.5)
    assert first([1.0, 0.9, 0.0], double) == 1
    assert first([-1.0, -1.1, -9.0], double) == 1, "a multiplier above 1 lowered an item"
    assert first([1.0, 0.9, 0.0], half) == 1
    third = Boost(rule="add", boosted_C=np.array([False, False, True]), add=5.0)
    assert first([1.0, 0.9, 0.0], third) == 2
    assert first([1.0, 0.9, 0.0], third, replace(third, add=-5.0)) == 0
    assert first([np.nan, 0.9, 0.0], Boost(rule="nan", boosted_C=~second, add=9.0)) == 2


def test_pins_take_their_positions_and_the_others_keep_their_order() -> None:
    rules = RuleEffects(pins=(Pin(row=5, position=0, rule="a"), Pin(row=3, position=2, rule="b")))
    rows = _rerank([9.0, 8, 7, 6, 5, 4], count=4, rules=rules)
    assert rows.row_S.tolist() == [5, 0, 3, 1]
    assert rows.propensity_S.tolist() == [1.0] * 4


def test_pins_of_one_position_stand_in_their_order_and_short_slates_end_with_them() -> None:
    same = RuleEffects(pins=(Pin(row=3, position=1, rule="a"), Pin(row=2, position=1, rule="b")))
    assert _rerank([9.0, 8, 7, 6], rules=same).row_S.tolist() == [0, 3, 2, 1]
    late = RuleEffects(pins=(Pin(row=0, position=8, rule="a"), Pin(row=1, position=9, rule="b")))
    assert _rerank([9.0, 8, 7], count=10, rules=late).row_S.tolist() == [2, 0, 1]
    only = RuleEffects(pins=(Pin(row=0, position=0, rule="a"),))
    assert _rerank([np.nan], count=10, rules=only).row_S.tolist() == [0]


def test_propensities_move_with_their_items_when_pins_come_in() -> None:
    explorable = np.arange(20) >= 15
    rules = RuleEffects(pins=(Pin(row=14, position=2, rule="a"),))
    score = [1.0 - k / 20 for k in range(20)]
    rows = _rerank(score, DRAWS, 11, draw_rng("r"), explorable_C=explorable, rules=rules)
    without = _rerank(score, DRAWS, 10, draw_rng("r"), explorable_C=explorable)
    assert rows.row_S.tolist() == [*without.row_S[:2].tolist(), 14, *without.row_S[2:].tolist()]
    assert np.delete(rows.propensity_S, 2).tolist() == without.propensity_S.tolist()
    assert rows.propensity_S[2] == 1.0 and rows.propensity_S[7] != 1.0


def test_of_versions_the_best_stays_and_a_pinned_one_excludes_the_others() -> None:
    version_C = np.array([0, -1, 0, 1, 1])
    rows = _rerank([5.0, 4, 6, 3, 2], rules=RuleEffects(version_C=version_C))
    assert (rows.row_S.tolist(), rows.deduplicated) == ([2, 1, 3], 2)
    pinned = RuleEffects(version_C=version_C, pins=(Pin(row=4, position=0, rule="a"),))
    rows = _rerank([5.0, 4, 6, 3, 2], rules=pinned)
    assert (rows.row_S.tolist(), rows.deduplicated) == ([4, 2, 1], 2)


# All together.


@st.composite
def _cases(draw: st.DrawFn) -> tuple[int, int, int]:
    return draw(st.integers(0, 10**6)), draw(st.integers(0, 60)), draw(st.integers(0, 50))


@settings(max_examples=150, deadline=None)
@given(_cases())
def test_a_slate_has_no_item_twice_and_every_move_is_told(case: tuple[int, int, int]) -> None:
    """Moves lead from the rank by score to the position, each from where the one before ended."""
    seed, candidates, count = case
    rng = np.random.default_rng(seed)
    score = rng.normal(size=candidates)
    score[rng.random(candidates) < 0.1] = np.nan
    pinned = rng.permutation(candidates)[: int(rng.integers(0, 4))].tolist()
    at = sorted(rng.integers(0, 12, len(pinned)).tolist())
    rules = RuleEffects(
        boosts=(Boost(rule="up", boosted_C=rng.random(candidates) < 0.2, add=1.0),),
        pins=tuple(Pin(row=row, position=p, rule=f"pin{row}") for row, p in zip(pinned, at, strict=True)),
        version_C=np.where(rng.random(candidates) < 0.3, rng.integers(0, 3, candidates), -1),
    )
    contenders = _contenders(
        score.tolist(),
        category_C=rng.integers(0, 4, candidates),
        age_ms_C=rng.integers(0, 10**9, candidates),
        explorable_C=rng.random(candidates) < 0.4,
        foreign_C=rng.random(candidates) < 0.3,
        rules=rules,
    )
    config = RerankConfig(epsilon=0.9, fresh_bonus=1.0)
    rows = rerank(contenders, count, config, draw_rng(str(seed)), explain=True)
    silent = rerank(contenders, count, config, draw_rng(str(seed)))
    items = rows.row_S.tolist()
    assert items == silent.row_S.tolist() and not silent.moves
    assert len(set(items)) == len(items) <= count
    assert ((rows.propensity_S > 0) & (rows.propensity_S <= 1)).all()
    versions = rules.version_C[rows.row_S] if rules.version_C is not None else np.empty(0)
    free = versions[(versions >= 0) & ~np.isin(rows.row_S, pinned)]
    assert len(set(free.tolist())) == len(free)
    rank = {row: r for r, row in enumerate(by_score(score, candidates).row_S.tolist())}
    for position, row in enumerate(items):
        stands = rank[row]
        for move in (move for move in rows.moves if move.row == row):
            assert move.from_position == stands != move.to_position and move.reason
            stands = move.to_position
        assert stands == position
    order = ["boost", "language", "fresh", "deduplicate", "spread", "explore", "pin"]
    steps = [order.index(move.step) for move in rows.moves]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epsilon": 1.5}, "epsilon=1.5; allowed: 0 to 1"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
        ({"explore_floor": -0.1}, "explore_floor=-0.1"),
        ({"spread_window": 0}, "spread_window=0; allowed: 1 to 500"),
        ({"spread_window": 2.5}, "spread_window=2.5; allowed: a whole number"),
        ({"explore_offset": 10}, "explore_offset=10, explore_every=10"),
        ({"fresh_half_life_ms": 0}, "fresh_half_life_ms=0"),
        ({"category_penalty": "much"}, "category_penalty=much"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="rerank: got") as refused:
        RerankConfig(**wrong)
    assert said in str(refused.value)
