"""Served feature values against recomputation: hand-made slates, right ones by the oracle and wrong ones planted."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyspark.sql import SparkSession

from batch.feature_parity import ParityRun, is_recent, main, run_parity, store
from batch.lake import INGESTED, TABLES, create_tables
from batch.served_rows import SNAPSHOT_MS, sample_rows
from features import specs
from features.packed import PackedArray, pack
from features.slates import SlateEvidence, SlateItem, SlateRecord
from features.specs import KEY_FIELDS, Entity, features_of
from features.tiles import ITEM_TILES
from models.parity_gate import parity_gate
from models.ranker_inputs import CANDIDATE_FEATURES, USER_FEATURES
from tests.oracles.windows import Event, window_value

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
NOON_MS = 1_760_000_000_000 // DAY_MS * DAY_MS + 12 * HOUR_MS
"""The start of a tile of five minutes."""
USER_MS, SNAPSHOT_AT_MS = NOON_MS + 40_100, NOON_MS + 40_000
"""Instants of the slates; the snapshot's minute before reaches over the tile's start."""
LAKE_END_MS = NOON_MS + HOUR_MS
ITEMS = {"i1": ("c1", "k1"), "i2": ("c2", "k2"), "i3": ("c2", "k1")}
Row = dict[str, Any]


def ids_of(item_id: str) -> tuple[str, str]:
    """Category and creator: of an item that is not in `ITEMS` its own."""
    return ITEMS.get(item_id, (f"c-{item_id}", f"k-{item_id}"))


def event(n: int, event_type: str, item_id: str, time_ms: int, user_id: str = "u1", delay_ms: int = 20) -> Row:
    category, creator_id = ids_of(item_id)
    watched = event_type == "watch"
    return {
        "event_id": f"e{n:03d}",
        "event_type": event_type,
        "event_time_ms": time_ms,
        "arrival_ms": time_ms + delay_ms,
        "user_id": user_id,
        "item_id": item_id,
        "category": category,
        "creator_id": creator_id,
        "watch_ms": 900 if watched else None,
        "duration_ms": 1_000 if watched else None,
    }


def quiet_events() -> list[Row]:
    """Events of both users on all items, none in the last minutes; one a day and five minutes before the snapshot, so
    that it leaves the windows of a day at the tile's start.
    """
    shown = [event(n, "impression", f"i{n % 3 + 1}", NOON_MS - n * 17 * MINUTE_MS - HOUR_MS) for n in range(30)]
    acted = [
        event(40 + n, kind, "i1", NOON_MS - (n + 1) * HOUR_MS) for n, kind in enumerate(("click", "watch", "like"))
    ]
    others = [
        event(50, "click", "i2", NOON_MS - 2 * HOUR_MS, "u2"),
        event(51, "hide", "i3", NOON_MS - 3 * DAY_MS, "u2"),
    ]
    leaving = [event(60, "click", item_id, NOON_MS - DAY_MS - 2 * MINUTE_MS) for item_id in ITEMS]
    last = event(99, "impression", "i9", LAKE_END_MS, "u9", 0)  # the lake is complete up to here
    return [*shown, *acted, *others, *leaving, last]


def truth(events: list[Row], entity: Entity, key: Mapping[str, str], instant_ms: int) -> dict[str, float]:
    """The oracle's values of what had arrived."""
    own = [
        e for e in events if e["arrival_ms"] < instant_ms and all(e[name] == key[name] for name in KEY_FIELDS[entity])
    ]
    names = ("user_id", "item_id", "category", "creator_id", "event_type", "event_time_ms")
    seen = [Event(*(e[name] for name in names), e["watch_ms"] or 0, e["duration_ms"] or 1) for e in own]
    return {feature.name: float(window_value(feature, seen, instant_ms)) for feature in features_of(entity)}


def slate(
    events: list[Row],
    request_id: str,
    *,
    user_id: str = "u1",
    items_ms: int = SNAPSHOT_AT_MS,
    wrong: Mapping[str, float] | None = None,
    known: list[Row] | None = None,
    item_ids: Iterable[str] = ("i1", "i2", "i3"),
    degraded: tuple[str, ...] = (),
) -> SlateRecord:
    """A slate of all items as a service would log it that knew the events (or only those `known`) at these instants;
    features in `wrong` have that value instead.
    """
    held, wrong = events if known is None else known, wrong or {}
    rows, items = [], []
    for position, item_id in enumerate(item_ids):
        category, creator_id = ids_of(item_id)
        key = {"user_id": user_id, "item_id": item_id, "category": category, "creator_id": creator_id}
        values: dict[str, float] = {}
        for entity in Entity:
            values |= truth(held, entity, key, items_ms if entity in ITEM_TILES.entities else USER_MS)
        rows.append([({**values, **wrong})[name] for name in CANDIDATE_FEATURES])
        items.append(
            SlateItem(
                item_id=item_id,
                position=position,
                score=1.0,
                propensity=1.0,
                sources=("popular",),
                probabilities={"click": 0.1},
                category=category,
                creator_id=creator_id,
            )
        )
    user = {**truth(held, Entity.USER, {"user_id": user_id}, USER_MS), **wrong}
    return SlateRecord(
        request_id=request_id,
        user_id=user_id,
        served_at_ms=USER_MS + 5,
        surface="home",
        bundle_id="bundle-a",
        arm="champion",
        degraded=degraded,
        snapshot_instant_ms=SNAPSHOT_AT_MS,
        newest_event_ms=None,
        user_features={name: float(np.float32(user[name])) for name in USER_FEATURES},
        items=tuple(items),
        candidates=(),
        evidence=evidence(np.array(rows, "<f4")),
    )


def evidence(values_CF: np.ndarray) -> SlateEvidence:
    order = np.arange(len(values_CF), dtype="<i4")
    arrays = {"row_S": order, "input_row_R": order, "candidate_CF": values_CF}
    return SlateEvidence(
        method="Recommend",
        query={},
        settings={},
        user={"instant_ms": USER_MS, "categories": []},
        catalogue=(),
        unscored=(),
        sources={},
        excluded_since={},
        candidates_retrieved=len(values_CF),
        stage_ms={},
        unknown_item_ids=(),
        next_page_token="",
        candidate_features=CANDIDATE_FEATURES,
        full_features=True,
        arrays=pack(
            {name: PackedArray(dtype=a.dtype.str, shape=a.shape, data=a.tobytes()) for name, a in arrays.items()}
        ),
    )


def write_lake(lake: Path, events: list[Row], slates: list[SlateRecord]) -> Path:
    """Events and slates where the ingest would leave them."""
    create_tables(lake, INGESTED)
    place = [{"topic": "t", "partition": 0, "offset": n} for n in range(max(len(events), len(slates)))]
    dated = [{**e, **at, "event_date": None} for e, at in zip(events, place, strict=False)]
    logged = [
        {
            "request_id": record.request_id,
            "user_id": record.user_id,
            "served_at_ms": record.served_at_ms,
            "value": record.to_json(),
            **at,
        }
        for record, at in zip(slates, place, strict=False)
    ]
    for table, rows in ((TABLES.silver_events, dated), (TABLES.bronze_events, dated), (TABLES.slates, logged)):
        schema = pa.schema(DeltaTable(str(lake / table)).schema().to_arrow())
        columns = [field.name for field in schema]
        filled = [{name: row.get(name) for name in columns} for row in rows]
        write_deltalake(str(lake / table), pa.Table.from_pylist(filled, schema), mode="append")
    return lake


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
    ]


@pytest.fixture(scope="module")
def judged(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The report on all cases, and the lake."""
    lake = write_lake(tmp_path_factory.mktemp("parity") / "lake", [*FACTS, *CLICKS], all_slates())
    return run_parity(spark, ParityRun(lake=lake, now_ms=LAKE_END_MS)), lake


def test_slates_and_rows_are_accounted_for(judged: tuple[dict[str, Any], Path]) -> None:
    report, _ = judged
    assert report["slates"] == {"read": 15, "not_scored": 1, "version_1": 0, "sampled_out": 0}
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
    plain = replace(slate(quiet_events(), "r"), items=())
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
