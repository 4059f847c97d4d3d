"""The monitor on made-up slates, events and examples: each thing broken in turn gives exactly its alert."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.automatic_rollback import decide
from models.champions import Champions, Switch
from models.drift import population_stability
from models.guardrails import Comparison, Guardrail
from models.metrics.bootstrap import Interval
from models.monitor import Monitor, watch
from models.monitor_alerts import MonitorError, judge
from models.monitor_limits import MonitorLimits
from models.refusal import RefusalError
from models.workspace import atomic_json
from tests.served_world import HOUR_MS, ITEMS, NOW_MS, PROMOTED_MS, World

NEW, OLD = "bundle-new", "bundle-old"
LIMITS = MonitorLimits(min_rows=200)


def champions(bundles_dir: Path) -> None:
    """OLD was replaced by NEW."""
    history = [
        {"bundle_id": OLD, "at_ms": 1, "action": "promote", "replaced": None},
        {"bundle_id": NEW, "at_ms": PROMOTED_MS, "action": "promote", "replaced": OLD},
    ]
    atomic_json(bundles_dir / "champion.json", {"bundle_id": NEW, "before": [OLD], "history": history})


def run(tmp_path: Path, world: World) -> dict[str, Any]:
    champions(tmp_path / "bundles")
    monitor = Monitor(
        lake=world.write(tmp_path / "lake"),
        bundles_dir=tmp_path / "bundles",
        workspace=tmp_path / "workspace",
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        now_ms=NOW_MS,
        limits=LIMITS,
    )
    return watch(monitor)


def alerts(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(alert["check"], alert["subject"]) for alert in report["alerts"]}


def test_nothing_is_wrong_with_a_calm_world(tmp_path: Path) -> None:
    report = run(tmp_path, World(OLD, NEW))
    assert alerts(report) == set()
    assert not [check for check, record in report["checks"].items() if "not_judged" in record]
    assert [guardrail["name"] for guardrail in report["guardrails"]["guardrails"]] == [
        "click_rate",
        "hide_rate",
        "coverage",
    ]
    assert report["rollback"] == {"would_go_to": None, "went_to": None, "reason": "the guardrails hold"}
    assert {found["subject"] for found in report["checks"]["sources"]["found"]} == {"als", "popular"}
    assert report["checks"]["freshness"]["found"][0]["share"] == 0.0
    assert report["checks"]["freshness"]["age_ms_p50"] == 60_000
    atomic_json(tmp_path / "report.json", report)
    judge(tmp_path / "report.json")


BROKEN: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "feature": ({"now_feature": 5.0}, ("features", "item_clicks_1h")),
    "label": ({"now_label": 0.05}, ("labels", "like")),
    "score": ({"now_score": 3.0}, ("scores", "")),
    "calibration": ({"now_probability": 0.6}, ("calibration", "click")),
    "freshness": ({"now_behind_ms": 60_000}, ("freshness", "")),
    "source": ({"now_sources": ("popular",)}, ("sources", "als")),
    "clicks": ({"click_rate": {OLD: 0.3, NEW: 0.22}}, ("guardrail", "click_rate")),
    "hides": ({"hide_rate": {OLD: 0.05, NEW: 0.12}}, ("guardrail", "hide_rate")),
    "coverage": ({"items": {OLD: ITEMS, NEW: 12}}, ("guardrail", "coverage")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_each_thing_broken_gives_exactly_its_alert(tmp_path: Path, what: str) -> None:
    world, (changes, alert) = World(OLD, NEW), BROKEN[what]
    for name, value in changes.items():
        setattr(world, name, value)
    report = run(tmp_path, world)
    assert alerts(report) == {alert}
    assert report["rollback"]["went_to"] is None, "the bundle before is not there to go back to"
    broken = alert[0] == "guardrail"
    assert report["rollback"]["reason"].startswith("no champion before it" if broken else "the guardrails hold")
    atomic_json(tmp_path / "report.json", report)
    with pytest.raises(MonitorError, match=alert[1] or alert[0]):
        judge(tmp_path / "report.json")


def test_what_is_too_little_to_judge_is_said(tmp_path: Path) -> None:
    """No tables, no champion."""
    monitor = Monitor(
        lake=tmp_path / "lake",
        bundles_dir=tmp_path / "bundles",
        workspace=tmp_path,
        tracking_uri="sqlite:///none",
        now_ms=NOW_MS,
        limits=LIMITS,
    )
    report = watch(monitor)
    assert all("not_judged" in record for record in report["checks"].values())
    assert not report["alerts"]
    assert "no bundle before the champion" in report["guardrails"]["not_compared"]
    json.dumps(report, allow_nan=False)


def test_a_report_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MonitorError, match=r"run python -m models\.monitor first"):
        judge(tmp_path / "none.json")


def test_the_index_of_stability() -> None:
    """Halves against a quarter and three quarters: (.25 - .5) ln .5 + (.75 - .5) ln 1.5, by hand."""
    reference, now = np.repeat([0.0, 1.0], [500, 500]), np.repeat([0.0, 1.0], [250, 750])
    by_hand = -0.25 * np.log(0.5) + 0.25 * np.log(1.5)
    assert population_stability(reference, now).index == pytest.approx(by_hand)
    assert population_stability(now, reference).index == pytest.approx(by_hand), "it is symmetric"
    assert population_stability(reference, reference).index == 0
    assert population_stability(reference, reference + 9).index > 5, "what never was is not ignored"
    rng = np.random.default_rng(1)
    assert population_stability(rng.normal(size=5_000), rng.normal(size=5_000)).index < 0.05
    assert np.isnan(population_stability(np.empty(0), now).index)


def test_few_independent_values_may_differ_by_chance() -> None:
    """One time in a hundred, by drawing; and what has moved is beyond it."""
    rng = np.random.default_rng(2)
    exceeded = [
        stability.index > stability.by_chance(200, 60)
        for stability in (population_stability(rng.normal(size=200), rng.normal(size=60)) for _ in range(400))
    ]
    assert np.mean(exceeded) < 0.05
    moved = population_stability(rng.normal(size=200), rng.normal(size=60) + 2)
    assert moved.index > 0.25 + moved.by_chance(200, 60)


def switch(bundle_id: str, at_h: float, action: str, replaced: str | None) -> Switch:
    return Switch.model_validate(
        {"bundle_id": bundle_id, "at_ms": int(at_h * HOUR_MS), "action": action, "replaced": replaced}
    )


BAD = Comparison(
    guardrails=(
        Guardrail(
            name="click_rate",
            now=0.1,
            before=0.2,
            change=Interval(value=-0.5, low=-0.6, high=-0.4),
            broken=True,
            limit=-0.1,
        ),
    )
)
A_B_C = Champions(
    bundle_id="c",
    before=("a", "b"),
    history=(switch("a", 0, "promote", None), switch("b", 1, "promote", "a"), switch("c", 2, "promote", "b")),
)
B_WAS_LEFT = Champions(
    bundle_id="c",
    before=("a", "b"),
    history=(
        switch("b", 0, "promote", "a"),
        switch("a", 1, "rollback", "b"),
        switch("b", 2, "force", "a"),
        switch("c", 3, "promote", "b"),
    ),
)


@pytest.mark.parametrize(
    ("known", "comparison", "hour", "target", "why"),
    [
        (A_B_C, BAD, 40, "b", "click_rate went from 0.2 to 0.1, by -50.0% [-60.0%, -40.0%], allowed: -10%"),
        (A_B_C, Comparison(not_compared="too young"), 40, None, "too young"),
        (A_B_C, Comparison(), 40, None, "the guardrails hold"),
        (B_WAS_LEFT, BAD, 40, "a", "click_rate"),
        (B_WAS_LEFT, BAD, 24, None, "a roll-back 23.0 h ago is too recent"),
        (A_B_C.model_copy(update={"before": ()}), BAD, 40, None, "no champion before it"),
        (A_B_C.model_copy(update={"before": ("gone",)}), BAD, 40, None, "no champion before it"),
        (
            Champions(bundle_id="a", before=("z",), history=(switch("a", 1, "rollback", "b"),)),
            BAD,
            40,
            None,
            "the champion came by a roll-back",
        ),
    ],
)
def test_where_a_rollback_goes(
    known: Champions, comparison: Comparison, hour: int, target: str | None, why: str
) -> None:
    decision = decide(known, comparison, hour * HOUR_MS, LIMITS, lambda bundle_id: bundle_id != "gone")
    assert decision.target == target
    assert why in decision.reason


def test_people_may_keep_the_switch_to_themselves() -> None:
    limits = LIMITS.model_copy(update={"automatic_rollback": False})
    decision = decide(A_B_C, BAD, 40 * HOUR_MS, limits, lambda _: True)
    assert decision.target is None
    assert "automatic_rollback is off" in decision.reason
    assert decide(A_B_C, replace(BAD, guardrails=()), 40 * HOUR_MS, LIMITS, lambda _: True).target is None


def test_limits_are_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "monitor.toml"
    assert MonitorLimits.read(file) == MonitorLimits()
    file.write_text("max_click_drop = 0.2\n")
    assert MonitorLimits.read(file).max_click_drop == 0.2
    file.write_text("max_clik_drop = 0.2\n")
    with pytest.raises(RefusalError, match="unknown key max_clik_drop; allowed: window_h"):
        MonitorLimits.read(file)
