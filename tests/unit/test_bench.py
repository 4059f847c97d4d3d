"""The benchmarks' rows, and the names that `make bench-NAME` takes."""

import numpy as np
import pytest
from rich.console import Console

from tests.bench.__main__ import run_bench
from tests.bench.bench_backfill import linearity
from tests.bench.bench_demo import demo_rows
from tests.bench.bench_models import alternating, interactions
from tests.bench.report import BenchError


def test_the_demos_figures_become_rows() -> None:
    rows = demo_rows({"data": "movielens", "seed": 7, "recommend_ms_p50": 4.5, "seconds": {"start": 20.0}})
    by_name = {row.name: row for row in rows}
    assert (by_name["recommend_ms_p50"].value, by_name["recommend_ms_p50"].unit) == (4.5, "ms")
    assert by_name["event_to_slate_ms_p50"].value is None
    assert (by_name["phase: start"].value, by_name["phase: start"].unit) == (20.0, "s")
    assert by_name["phase: start"].settings == {"data": "movielens", "seed": 7}


def test_linearity_is_the_ratio_of_what_an_event_costs_whatever_a_start_costs() -> None:
    assert linearity([1, 3, 10], [20.0, 40.0, 110.0]) == 1.0
    assert linearity([1, 3, 10], [20.0, 40.0, 180.0]) == 2.0


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(BenchError, match=r"unknown benchmark 'x'; allowed: .*demo"):
        run_bench("x", Console())


def test_the_matrix_of_the_models_benchmark_has_movielens_shape() -> None:
    weight_UI = interactions(np.random.default_rng(0))
    assert weight_UI.shape == (6_040, 3_706) and weight_UI.nnz == 1_000_000 and (weight_UI.data == 1).all()
    of_item_I = np.sort(np.asarray(weight_UI.sum(axis=0)).ravel())
    assert 1.7 < of_item_I.mean() / np.median(of_item_I) < 2.7  # 270 / 123 in MovieLens-1M


def test_work_that_is_compared_takes_turns_and_its_first_round_is_not_counted() -> None:
    done: list[str] = []
    ticks = iter(range(100))
    taken = alternating({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 2, lambda: next(ticks))
    assert "".join(done) == "ababab"
    assert {name: seconds.tolist() for name, seconds in taken.items()} == {"a": [1, 1], "b": [1, 1]}
