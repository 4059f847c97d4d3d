import numpy as np
import pytest

from infra.demo.statistics import latency, ratio_interval


def test_latency_keeps_the_values_and_their_percentiles() -> None:
    found = latency("wait_ms", [float(value) for value in range(101)])
    assert found["wait_ms_p50"] == 50.0
    assert found["wait_ms_p99"] == 99.0
    assert len(found["wait_ms"]) == 101


def test_a_ratio_without_spread_has_an_interval_without_width() -> None:
    assert ratio_interval([2, 2, 2], [10, 10, 10], seed=1) == {"value": 0.2, "low": 0.2, "high": 0.2}


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for draw in range(200):
        clicks_U = rng.binomial(20, 0.1, size=80)
        found = ratio_interval(clicks_U, np.full(80, 20), seed=draw)
        covered += found["low"] <= 0.1 <= found["high"]
    assert covered / 200 == pytest.approx(0.95, abs=0.05)
