"""Training examples of a mixed day: served values where the slate logged them, the oracle's recomputed ones elsewhere.

Every slate says 7,777 in the planted features, so that a served value cannot be mistaken for a recomputed one.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from batch.lake import TABLES
from batch.served_examples import MAX_OPEN_MS, Because, Source
from batch.training_examples import ExampleRun, main, run_examples
from features.packed import pack
from features.quarantine import Failure, Judgement, QuarantineError, register
from features.slates import SlateRecord
from features.specs import WINDOWED_FEATURES, Entity, features_of
from features.tiles import ITEM_TILES
from models.examples import example_batches, example_dataset
from models.leakage import checked_histories
from tests.logged_slates import (
    DAY_MS,
    HOUR_MS,
    LAKE_END_MS,
    NOON_MS,
    USER_MS,
    Row,
    event,
    ids_of,
    quiet_events,
    slate,
    truth,
    utc_date,
    write_lake,
)

PLANTED = {features_of(entity)[0].name: 7_777.0 for entity in Entity}
SHOWN_MS = USER_MS + 90_000
"""When the slates' items were seen; in between, the user clicked, which only a value of this instant knows."""
SERVED_MS = USER_MS + 5
HISTORY = [("i3", "like", NOON_MS - HOUR_MS), ("i1", "watch", NOON_MS - 2 * HOUR_MS)]
BETWEEN = event(80, "click", "i1", USER_MS + 30_000)
FACTS = [*quiet_events(), event(90, "impression", "i2", NOON_MS - DAY_MS), BETWEEN]
REASONS: dict[str, Because | None] = {
    "served": None,
    "served-too": None,
    "no-slate": Because.NO_SLATE,
    "of-another-user": Because.NO_SLATE,
    "left-open": Because.NO_SLATE,
    "of-other-definitions": Because.OTHER_FEATURES,
    "before-versions": Because.OTHER_FEATURES,
    "not-scored": Because.NOT_SCORED,
    "no-store": Because.DEGRADED,
    "no-snapshot": Because.DEGRADED,
    "without-the-item": Because.NOT_LOGGED,
    "unreadable": Because.UNREADABLE,
}
"""Why the impressions of each request are recomputed; None: they are not."""
AT_SLATE = {name for name, reason in REASONS.items() if reason not in (None, Because.NO_SLATE)}


def slates() -> list[SlateRecord]:
    def logged(request_id: str, **changed: Any) -> SlateRecord:
        return slate(FACTS, request_id, wrong=PLANTED, **{"history": HISTORY, **changed})

    first = logged("served")
    evidence = first.evidence
    assert evidence is not None
    return [
        first,
        logged("served-too", user_id="u2", item_ids=["i2"], history=[]),
        logged("of-another-user", user_id="u2"),
        replace(logged("left-open"), served_at_ms=SHOWN_MS - MAX_OPEN_MS - 1),
        replace(logged("of-other-definitions"), spec_version="00000000"),
        replace(logged("before-versions"), spec_version=""),
        replace(
            logged("not-scored"),
            user_features={},
            evidence=replace(evidence, candidate_features=(), arrays=pack({})),
        ),
        logged("no-store", degraded=("hydrate: the store failed",)),
        logged("no-snapshot", degraded=("score: item features are 90 s old",)),
        logged("without-the-item", item_ids=["i2"]),
        replace(logged("unreadable"), evidence=replace(evidence, arrays="broken")),
    ]


def impressions() -> list[Row]:
    """One of i1 for each request, one of each item for `served`; each a millisecond after the other."""
    shown = [*((name, "i1") for name in REASONS if name != "served-too"), ("served-too", "i2")]
    shown += [("served", "i2"), ("served", "i3")]
    users = {"served-too": "u2"}
    return [
        {
            **event(100 + n, "impression", item_id, SHOWN_MS + n, users.get(request_id, "u1")),
            "request_id": request_id,
            "position": n,
        }
        for n, (request_id, item_id) in enumerate(shown)
    ]


SHOWN = impressions()
EVENTS = [*FACTS, *SHOWN]
NAMES = [feature.name for feature in WINDOWED_FEATURES]
HISTORIES = ("history_item_ids", "history_event_types", "history_event_times_ms")


@pytest.fixture(scope="module")
def lake(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert spark
    return write_lake(tmp_path_factory.mktemp("served") / "lake", EVENTS, slates())


@pytest.fixture(scope="module")
def run(lake: Path) -> ExampleRun:
    return ExampleRun(lake=lake, now_ms=LAKE_END_MS, comparison=lake.parent / "comparison.json")


@pytest.fixture(scope="module")
def report(spark: SparkSession, run: ExampleRun) -> dict[str, Any]:
    return run_examples(spark, run)


def rows_of(lake: Path) -> list[Row]:
    table = DeltaTable(str(lake / TABLES.examples)).to_pyarrow_table().to_pylist()
    return sorted(table, key=lambda row: row["event_id"])


@pytest.fixture(scope="module")
def examples(lake: Path, report: dict[str, Any]) -> list[Row]:
    """The examples of the requests above, by event id."""
    assert report
    return [row for row in rows_of(lake) if row["request_id"] in REASONS]


def recomputed(row: Row, instant_ms: int) -> dict[str, float]:
    category, creator_id = ids_of(row["item_id"])
    key = {"user_id": row["user_id"], "item_id": row["item_id"], "category": category, "creator_id": creator_id}
    return {name: value for entity in Entity for name, value in truth(EVENTS, entity, key, instant_ms).items()}


def history(row: Row, instant_ms: int) -> list[tuple[str, str, int]]:
    seen = [
        each
        for each in EVENTS
        if each["user_id"] == row["user_id"] and each["arrival_ms"] < instant_ms and each["event_type"] != "impression"
    ]
    seen.sort(key=lambda each: (each["event_time_ms"], each["event_id"]), reverse=True)
    return [(each["item_id"], each["event_type"], each["event_time_ms"]) for each in seen]


def test_each_example_says_where_its_features_come_from(
    lake: Path, report: dict[str, Any], examples: list[Row]
) -> None:
    assert len(examples) == len(SHOWN)
    for row in examples:
        reason = REASONS[row["request_id"]]
        told = (row["feature_source"], row["recomputed_because"])
        assert told == ((Source.SERVED, None) if reason is None else (Source.RECOMPUTED, reason)), row["request_id"]
    every = rows_of(lake)
    assert report["feature_sources"] == {"served": 4, "recomputed": len(every) - 4}
    assert sum(report["recomputed_because"].values()) == len(every) - 4
    assert report["recomputed_because"]["degraded"] == 2
    assert report["sources"][TABLES.slates] == DeltaTable(str(lake / TABLES.slates)).version()


def test_served_values_win_where_the_slate_logged_them(examples: list[Row]) -> None:
    served = [row for row in examples if row["feature_source"] == Source.SERVED]
    assert [(row["request_id"], row["item_id"]) for row in served] == [
        ("served", "i1"),
        ("served-too", "i2"),
        ("served", "i2"),
        ("served", "i3"),
    ]
    for row in served:
        told = slate(FACTS, "again", user_id=row["user_id"], item_ids=[row["item_id"]], wrong=PLANTED)
        logged = {**told.user_features, **told.item_features(0)}
        assert {name: row[name] for name in NAMES} == logged
        assert all(row[name] == value for name, value in PLANTED.items())
        assert row["feature_ms"] == USER_MS < row["t_ms"]
        found = list(zip(*(row[name] for name in HISTORIES), strict=True))
        assert found == (HISTORY if row["request_id"] == "served" else [])


def test_the_others_are_recomputed_as_of_their_slate_or_their_own_instant(examples: list[Row]) -> None:
    others = [row for row in examples if row["feature_source"] == Source.RECOMPUTED]
    assert {row["request_id"] for row in others} >= AT_SLATE
    for row in others:
        instant_ms = SERVED_MS if row["request_id"] in AT_SLATE else row["t_ms"]
        assert row["feature_ms"] == instant_ms, row["request_id"]
        wanted = recomputed(row, instant_ms)
        assert {name: pytest.approx(row[name]) for name in NAMES} == wanted, row["request_id"]
        assert list(zip(*(row[name] for name in HISTORIES), strict=True)) == history(row, instant_ms)
    clicks = {row["request_id"]: row["user_clicks_24h"] for row in others if row["user_id"] == "u1"}
    assert clicks["no-slate"] == clicks["before-versions"] + 1, "the click between is known at the later instant alone"


def test_the_comparison_finds_what_was_planted(report: dict[str, Any], run: ExampleRun, lake: Path) -> None:
    assert run.comparison is not None
    text = run.comparison.read_text()
    full, short = json.loads(text), report["comparison"]
    assert "user_id" not in text, "an erasure does not search reports"
    assert full["run_ms"] == LAKE_END_MS
    assert {name: full[name] for name in short} == short
    read = {"other_features": 1, "unreadable": 1, "not_scored": 1}
    assert {name: full["slates"][name] for name in read} == read
    wrong = {each["feature"] for each in full["features"] if each["mismatches"]}
    assert wrong == set(PLANTED)
    assert {each["feature"] for each in short["worst"]} == set(PLANTED)
    values = sum(each["rows"] for each in full["features"])
    mismatches = sum(each["mismatches"] for each in full["features"])
    assert (short["values"], short["equal_share"]) == (values, 1 - mismatches / values)
    assert not DeltaTable.is_deltatable(str(lake / TABLES.feature_parity)), "the hourly comparison's table is its own"


def test_the_ranker_reads_them(lake: Path, examples: list[Row]) -> None:
    dataset, _ = example_dataset(lake)
    batches = list(checked_histories(example_batches(dataset)))
    assert sum(batch.num_rows for batch in batches) >= len(examples)


def test_a_rerun_changes_nothing_and_a_forced_one_takes_no_served_value(
    spark: SparkSession, lake: Path, run: ExampleRun, report: dict[str, Any]
) -> None:
    before, quick = rows_of(lake), replace(run, compare_slates=0)
    day = utc_date(NOON_MS)
    forced = run_examples(spark, replace(quick, from_date=day, to_date=day, features=Source.RECOMPUTED))
    assert forced["feature_sources"] == {"recomputed": sum(row["event_date"] == day for row in before)}
    assert forced["recomputed_because"]["forced"] == 9
    assert forced["comparison"] is None
    for row, was in zip(rows_of(lake), before, strict=True):
        if was["feature_source"] == Source.SERVED:
            assert (row["recomputed_because"], row["feature_ms"]) == (Because.FORCED, SERVED_MS)
            assert {name: pytest.approx(row[name]) for name in NAMES} == recomputed(row, SERVED_MS)
        elif was["event_date"] == day and was["recomputed_because"] not in (Because.NO_SLATE, Because.OTHER_FEATURES):
            assert {**row, "recomputed_because": ""} == {**was, "recomputed_because": ""}
        else:
            assert row == was

    again = run_examples(spark, quick)
    assert rows_of(lake) == before
    changed = {"version": 0, "comparison": None}
    assert {**again, **changed} == {**report, **changed}


def test_a_day_of_a_table_from_before_there_were_sources(spark: SparkSession, lake: Path, run: ExampleRun) -> None:
    """The other days have null; the slates of a lake that has not been read since have no version."""
    older = lake.parent / "older"
    write_lake(older, EVENTS, slates())
    new = ("feature_ms", "feature_source", "recomputed_because")
    without = spark.read.format("delta").load(str(lake / TABLES.examples)).drop(*new)
    without.write.format("delta").partitionBy("event_date").save(str(older / TABLES.examples))
    unversioned = spark.read.format("delta").load(str(older / TABLES.slates)).drop("spec_version")
    unversioned.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(
        str(older / TABLES.slates)
    )
    day = utc_date(NOON_MS)
    found = run_examples(spark, replace(run, lake=older, from_date=day, to_date=day, compare_slates=0))
    assert found["feature_sources"] == {"recomputed": sum(row["event_date"] == day for row in rows_of(older))}
    assert "forced" not in found["recomputed_because"]
    assert {row["feature_source"] for row in rows_of(older) if row["event_date"] != day} == {None}


def test_slates_in_quarantine_stop_the_run(spark: SparkSession, tmp_path: Path) -> None:
    lake = write_lake(tmp_path, EVENTS, [])
    failure = Failure(partition="2025-10-09", expectation="e", column="c", observed="o")
    register(lake, Judgement(suite="slates", table_version=0, judged_at_ms=NOON_MS, partitions=(), failures=[failure]))
    with pytest.raises(QuarantineError, match=TABLES.slates):
        run_examples(spark, ExampleRun(lake=lake, now_ms=LAKE_END_MS))


@pytest.mark.parametrize("flags", [["--features", "guessed"], ["--compare-slates", "-1"]])
def test_bad_flags_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--lake", "none", *flags])
    assert stopped.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_the_instants_differ() -> None:
    """What the tests above rest on: the values at the slate, at the impression and of the snapshot are not the same."""
    row = {"user_id": "u1", "item_id": "i1"}
    slate_at, shown_at = recomputed(row, SERVED_MS), recomputed(row, SHOWN_MS)
    of_items = {feature.name for entity in ITEM_TILES.entities for feature in features_of(entity)}
    differing = {name for name in NAMES if slate_at[name] != shown_at[name]}
    assert differing & of_items and differing - of_items
    assert SHOWN_MS - MAX_OPEN_MS < SERVED_MS and np.isclose(DAY_MS, MAX_OPEN_MS)
