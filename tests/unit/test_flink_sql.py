"""The job's SQL follows the contract: a golden file to review, and what a change of the contract does to it."""

import json
from pathlib import Path

import pytest

from features import specs, tiles
from features.events import FIELDS, EventType
from features.names import Topics
from features.specs import LIKES, Aggregate, Entity, Selection, WindowedFeature
from features.tiles import FAMILIES, ITEM_TILES, USER_CATEGORY_TILES
from streaming import flink_sql
from streaming.flink_sql import compile_job, contract_json, tile_insert, tile_table

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "flink.sql"
BROKER = "broker:9092"
TOPICS = Topics(version="v0")


def test_the_sql_is_the_golden_file(request: pytest.FixtureRequest) -> None:
    """After a wanted change: `pytest --regenerate-golden`, reviewed as a diff."""
    script = compile_job(TOPICS, BROKER).script
    if request.config.getoption("--regenerate-golden"):
        GOLDEN.write_text(script)
    assert script == GOLDEN.read_text()


def test_the_contract_is_handed_over_whole() -> None:
    rules = json.loads(contract_json())
    assert [field["name"] for field in rules["fields"]] == [field.name for field in FIELDS]
    assert set(rules["event_types"]) == set(EventType)
    watch = next(field for field in rules["fields"] if field["name"] == "watch_ms")
    assert watch == {
        "name": "watch_ms", "kind": "integer", "required_for": ["watch"], "max_bytes": 128,
        "minimum": 0, "maximum": 86_400_000,
    }  # fmt: skip


def test_each_family_has_one_insert_and_one_table_with_the_same_columns() -> None:
    job = compile_job(TOPICS, BROKER)
    for family in FAMILIES:
        insert = next(text for text in job.inserts if f"INTO tiles_{family.name}\n" in text)
        table = next(text for text in job.tables if f"TABLE tiles_{family.name} " in text)
        named = ["tile_ms", "tile_start_ms", "n", "max_event_time_ms", *(column.name for column in family.columns)]
        # Kafka's sink takes columns by position, so the order matters.
        places = [insert.index(name) for name in ("`tile_ms`", "`tile_start_ms`", "AS n,", "AS max_event_time_ms")]
        assert places == sorted(places)
        assert insert.count("GROUP BY " + ", ".join(f"`{name}`" for name in (*family.key_fields, *named[:2]))) == 1
        aliases = [line.rsplit("`", 2)[1] for line in insert.splitlines() if line.startswith("  COALESCE(")]
        assert aliases == [column.name for column in family.columns]
        assert [line.split("`")[1] for line in table.splitlines() if "BIGINT" in line] == named
        assert f"'topic' = '{TOPICS.tiles(family.name)}'" in table


def test_a_new_feature_brings_its_column_to_its_family_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {family.name: tile_insert(family) for family in FAMILIES}
    day_ms = 86_400_000
    new = WindowedFeature(
        name="item_likes_24h", entity=Entity.ITEM, aggregate=Aggregate.COUNT, events=LIKES, window_ms=day_ms
    )
    rare = Selection(name="unhides", event_types=frozenset({EventType.UNHIDE}))
    extended = (
        *specs.WINDOWED_FEATURES,
        new,
        WindowedFeature(
            name="item_unhides_24h", entity=Entity.ITEM, aggregate=Aggregate.COUNT, events=rare, window_ms=day_ms
        ),
    )
    monkeypatch.setattr(tiles, "WINDOWED_FEATURES", extended)
    assert tile_insert(USER_CATEGORY_TILES) == before[USER_CATEGORY_TILES.name]
    assert "event_type IN ('unhide')" in tile_insert(ITEM_TILES)
    assert "`unhides` BIGINT" in tile_table(ITEM_TILES, TOPICS, BROKER)
    assert "`likes` BIGINT" in tile_table(ITEM_TILES, TOPICS, BROKER)
    assert compile_job(TOPICS, BROKER).plan_hash != _hash_of(before)


def test_the_plan_hash_follows_the_queries_and_not_the_connection() -> None:
    job = compile_job(TOPICS, BROKER)
    elsewhere = compile_job(Topics(version="v1", events="other"), "elsewhere:9092")
    assert job.plan_hash == elsewhere.plan_hash
    assert job.plan_hash != compile_job(TOPICS, BROKER, FAMILIES[:1]).plan_hash


def test_a_changed_contract_is_another_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compile_job(TOPICS, BROKER).plan_hash
    monkeypatch.setattr(flink_sql, "MAX_EVENT_BYTES", 8 * 1024)
    assert compile_job(TOPICS, BROKER).plan_hash != before


def test_nothing_in_the_sql_reads_the_clock_for_a_value() -> None:
    """Processing time expires state and numbers copies as they come; no output depends on it."""
    script = compile_job(TOPICS, BROKER).script.replace("ORDER BY PROCTIME()", "")
    for word in ("CURRENT_TIMESTAMP", "NOW()", "WATERMARK", "LOCALTIME", "PROCTIME"):
        assert word not in script


def _hash_of(inserts: dict[str, str]) -> str:
    job = compile_job(TOPICS, BROKER)
    kept = tuple(text for text in job.inserts if "INTO tiles_" not in text)
    return flink_sql.JobSql(functions=(), tables=(), views=job.views, inserts=(*kept, *inserts.values())).plan_hash
