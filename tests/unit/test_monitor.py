"""The monitor on made-up slates, events and examples: each thing broken in turn gives exactly its alert."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from features.names import LakeTables
from features.specs import WINDOWED_FEATURES
from models.automatic_rollback import decide
from models.champions import Champions, Switch
from models.drift import population_stability
from models.examples import LABELS
from models.guardrails import Comparison, Guardrail
from models.metrics.bootstrap import Interval
from models.monitor import Monitor, watch
from models.monitor_alerts import MonitorError, judge
from models.monitor_limits import MonitorLimits
from models.refusal import RefusalError
from models.workspace import atomic_json

HOUR_MS = 3_600_000
NOW_MS = 1_760_000_000_000
PROMOTED_MS = NOW_MS - 30 * HOUR_MS
NEW, OLD = "bundle-new", "bundle-old"
USERS, ITEMS, SLOTS = 80, 60, 4
TABLES = LakeTables()
LIMITS = MonitorLimits(min_rows=200)

ITEM = pa.struct(
    [
        ("item_id", pa.string()),
        ("position", pa.int32()),
        ("score", pa.float64()),
        ("sources", pa.list_(pa.string())),
        ("probabilities", pa.map_(pa.string(), pa.float64())),
    ]
)
SLATES = pa.schema(
    [
        ("request_id", pa.string()),
        ("user_id", pa.string()),
        ("served_at_ms", pa.int64()),
        ("bundle_id", pa.string()),
        ("arm", pa.string()),
        ("newest_event_ms", pa.int64()),
        ("items", pa.list_(ITEM)),
    ]
)


class World:
    """What was served and done in three days; `now_…` says what the last day is like."""

    def __init__(self) -> None:
        self.click_rate = {OLD: 0.3, NEW: 0.3}
        self.hide_rate = {OLD: 0.05, NEW: 0.05}
        self.items = {OLD: ITEMS, NEW: ITEMS}
        self.now_score = 0.0
        self.now_probability = 0.3
        self.now_behind_ms = 0
        self.now_sources: tuple[str, ...] = ("als", "popular")
        self.now_feature = 0.0
        self.now_label = 0.3

    def write(self, lake: Path) -> Path:
        rng = np.random.default_rng(4)
        slates: list[dict[str, Any]] = []
        events: list[dict[str, Any]] = []
        for n in range(900):
            at_ms = NOW_MS - 72 * HOUR_MS + n * (72 * HOUR_MS // 900)
            slate = self._slate(rng, n, at_ms)
            slates.append(slate)
            events += self._reactions(rng, slate)
        write_deltalake(lake / TABLES.slates, pa.Table.from_pylist(slates, SLATES))
        write_deltalake(lake / TABLES.silver_events, pa.Table.from_pylist(events))
        write_deltalake(lake / TABLES.examples, self._examples(rng))
        return lake

    def _slate(self, rng: np.random.Generator, n: int, at_ms: int) -> dict[str, Any]:
        bundle, today = (NEW if at_ms >= PROMOTED_MS else OLD), at_ms >= NOW_MS - 24 * HOUR_MS
        sources = self.now_sources if today else ("als", "popular")
        items = [
            {
                "item_id": f"i{rng.integers(self.items[bundle])}",
                "position": position,
                "score": float(rng.normal(self.now_score if today else 0.0)),
                "sources": [str(rng.choice(sources))],
                "probabilities": {"click": self.now_probability if today else 0.3},
            }
            for position in range(SLOTS)
        ]
        behind_ms = self.now_behind_ms if today else 0
        return {
            "request_id": f"r{n}",
            "user_id": f"u{n % USERS}",
            "served_at_ms": at_ms,
            "bundle_id": bundle,
            "arm": "millrace",
            "newest_event_ms": at_ms - 60_000 - behind_ms,
            "items": items,
        }

    def _reactions(self, rng: np.random.Generator, slate: dict[str, Any]) -> list[dict[str, Any]]:
        bundle, user, at_ms = slate["bundle_id"], slate["user_id"], slate["served_at_ms"]
        rows = [{"request_id": "", "item_id": "i0", "event_type": "like", "event_time_ms": at_ms - 60_000}]
        for item in slate["items"]:
            happened = [("impression", 1.0), ("click", self.click_rate[bundle]), ("hide", self.hide_rate[bundle])]
            rows += [
                {
                    "request_id": slate["request_id"],
                    "item_id": item["item_id"],
                    "event_type": kind,
                    "event_time_ms": at_ms + 1_000,
                }
                for kind, chance in happened
                if rng.random() < chance
            ]
        return [{**row, "user_id": user, "arrival_ms": row["event_time_ms"] + 20} for row in rows]

    def _examples(self, rng: np.random.Generator) -> pa.Table:
        rows = 2_000
        t_ms = NOW_MS - 72 * HOUR_MS + np.arange(rows) * (72 * HOUR_MS // rows)
        today = t_ms >= NOW_MS - 24 * HOUR_MS
        columns: dict[str, Any] = {"user_id": [f"u{n % USERS}" for n in range(rows)], "t_ms": t_ms}
        columns |= {feature.name: rng.poisson(2.0, rows).astype(float) for feature in WINDOWED_FEATURES}
        columns["item_clicks_1h"] += np.where(today, self.now_feature, 0.0)
        columns |= {label: (rng.random(rows) < 0.3).astype(float) for label in LABELS}
        columns["label_like"] = (rng.random(rows) < np.where(today, self.now_label, 0.3)).astype(float)
        return pa.table(columns)


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
    report = run(tmp_path, World())
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
    world, (changes, alert) = World(), BROKEN[what]
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
    assert population_stability(reference, now) == pytest.approx(by_hand)
    assert population_stability(now, reference) == pytest.approx(by_hand), "it is symmetric"
    assert population_stability(reference, reference) == 0
    assert population_stability(reference, reference + 9) > 5, "what never was is not ignored"
    rng = np.random.default_rng(1)
    assert population_stability(rng.normal(size=5_000), rng.normal(size=5_000)) < 0.05
    assert np.isnan(population_stability(np.empty(0), now))


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
