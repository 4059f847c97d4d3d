"""Figures of a day beside its week: distances against their definitions, and which days are compared."""

import datetime
import random

import numpy as np
import pytest
from scipy.stats import ks_2samp

from batch.day_profile import Calendar, DayTally, Profiled, compare_days, distance_of
from features.drift import binned, kolmogorov_smirnov, total_variation
from features.quality_limits import AcceptedDay, SuiteLimits

TODAY = datetime.date(2025, 10, 9)
PROFILED = Profiled(classes="event_type", numbers=("watch_ms",))


def before(days: int) -> datetime.date:
    return TODAY - datetime.timedelta(days=days)


def test_total_variation_is_the_greatest_difference_of_any_set() -> None:
    rng = random.Random(1)
    for _ in range(50):
        p, q = ([rng.randint(0, 9) + 1 for _ in range(4)] for _ in range(2))
        sets = [[k for k in range(len(p)) if bits >> k & 1] for bits in range(2 ** len(p))]
        gap = max(abs(sum(p[k] for k in each) / sum(p) - sum(q[k] for k in each) / sum(q)) for each in sets)
        assert total_variation(p, q) == pytest.approx(gap)


def test_kolmogorov_smirnov_is_scipys_where_no_bin_holds_two_values() -> None:
    rng = np.random.default_rng(2)
    values = np.array([-1.0, 0.0, *2.0 ** np.arange(0, 12)])
    for _ in range(30):
        a, b = (rng.choice(values, size=rng.integers(5, 60), p=rng.dirichlet(np.ones(14))) for _ in range(2))
        assert kolmogorov_smirnov(binned(a), binned(b)) == pytest.approx(ks_2samp(a, b).statistic)


def test_an_empty_side_has_no_distance_and_nothing_that_is_not_finite_counts() -> None:
    assert np.isnan(total_variation([0, 0], [1, 2]))
    assert np.isnan(kolmogorov_smirnov(binned([]), binned([1.0])))
    assert binned([np.nan, np.inf, -np.inf, 1e300]).sum() == 1


def calendar(rows: dict[datetime.date, int], **limits: object) -> Calendar:
    return Calendar(
        today=TODAY,
        judged=(before(1), TODAY),
        rows=rows,
        left_out=frozenset({before(4)}),
        limits=SuiteLimits(min_day_rows=10, min_reference_days=3, **limits),
    )


def test_references_are_the_sound_large_accepted_by_nobody_days_of_the_week_before() -> None:
    rows = {before(n): 10 for n in range(12)} | {before(3): 9}
    accepted = (AcceptedDay(date=before(5), reason="closed"),)
    week = calendar(rows, accepted_days=accepted)
    #        7   6   5         4            3       2   1
    #        ok  ok  accepted  quarantine   small   ok  ok   today
    assert week.references(TODAY) == [before(n) for n in (7, 6, 2, 1)]
    assert week.references(before(5)) == [], "an accepted day is held against none"
    assert week.references(before(10)) == [], "two days are too few"


def day(rows: int, clicks: int, watch_ms: int) -> DayTally:
    return DayTally(
        rows=rows,
        classes={"click": clicks, "like": rows - clicks},
        numbers={"watch_ms": binned([watch_ms] * rows)},
        unknown_items=rows // 10,
    )


def test_the_figures_of_a_day() -> None:
    rows = {before(n): 1_000 for n in range(2, 9)}
    usual = {date: day(1_000, 500, 8) for date in rows}
    shown = compare_days(
        calendar(rows | {before(1): 500}),
        {**usual, before(1): day(500, 50, 9_000), TODAY: day(2_000, 1_000, 8)},
        PROFILED,
    ).set_index("event_date")
    yesterday = shown.loc[before(1)]
    assert yesterday["volume_ratio"] == 0.5
    assert yesterday["class_distance"] == pytest.approx(0.4)
    assert yesterday["class_ratio"] == pytest.approx(0.2)
    assert yesterday["unknown_share"] == pytest.approx(0.1)
    assert yesterday[distance_of("watch_ms")] == 1
    assert np.isnan(shown.loc[TODAY, "volume_ratio"]), "today is not over"
    # Today is held against five days of the usual mix and yesterday.
    assert shown.loc[TODAY, "class_distance"] == pytest.approx(1_000 / 2_000 - 2_550 / 5_500)


def test_without_a_history_there_is_nothing_to_say() -> None:
    shown = compare_days(calendar({}), {before(1): DayTally(), TODAY: day(50, 5, 8)}, PROFILED)
    assert shown.drop(columns=["event_date", "rows"]).isna().all(axis=None)
