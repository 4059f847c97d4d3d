"""Each way of breaking the data shuts the right gate for the right partition; a repair opens it again.

One lake holds every breakage, each in a day of its own, so that a gate runs once for all of them.
"""

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from deltalake import DeltaTable, write_deltalake

from batch import quality
from batch.offline_features import OfflineRun, run_offline_features
from batch.training_examples import ExampleRun, run_examples
from features.daily import ACTIVITY_VIEWS, DAILY_VIEWS
from features.names import MS_PER_DAY, LakeTables, Topics
from features.quality import example_columns
from features.quarantine import ALL, QuarantineError, held_partitions, refuse_held
from features.specs import KEY_FIELDS, WINDOWED_FEATURES, features_of
from models.lake import LakeError, read_table

TABLES = LakeTables()
NOW_MS = 1_760_000_000_000
TODAY = datetime.date(2025, 10, 9)
DAYS = [TODAY - datetime.timedelta(days=n) for n in range(32, -1, -1)]
ROWS = 600
ITEMS = 20
LIMITS = """
[events]
min_day_rows = 50
max_distance = 0.5
[[events.accepted_days]]
date = 2025-10-08
reason = "the app was closed"
[examples]
min_day_rows = 50
[features]
min_day_rows = 20
min_reference_days = 3
"""
Change = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class Break:
    """What is done to one day's rows, and who must notice."""

    name: str
    change: Change
    expectation: str
    column: str


def put(column: str, value: object, rows: slice = slice(0, 1)) -> Change:
    def change(day: pd.DataFrame) -> pd.DataFrame:
        day.loc[day.index[rows], column] = value
        return day

    return change


def many(day: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([day.assign(event_id=day["event_id"] + f"-{n}") for n in range(6)])


def start_ms(day: datetime.date) -> int:
    return (day - datetime.date(1970, 1, 1)).days * MS_PER_DAY


# The tables as they should be.


def events(day: datetime.date) -> pd.DataFrame:
    """240 impressions, 200 clicks, 80 watches, 80 likes."""
    kind = ["impression"] * 240 + ["click"] * 200 + ["watch"] * 80 + ["like"] * 80
    at_ms = [min(start_ms(day) + n * 140_000, NOW_MS - 1) for n in range(ROWS)]
    of = {name: [n for n, each in enumerate(kind) if each == name] for name in set(kind)}
    return pd.DataFrame(
        {
            "event_id": [f"{day}-{n}" for n in range(ROWS)],
            "event_type": kind,
            "event_time_ms": at_ms,
            "user_id": [f"u{n % 40}" for n in range(ROWS)],
            "item_id": [f"i{n % ITEMS}" for n in range(ROWS)],
            "category": "music",
            "creator_id": "c1",
            "request_id": [f"{day}-r{n}" if n in of["impression"] else None for n in range(ROWS)],
            "position": pd.array([n % 10 if n in of["impression"] else None for n in range(ROWS)], dtype="Int64"),
            "watch_ms": pd.array([1_000 * n if n in of["watch"] else None for n in range(ROWS)], dtype="Int64"),
            "duration_ms": pd.array([900_000 if n in of["watch"] else None for n in range(ROWS)], dtype="Int64"),
            "device": "phone",
            "schema_version": 1,
            "arrival_ms": at_ms,
            "event_date": day,
        }
    )


def examples(day: datetime.date) -> pd.DataFrame:
    shown = events(day).query("event_type == 'impression'").reset_index(drop=True)
    n = pd.Series(range(len(shown)))
    given = shown[["event_id", "request_id", "user_id", "item_id", "category", "creator_id", "device", "event_date"]]
    made = pd.DataFrame(
        {
            "language": "en",
            "t_ms": shown["event_time_ms"],
            "position": shown["position"].astype("int64"),
            "duration_ms": 900_000,
            "published_at_ms": 1,
            "label_click": n % 2,
            **dict.fromkeys(("label_like", "label_share", "label_hide"), 0),
            "label_completion": (n % 2).where(n % 3 > 0),
            "label_watch_fraction": (n % 5 / 5).where(n % 3 > 0),
            **{feature.name: feature.default for feature in WINDOWED_FEATURES},
        }
    )
    made["user_clicks_24h"] = (1 + n % 7).astype(float)
    return pd.concat([given, made], axis=1)[list(example_columns())]


def items() -> pd.DataFrame:
    ids = [f"i{n}" for n in range(ITEMS)]
    return pd.DataFrame(
        {"item_id": ids, "category": "music", "creator_id": "c1", "language": "en", "duration_ms": 900_000,
         "published_at_ms": 1, "available": True}
    )  # fmt: skip


def slates() -> pd.DataFrame:
    """What was served yesterday and two days ago: the impressions' own items."""
    shown = pd.concat([events(day).query("event_type == 'impression'") for day in DAYS[-3:-1]])
    return pd.DataFrame(
        {
            "request_id": shown["request_id"],
            "user_id": shown["user_id"],
            "served_at_ms": shown["event_time_ms"],
            "bundle_id": "b",
            "arm": "millrace",
            "snapshot_instant_ms": shown["event_time_ms"],
            "items": [
                [{"item_id": item, "position": 0, "score": 0.5, "propensity": 1.0}, filler()]
                for item in shown["item_id"]
            ],
        }
    ).reset_index(drop=True)


def filler(**changes: object) -> dict[str, object]:
    return {"item_id": "other", "position": 1, "score": 0.1, "propensity": 0.3, **changes}


def views(lake: Path, day: datetime.date, change: Callable[[str, pd.DataFrame], pd.DataFrame] | None = None) -> None:
    """A file of each offline view for the run date."""
    at = pd.Timestamp(min(start_ms(day + datetime.timedelta(days=1)), NOW_MS), unit="ms", tz="UTC")
    of = {
        ACTIVITY_VIEWS[entity]: (entity, {f.name: f.default for f in features_of(entity)}) for entity in ACTIVITY_VIEWS
    }
    of |= {v.name: (v.entity, {f.name: "" if f.dtype == "string" else 0.5 for f in v.features}) for v in DAILY_VIEWS}
    for view, (entity, values) in of.items():
        rows = pd.DataFrame({key: [f"{key}-{n}" for n in range(30)] for key in KEY_FIELDS[entity]})
        rows = pd.concat([rows, pd.DataFrame([values] * 30)], axis=1).assign(event_timestamp=at, created=at)
        path = lake / TABLES.offline_features / view / f"{day}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        (change(view, rows) if change else rows).to_parquet(path)


# The breakages.

VALUES = "expect_column_values_to_be_between"
NO_NULL = "expect_column_values_to_not_be_null"
IN_SET = "expect_column_values_to_be_in_set"
PATTERN = "expect_column_values_to_match_regex"
PAIRS = "expect_compound_columns_to_be_unique"
UNIQUE = "expect_column_values_to_be_unique"

EVENT_BREAKS = [
    Break("null", put("user_id", None), NO_NULL, "user_id"),
    Break("null where the type requires it", put("position", None), NO_NULL, "position"),
    Break("copies", lambda day: pd.concat([day, day.head(1)]), PAIRS, "user_id,event_id"),
    Break("unknown value", put("event_type", "dance"), IN_SET, "event_type"),
    Break("no identifier", put("category", "two words"), PATTERN, "category"),
    Break("out of range", put("watch_ms", 86_400_001), VALUES, "watch_ms"),
    Break("too late", lambda day: day.assign(arrival_ms=day["arrival_ms"] + 3 * MS_PER_DAY), VALUES, "delay_ms"),
    Break("a contract that readers do not know", put("schema_version", 100), VALUES, "schema_version"),
    Break("thin", lambda day: day.head(60), VALUES, "volume_ratio"),
    Break("missing partition", lambda day: day.head(0), VALUES, "volume_ratio"),
    Break("swollen", many, VALUES, "volume_ratio"),
    Break("a type vanishes", lambda day: day[day["event_type"] != "click"], VALUES, "class_ratio"),
    Break("another mix", put("event_type", "like", slice(0, 440)), VALUES, "class_distance"),
    Break("another unit", lambda d: d.assign(watch_ms=d["watch_ms"] // 1_000), VALUES, "distance_watch_ms"),
    Break("unknown items", put("item_id", "stranger", slice(0, 40)), VALUES, "unknown_share"),
    Break("dead letters", lambda day: day, VALUES, "dead_share"),
]  # fmt: skip
EXAMPLE_BREAKS = [
    Break("label", put("label_like", 2), IN_SET, "label_like"),
    Break("negative count", put("user_clicks_1h", -1.0), VALUES, "user_clicks_1h"),
    Break("rate above one", put("user_completion_rate_24h", 1.5), VALUES, "user_completion_rate_24h"),
    Break("null feature", put("item_ctr_1h", float("nan")), NO_NULL, "item_ctr_1h"),
    Break("copies", lambda day: pd.concat([day, day.head(1)]), UNIQUE, "event_id"),
    Break("missing partition", lambda day: day.head(0), VALUES, "completeness"),
    Break("part of a day", lambda day: day.head(100), VALUES, "completeness"),
    Break("a feature is not computed", lambda d: d.assign(user_clicks_24h=0.0), VALUES, "distance_user_clicks_24h"),
]  # fmt: skip
UNLIKE = Break("unlike its slate", put("item_id", "i1", slice(0, 10)), VALUES, "unlike_slate_share")
"""Of yesterday, whose slates were logged."""


def days_of(breaks: list[Break]) -> dict[str, datetime.date]:
    """A day for each breakage, with sound ones before it."""
    return {each.name: DAYS[8 + n] for n, each in enumerate(breaks)}


def broken_days(table: Callable[[datetime.date], pd.DataFrame], breaks: list[Break]) -> pd.DataFrame:
    changes = {day: each.change for each, day in zip(breaks, days_of(breaks).values(), strict=True)}
    return pd.concat([changes.get(day, lambda sound: sound)(table(day)) for day in DAYS], ignore_index=True)


def dead_letters(day: datetime.date) -> pd.DataFrame:
    return pd.DataFrame({"topic": Topics(version="").events, "arrival_ms": [start_ms(day) + n for n in range(60)]})


def write(lake: Path, name: str, rows: pd.DataFrame) -> None:
    by = ["event_date"] if "event_date" in rows else None
    write_deltalake(str(lake / name), rows, partition_by=by, mode="overwrite")


def gate(lake: Path, *flags: str) -> tuple[int, dict[str, dict[str, object]]]:
    """The command's exit code, and its report by suite."""
    report = lake.parent / "report.json"
    limits = lake.parent / "limits.toml"
    limits.write_text(LIMITS)
    asked = [f"--date={day}" for day in DAYS[8:]] if "--min-rows" not in " ".join(flags) else []
    code = quality.main(
        ["--lake", str(lake), "--now-ms", str(NOW_MS), "--report", str(report), "--limits", str(limits), *asked, *flags]
    )
    return code, {suite["suite"]: suite for suite in json.loads(report.read_text())["suites"]}


def found(report: dict[str, object]) -> set[tuple[str, str, str]]:
    return {(f["partition"], f["expectation"], f["column"]) for f in report["failures"]}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything is broken in it."""
    lake = tmp_path_factory.mktemp("quality") / "lake"
    future = events(TODAY + datetime.timedelta(days=10)).assign(
        arrival_ms=NOW_MS + 10 * MS_PER_DAY, event_time_ms=NOW_MS + 10 * MS_PER_DAY
    )
    write(lake, TABLES.silver_events, pd.concat([broken_days(events, EVENT_BREAKS), future.head(1)]))
    write(lake, TABLES.dead_letters, dead_letters(days_of(EVENT_BREAKS)["dead letters"]))
    write(lake, TABLES.items, items())
    write(lake, TABLES.slates, slates())
    return lake


@pytest.fixture(scope="module")
def judged_events(lake: Path) -> set[tuple[str, str, str]]:
    code, suites = gate(lake, "--suite=events")
    assert code == 1
    return found(suites["events"])


@pytest.mark.parametrize("each", EVENT_BREAKS, ids=lambda each: each.name)
def test_each_breakage_of_events_shuts_its_day(each: Break, judged_events: set[tuple[str, str, str]]) -> None:
    assert (str(days_of(EVENT_BREAKS)[each.name]), each.expectation, each.column) in judged_events


def test_only_what_is_broken_is_shut(judged_events: set[tuple[str, str, str]]) -> None:
    future = str(TODAY + datetime.timedelta(days=10))
    assert (future, VALUES, "arrival_ms") in judged_events
    assert {day for day, _, _ in judged_events} == {*map(str, days_of(EVENT_BREAKS).values()), future}


def test_a_repair_opens_the_gate_and_until_then_nobody_reads(
    lake: Path, judged_events: set[tuple[str, str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(held_partitions(lake, "events")) == {day for day, _, _ in judged_events}
    with pytest.raises(QuarantineError, match=r"silver/events is in quarantine \(2025-09-15: .*--suite events` again"):
        refuse_held(lake, [TABLES.silver_events])
    refuse_held(lake, [TABLES.items])
    # The jobs that read events refuse before they need a Spark session.
    with pytest.raises(QuarantineError):
        run_examples(None, ExampleRun(lake=lake, now_ms=NOW_MS))
    with pytest.raises(QuarantineError):
        run_offline_features(
            None, OfflineRun(lake=lake, bootstrap_servers="", topics=Topics(version=""), now_ms=NOW_MS)
        )
    with pytest.raises(LakeError, match="is in quarantine"):
        read_table(lake, TABLES.silver_events, ["user_id"])
    assert DeltaTable(str(lake / TABLES.silver_events)).count() > ROWS * (len(DAYS) - 10), "the rows stay"

    # The accepted day may be empty; its neighbours may not.
    sound = [events(day) for day in DAYS if day != datetime.date(2025, 10, 8)]
    write(lake, TABLES.silver_events, pd.concat(sound))
    write(lake, TABLES.dead_letters, dead_letters(TODAY).head(0))
    code, suites = gate(lake, "--suite=events")
    assert (code, suites["events"]["failures"]) == (0, [])
    assert suites["events"]["released"] == sorted({day for day, _, _ in judged_events})
    assert "events: out of quarantine: 2025-09-15, " in capsys.readouterr().err
    assert held_partitions(lake, "events") == {}
    refuse_held(lake, [TABLES.silver_events])


def test_a_first_day_is_judged_by_its_rows_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "lake", TABLES.silver_events, events(DAYS[-2]).head(100))
    write(tmp_path / "lake", TABLES.items, items())
    code, suites = gate(tmp_path / "lake", "--suite=events", "--min-rows=101", "--max-age-ms=1")
    assert code == 1
    whole = {("expect_table_row_count_to_be_between", ""), ("expect_column_max_to_be_between", "arrival_ms")}
    assert found(suites["events"]) == {(ALL, *each) for each in whole}
    said = capsys.readouterr().err
    assert "the gate events is closed for all: expect_column_max_to_be_between(arrival_ms), expect_table_row" in said
    assert f"Data Docs: file://{tmp_path}/data_docs/events/run-{NOW_MS}.html" in said
    pages = tmp_path / "data_docs" / "events"
    assert (pages / f"run-{NOW_MS}.html").read_text() == (pages / "index.html").read_text()
    assert len(list(pages.glob("validations/*/*/*/*.html"))) == 2


@pytest.fixture(scope="module")
def judged_examples(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str, str]]:
    lake = tmp_path_factory.mktemp("examples") / "lake"
    write(lake, TABLES.silver_events, pd.concat([events(day) for day in DAYS]))
    write(lake, TABLES.items, items())
    write(lake, TABLES.slates, slates())
    table = broken_days(examples, EXAMPLE_BREAKS).assign(label_click=0).drop(columns="user_clicks_7d")
    yesterday = table["event_date"] == DAYS[-2]
    table = pd.concat([table[~yesterday], UNLIKE.change(table[yesterday].reset_index(drop=True))])
    write(lake, TABLES.examples, table)
    code, suites = gate(lake, "--suite=examples")
    assert code == 1
    return found(suites["examples"])


@pytest.mark.parametrize("each", [*EXAMPLE_BREAKS, UNLIKE], ids=lambda each: each.name)
def test_each_breakage_of_examples_shuts_its_day(each: Break, judged_examples: set[tuple[str, str, str]]) -> None:
    day = {**days_of(EXAMPLE_BREAKS), UNLIKE.name: DAYS[-2]}[each.name]
    assert (str(day), each.expectation, each.column) in judged_examples


def test_a_constant_label_and_an_absent_column_shut_all(
    judged_examples: set[tuple[str, str, str]],
) -> None:
    of_all = {(expectation, column) for day, expectation, column in judged_examples if day == ALL}
    assert of_all == {
        ("expect_column_unique_value_count_to_be_between", "label_click"),
        (NO_NULL, "user_clicks_7d"),
        (VALUES, "user_clicks_7d"),
    }


def test_only_broken_examples_are_shut(judged_examples: set[tuple[str, str, str]]) -> None:
    days = {day for day, _, _ in judged_examples if day != ALL}
    assert days == {*map(str, days_of(EXAMPLE_BREAKS).values()), str(DAYS[-2])}


def test_items_and_slates(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    bad = items()
    bad.loc[0, "item_id"], bad.loc[1, "duration_ms"], bad.loc[2, "category"] = "i5", 0, None
    write(lake, TABLES.items, bad)
    served = slates()
    served.loc[0, "request_id"] = served.loc[1, "request_id"]
    served.loc[2, "served_at_ms"] = NOW_MS + MS_PER_DAY
    served.loc[3, "bundle_id"] = None
    for row, change in enumerate(({"propensity": 0.0}, {"position": 0}, {"item_id": "two words"}), start=4):
        served.at[row, "items"] = [*served.at[row, "items"][:1], filler(**change)]
    write(lake, TABLES.slates, served)
    code, suites = gate(lake, "--suite=items", "--suite=slates")
    assert code == 1
    assert found(suites["items"]) == {
        (ALL, UNIQUE, "item_id"), (ALL, VALUES, "duration_ms"), (ALL, NO_NULL, "category")
    }  # fmt: skip
    day, ahead = str(DAYS[-3]), str(TODAY + datetime.timedelta(days=1))
    assert found(suites["slates"]) == {
        (day, UNIQUE, "request_id"), (ahead, VALUES, "served_at_ms"), (day, NO_NULL, "bundle_id"),
        (day, PAIRS, "request_id,item_id"), (day, PAIRS, "request_id,position"), (day, VALUES, "propensity"),
        (day, PATTERN, "item_id"),
    }  # fmt: skip


def test_offline_features(tmp_path: Path) -> None:
    lake = tmp_path / "lake"

    def spoil(view: str, rows: pd.DataFrame) -> pd.DataFrame:
        if view == "user_activity":
            rows.loc[0, "user_clicks_1h"], rows.loc[1, "user_ctr_24h"] = -1.0, float("nan")
            rows.loc[2, "user_id"] = "user_id-3"
        if view == "item_daily":
            rows["created"] -= pd.Timedelta(days=3)
        return rows.head(5) if view == "creator_activity" else rows

    for day in DAYS[-4:-1]:
        views(lake, day)
    views(lake, TODAY, spoil)
    code, suites = gate(lake, "--suite=features")
    assert code == 1
    assert found(suites["features"]) == {
        (str(TODAY), VALUES, "user_clicks_1h"),
        (str(TODAY), NO_NULL, "user_ctr_24h"),
        (str(TODAY), UNIQUE, "user_id"),
        (str(TODAY), VALUES, "volume_ratio"),
        (ALL, "expect_column_max_to_be_between", "created"),
    }


def test_a_missing_table_and_wrong_limits_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["--lake", str(tmp_path), "--suite=examples"]) == 1
    assert capsys.readouterr().err.startswith("quality: no table at ")
    (tmp_path / "limits.toml").write_text("[events]\nmax_distanse = 0.1\n")
    assert quality.main(["--lake", str(tmp_path), "--suite=events", "--limits", str(tmp_path / "limits.toml")]) == 1
    said = capsys.readouterr().err
    assert "events.max_distanse" in said
    assert "allowed: tables events, items" in said
