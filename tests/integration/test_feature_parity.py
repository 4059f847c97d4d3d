"""Served feature values against recomputation: hand-made slates, right ones by the oracle and wrong ones planted."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from batch.feature_parity import ParityRun, is_recent, main, run_parity, store
from batch.lake import TABLES
from batch.served_rows import SNAPSHOT_MS, sample_rows
from features import specs
from features.slates import SlateItem, SlateRecord
from features.specs import Entity, features_of
from models.parity_gate import parity_gate
from models.ranker_inputs import CANDIDATE_FEATURES, USER_FEATURES
from tests.logged_slates import (
    DAY_MS,
    HOUR_MS,
    LAKE_END_MS,
    NOON_MS,
    SNAPSHOT_AT_MS,
    USER_MS,
    Row,
    event,
    quiet_events,
    slate,
    truth,
    write_lake,
)


def by_feature(report: Mapping[str, Any]) -> dict[str, Row]:
    return {found["feature"]: found for found in report["features"]}


CASES: dict[int, set[str]] = {
    1_000: {"user", "user_category", "item", "creator", "category"},
    1_001: {"item", "creator", "category"},
    30_000: {"category"},
    62_500: set(),
}
"""How long before the user was read a click came that the service had not seen, and which rows stand apart for it."""
PLANTED = {str(entity): features_of(entity)[0].name for entity in Entity}
EARLIER_MS = SNAPSHOT_AT_MS - SNAPSHOT_MS
FACTS = quiet_events()
CLICKS = [event(70 + n, "click", f"i-{ms}", USER_MS - ms, f"u-{ms}", 0) for n, ms in enumerate(CASES)]


def all_slates() -> list[SlateRecord]:
    """One slate a case, so that one run of Spark judges all."""
    events = [*FACTS, *CLICKS]
    return [
        slate(events, "right"),
        slate(events, "right-of-another", user_id="u2"),
        slate(events, "finalised-a-minute-ago", items_ms=EARLIER_MS),
        slate(events, "finalised-too-long-ago", items_ms=NOON_MS - 4 * HOUR_MS),
        *(slate(events, entity, wrong={name: 7_777.0}) for entity, name in PLANTED.items()),
        slate(events, "no-store", wrong={PLANTED["user"]: 1.0}, degraded=("hydrate: the store failed",)),
        *(slate(events, f"blind-{ms}", user_id=f"u-{ms}", item_ids=[f"i-{ms}"], known=FACTS) for ms in CASES),
        replace(slate(events, "not-scored"), user_features={}),
        replace(slate(events, "later"), served_at_ms=LAKE_END_MS + DAY_MS),
        replace(slate(events, "of-other-definitions", wrong={PLANTED["item"]: 7_777.0}), spec_version="00000000"),
    ]


@pytest.fixture(scope="module")
def judged(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The report on all cases, and the lake."""
    lake = write_lake(tmp_path_factory.mktemp("parity") / "lake", [*FACTS, *CLICKS], all_slates())
    return run_parity(spark, ParityRun(lake=lake, now_ms=LAKE_END_MS)), lake


def test_slates_and_rows_are_accounted_for(judged: tuple[dict[str, Any], Path]) -> None:
    report, _ = judged
    assert report["slates"] == {"read": 15, "not_scored": 1, "version_1": 0, "sampled_out": 0, "other_features": 1}
    assert report["rows"]["user"] == {"settled": 12, "unsettled": 1, "degraded": 1, "waiting": 0}
    for entity, states in report["rows"].items():
        items = 1 if entity == "user" else 3
        assert sum(states.values()) == 10 * items + len(CASES), entity


def test_each_planted_value_is_found_and_no_right_one_is_blamed(judged: tuple[dict[str, Any], Path]) -> None:
    at_both = [truth(FACTS, Entity.ITEM, {"item_id": "i1"}, at_ms) for at_ms in (EARLIER_MS, SNAPSHOT_AT_MS)]
    assert at_both[0] != at_both[1], "the event of a day ago leaves its windows between the two instants"
    found = by_feature(judged[0])
    for entity, name in PLANTED.items():
        worst = found[name]["examples"][0]
        assert (worst["request_id"], worst["served"]) == (entity, 7_777.0)
        assert "user_id" not in worst, "an erasure does not search reports"
        assert found[name]["worst_difference"] == 7_777.0 - max(worst["recomputed"], worst["recomputed_earlier"])
        assert found[name]["share"] == found[name]["mismatches"] / found[name]["rows"]
    blamed = {example["request_id"] for each in found.values() for example in each["examples"]}
    missed = {f"blind-{ms}" for ms, apart in CASES.items() if apart != set(map(str, Entity))}
    assert blamed == {*PLANTED, "finalised-too-long-ago"} | missed


def test_rows_with_an_arrival_shortly_before_stand_apart(judged: tuple[dict[str, Any], Path]) -> None:
    """A service that had not seen the last click is not blamed; one that missed an older one is."""
    report, _ = judged
    for entity in map(str, Entity):
        apart = [ms for ms, entities in CASES.items() if entity in entities]
        assert report["rows"][entity]["unsettled"] == len(apart), entity
        clicks = [each for each in report["features"] if each["entity"] == entity and "_clicks_24h" in each["feature"]]
        assert [each["unsettled_mismatches"] for each in clicks] == [len(apart)], entity


def test_the_table_holds_each_run_once(judged: tuple[dict[str, Any], Path]) -> None:
    report, lake = judged

    def rows() -> list[Row]:
        return DeltaTable(str(lake / TABLES.feature_parity)).to_pyarrow_table().to_pylist()

    assert {row["feature"]: row["mismatches"] for row in rows()} == {
        name: each["mismatches"] for name, each in by_feature(report).items()
    }
    store(lake, LAKE_END_MS, report["features"][:3])
    assert len(rows()) == 3, "a run at the same instant takes the other's place"
    store(lake, LAKE_END_MS + 1, report["features"])
    assert len(rows()) == 3 + len(report["features"])


@pytest.mark.usefixtures("spark")
def test_version_1_has_the_items_side_only(tmp_path: Path) -> None:
    item = SlateItem(
        item_id="i1",
        position=0,
        score=0.0,
        propensity=1.0,
        sources=(),
        probabilities={},
        features=dict.fromkeys(CANDIDATE_FEATURES, 0.0),
    )
    old = replace(
        slate(quiet_events(), "old"),
        evidence=None,
        schema_version=1,
        items=(item,),
        user_features=dict.fromkeys(USER_FEATURES, 0.0),
    )
    other = replace(old, request_id="other", items=(replace(item, features={"item_ctr_1h": 0.0}),))
    lake = write_lake(tmp_path, [], [old, other])
    sample = sample_rows(lake, 0, LAKE_END_MS, 10)
    assert {entity: len(rows) for entity, rows in sample.rows.items()} == {**dict.fromkeys(Entity, 0), Entity.ITEM: 1}
    assert sample.slates == {"read": 1, "version_1": 1, "not_scored": 0, "sampled_out": 0, "unreadable": 1}


@pytest.mark.usefixtures("spark")
def test_the_sample_is_the_same_whenever_it_is_asked_for(tmp_path: Path) -> None:
    plain = slate(quiet_events(), "r", item_ids=["i1"])
    slates = [replace(plain, request_id=f"r{n}") for n in range(9)]
    lake = write_lake(tmp_path, [], slates)
    chosen = [{row.request_id for row in sample_rows(lake, 0, LAKE_END_MS, 4).rows[Entity.USER]} for _ in range(2)]
    assert len(chosen[0]) == 4
    assert chosen[0] == chosen[1]
    assert sample_rows(lake, 0, LAKE_END_MS, 4).slates["sampled_out"] == 5
    assert not sample_rows(lake, USER_MS + 6, LAKE_END_MS, 4).rows[Entity.USER], "served before the window"
    assert not sample_rows(tmp_path / "none", 0, LAKE_END_MS, 4).rows[Entity.USER]


def test_nothing_is_done_while_the_last_report_is_young(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    assert not is_recent(report, LAKE_END_MS, 60)
    report.write_text(json.dumps({"run_ms": LAKE_END_MS}))
    assert is_recent(report, LAKE_END_MS + HOUR_MS - 1, 60)
    assert not is_recent(report, LAKE_END_MS + HOUR_MS, 60)
    assert not is_recent(report, LAKE_END_MS - 1, 60), "a report of the future says nothing"
    flags = ["--lake", str(tmp_path / "none"), "--parity-report", str(report), "--now-ms", str(LAKE_END_MS)]
    assert main([*flags, "--every-min", "60"]) == 0
    report.write_text("broken")
    assert not is_recent(report, LAKE_END_MS, 60)


def _report(tmp_path: Path, rows: int = 100, mismatches: int = 0, **other: object) -> Path:
    path = tmp_path / "report.json"
    right = {"feature": "item_ctr_1h", "rows": 1_000, "mismatches": 1, "share": 0.001}
    judged = {
        "feature": "user_clicks_1h",
        "rows": rows,
        "mismatches": mismatches,
        "share": mismatches / rows if rows else None,
    }
    record = {"run_ms": LAKE_END_MS, "spec_version": specs.version(), "features": [judged, right], **other}
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("rows", "mismatches", "later_h", "passed", "said"),
    [
        (100, 1, 0, True, "2 of 2 features"),
        (100, 2, 0, False, "user_clicks_1h 2 of 100; allowed: a share of 0.01"),
        (49, 49, 0, True, "1 of 2 features have the 50 rows"),
        (0, 0, 0, True, "1 of 2 features"),
        (100, 0, 48, True, "2 of 2"),
        (100, 0, 49, False, "the report is 49 h old, allowed: 48; run the DAG feature_parity"),
    ],
)
def test_the_gate_names_the_feature(
    tmp_path: Path, rows: int, mismatches: int, later_h: int, passed: bool, said: str
) -> None:
    gate = parity_gate(_report(tmp_path, rows, mismatches), LAKE_END_MS + later_h * HOUR_MS)
    assert (gate.gate, gate.passed) == ("feature_parity", passed)
    assert said in gate.detail
    assert "item_ctr_1h" not in gate.detail


def test_the_gate_without_a_report_of_these_features(tmp_path: Path) -> None:
    for absent in (None, tmp_path / "none.json"):
        gate = parity_gate(absent, LAKE_END_MS)
        assert gate.passed
        assert "has not run yet" in gate.detail
    other = parity_gate(_report(tmp_path, 100, 100, spec_version="00000000"), LAKE_END_MS)
    assert other.passed
    assert "not judged: the report is of features 00000000" in other.detail
    (tmp_path / "report.json").write_text("{")
    broken = parity_gate(tmp_path / "report.json", LAKE_END_MS)
    assert not broken.passed
    assert "cannot be read" in broken.detail
