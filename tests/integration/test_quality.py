"""The gates close when the data breaks, name what broke and where, and say so by their exit code."""

import datetime
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from deltalake import DeltaTable, write_deltalake

from batch import quality
from features.names import LakeTables
from features.quality import example_columns
from features.specs import WINDOWED_FEATURES

NOW_MS = 1_760_000_000_000
DAYS = [datetime.date(2025, 10, 8), datetime.date(2025, 10, 9)]


def events() -> pd.DataFrame:
    rows = 40
    return pd.DataFrame(
        {
            "event_id": [f"e{n}" for n in range(rows)],
            "event_type": ["impression", "watch", "click", "like"] * 10,
            "event_time_ms": [NOW_MS - 1_000 * n - 1 for n in range(rows)],
            "user_id": [f"u{n % 4}" for n in range(rows)],
            "item_id": "i1",
            "category": "music",
            "creator_id": "c1",
            "request_id": ["r1", None, None, None] * 10,
            "position": pd.array([1, None, None, None] * 10, dtype="Int64"),
            "watch_ms": pd.array([None, 500, None, None] * 10, dtype="Int64"),
            "duration_ms": pd.array([None, 1_000, None, None] * 10, dtype="Int64"),
            "device": "phone",
            "schema_version": 1,
            "arrival_ms": [NOW_MS - 1_000 * n for n in range(rows)],
            "event_date": [DAYS[n % 2] for n in range(rows)],
        }
    )


def examples() -> pd.DataFrame:
    rows = 30
    table: dict[str, object] = {
        "event_id": [f"e{n}" for n in range(rows)],
        **dict.fromkeys(("request_id", "user_id", "item_id", "category", "creator_id", "language", "device"), "x"),
        **dict.fromkeys(("t_ms", "position", "duration_ms", "published_at_ms"), 1),
        **dict.fromkeys(("label_like", "label_share", "label_hide"), 0),
        "label_click": [n % 2 for n in range(rows)],
        "label_completion": [None, 0.0, 1.0] * 10,
        "label_watch_fraction": [None, 0.2, 1.0] * 10,
        "event_date": [DAYS[n % 2] for n in range(rows)],
        **{feature.name: feature.default for feature in WINDOWED_FEATURES},
    }
    return pd.DataFrame(table)[list(example_columns())]


def put(lake: Path, suite: str, table: pd.DataFrame) -> None:
    write_deltalake(str(lake / quality.GATES[suite].table), table, partition_by=["event_date"])


def gate(lake: Path, suite: str, *flags: str) -> int:
    return quality.main(["--lake", str(lake), "--suite", suite, "--now-ms", str(NOW_MS), *flags])


@pytest.mark.parametrize(("suite", "table"), [("events", events), ("examples", examples)])
def test_sound_data_opens_the_gate_and_builds_the_docs(
    suite: str, table: Callable[[], pd.DataFrame], tmp_path: Path
) -> None:
    put(tmp_path / "lake", suite, table())
    assert gate(tmp_path / "lake", suite, "--docs", str(tmp_path / "docs")) == 0
    assert (tmp_path / "docs" / "index.html").exists()
    assert list((tmp_path / "docs" / "validations").rglob("*.html"))
    assert not (tmp_path / "lake" / LakeTables().quarantine).exists()


BREAKS: list[tuple[str, str, object, str, str]] = [
    ("events", "user_id", None, "expect_column_values_to_not_be_null", str(DAYS[0])),
    ("events", "event_id", "e2", "expect_compound_columns_to_be_unique", "all"),
    ("events", "event_type", "dance", "expect_column_values_to_be_in_set", str(DAYS[0])),
    ("events", "category", "two words", "expect_column_values_to_match_regex", str(DAYS[0])),
    ("events", "arrival_ms", NOW_MS + 3 * 86_400_000, "expect_column_values_to_be_between", str(DAYS[0])),
    ("events", "position", None, "expect_column_values_to_not_be_null", str(DAYS[0])),
    ("examples", "label_click", 2, "expect_column_values_to_be_in_set", str(DAYS[0])),
    ("examples", "user_clicks_1h", -1.0, "expect_column_values_to_be_between", str(DAYS[0])),
    ("examples", "user_completion_rate_24h", 1.5, "expect_column_values_to_be_between", str(DAYS[0])),
    ("examples", "item_ctr_1h", float("nan"), "expect_column_values_to_not_be_null", str(DAYS[0])),
]


@pytest.mark.parametrize(("suite", "column", "value", "expectation", "partition"), BREAKS)
def test_one_broken_value_closes_the_gate_and_names_it(
    suite: str,
    column: str,
    value: object,
    expectation: str,
    partition: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = {"events": events, "examples": examples}[suite]()
    row = 6 if column == "event_id" else 0
    table.loc[row, column] = value
    put(tmp_path, suite, table)
    assert gate(tmp_path, suite, "--docs", str(tmp_path / "docs")) == 1
    named = "user_id,event_id" if column == "event_id" else "delay_ms" if column == "arrival_ms" else column
    assert f"{expectation}({named})" in capsys.readouterr().err
    held = DeltaTable(str(tmp_path / LakeTables().quarantine)).to_pandas()
    assert (partition, expectation, named) in set(
        zip(held["partition"], held["expectation"], held["column"], strict=True)
    )


def test_stale_thin_and_constant_data_close_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "events", events())
    assert gate(tmp_path, "events", "--max-age-ms", "-1", "--min-rows", "41", "--docs", str(tmp_path / "d")) == 1
    said = capsys.readouterr().err
    assert "expect_column_max_to_be_between(arrival_ms)" in said
    assert "expect_table_row_count_to_be_between()" in said
    put(tmp_path, "examples", examples().assign(label_click=0).drop(columns=["user_clicks_7d"]))
    assert gate(tmp_path, "examples", "--docs", str(tmp_path / "d")) == 1
    said = capsys.readouterr().err
    assert "expect_column_unique_value_count_to_be_between(label_click)" in said
    assert "(user_clicks_7d)" in said


def test_a_missing_table_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path, "examples") == 1
    assert capsys.readouterr().err.startswith("quality: no table at ")
