from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.quality_limits import QualityLimits
from infra.demo.live import ARMS, Live, LiveResult, Outcome
from infra.demo.run import demo_settings
from infra.demo.statistics import gap_share, latency, ratio_interval
from infra.demo.world_scenario import live_days_accepted
from streaming.world import World, WorldParameters


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


def arms(low: float, got: float, high: float, users: int = 50) -> list[np.ndarray]:
    return [np.array([[rate * 10] * users, [10] * users]) for rate in (low, got, high)]


@pytest.mark.parametrize(("got", "share"), [(0.1, 0.0), (0.25, 0.75), (0.3, 1.0), (0.05, -0.25)])
def test_the_share_of_the_gap_is_the_way_from_the_low_to_the_high_arm(got: float, share: float) -> None:
    assert gap_share(*arms(0.1, got, 0.3), seed=1) == {"value": share, "low": share, "high": share}


def test_arms_of_equal_rates_have_no_gap() -> None:
    assert all(np.isnan(value) for value in gap_share(*arms(0.2, 0.2, 0.2), seed=1).values())


def outcome(clicks: int, acts: int, item_id: str = "a") -> Outcome:
    return Outcome((item_id,), clicks, 10, 1_000 * clicks, 2.0, acts)


def test_a_live_result_tells_newcomers_with_few_events_from_the_rest() -> None:
    """One known user, and one newcomer who has done 3, then 7 things; the arms differ at those slates."""
    clicks = {"popular": (1, 1), "millrace": (2, 4), "oracle": (5, 5), "random": (0, 0)}
    result = LiveResult()
    for arm in ARMS:
        first, second = clicks[arm]
        result.outcomes[arm] = [[outcome(first, -1), outcome(9, 3)], [outcome(first, -1, "b"), outcome(second, 7)]]
    shares = result.gap_shares(seed=1)
    assert shares["few_events"] == {"value": 0.75, "low": 0.75, "high": 0.75}
    assert shares["clicks"] is not None
    assert shares["clicks"]["value"] == pytest.approx((2 + 2 + 4 - 3) / (15 - 3), abs=1e-4)
    report = result.arm_report("millrace", items=8, seed=1)
    assert (report["coverage"], report["age_days"]) == (0.25, 2.0)
    assert report["watch_s_per_slate"] == pytest.approx((2 + 9 + 2 + 4) / 4)
    assert result.by_round("millrace") == [11 / 20, 6 / 20]


def test_as_many_newcomers_as_at_first_join_the_live_users_each_time() -> None:
    parameters = WorldParameters.model_validate(
        {"population": {"users": 60, "live_only_users": 10}, "catalogue": {"items": 100}}
    )
    world = World(parameters, now_ms=1_764_460_800_000)
    nobody: Any = None
    live = Live(world, nobody, nobody, lambda: world.now_ms, 27)
    lived = [live.user_ids]
    for _ in range(3):
        live.welcome()
        lived.append(live.user_ids)
    assert [len(user_ids) for user_ids in lived] == [27, 31, 33, 33], "15% of 27 are new, of the 10 of the world"
    assert len(set(lived[-1])) == 33 and lived[-1][:27] == lived[0]


def test_the_gates_accept_the_days_of_the_live_phases_and_no_other(tmp_path: Path) -> None:
    file, midnight_ms = tmp_path / "quality.toml", 1_764_460_800_000  # 2025-11-30, 00:00 UTC
    for since_ms, days in ((midnight_ms + 5, ["2025-11-30"]), (midnight_ms - 5, ["2025-11-29", "2025-11-30"])):
        file.write_text(live_days_accepted(since_ms, midnight_ms + 60_000))
        limits = QualityLimits.read(file)
        for suite in (limits.events, limits.examples):
            assert [str(day.date) for day in suite.accepted_days] == days
        assert not limits.items.accepted_days


def test_the_demo_writes_no_limits_of_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MILLRACE_QUALITY_LIMITS", str(tmp_path / "mine.toml"))
    settings = demo_settings(seed=1)
    assert settings.quality_limits.parent == settings.var_dir
