"""From a slate back to Kafka on a lake, bundles and runs made by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

import infra.cli
from features.names import LakeTables
from features.slates import SlateRecord
from infra.lineage import LineageError, Places, lineage
from models.registry import Version
from models.workspace import atomic_json
from serving.request_log import LoggedRequest, RequestLogWriter

TABLES = LakeTables()
BUNDLE = "bundle-0123456789ab"


def records(topic: str, *spans: tuple[int, int, int]) -> pa.Table:
    """Rows of the topic: of each (partition, first, last) all offsets."""
    rows = [
        {"topic": topic, "partition": p, "offset": offset}
        for p, first, last in spans
        for offset in range(first, last + 1)
    ]
    return pa.Table.from_pylist(
        rows, pa.schema([("topic", pa.string()), ("partition", pa.int32()), ("offset", pa.int64())])
    )


def append(lake: Path, name: str, rows: pa.Table, sources: dict[str, int] | None = None) -> None:
    said = {"userMetadata": json.dumps({"sources": sources})} if sources else {}
    write_deltalake(lake / name, rows, mode="append", commit_properties=CommitProperties(custom_metadata=said))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Examples of version 0 are of events 1 and items 0; later versions of all tables know more."""
    lake = tmp_path / "lake"
    append(lake, TABLES.bronze_events, records("events", (0, 0, 9), (1, 0, 4)))
    append(lake, TABLES.silver_events, records("events", (0, 0, 3)))
    append(lake, TABLES.silver_events, records("events", (0, 5, 9), (1, 1, 4)))
    append(lake, TABLES.items, records("items", (0, 3, 6)))
    append(lake, TABLES.examples, pa.table({"label_click": [0.0]}), {TABLES.silver_events: 1, TABLES.items: 0})
    append(lake, TABLES.bronze_events, records("events", (0, 10, 19)))
    append(lake, TABLES.silver_events, records("events", (0, 10, 19)))
    slate: dict[str, Any] = {
        "request_id": "r1",
        "user_id": "u1",
        "served_at_ms": 1_760_000_000_000,
        "surface": "home",
        "bundle_id": BUNDLE,
        "arm": "champion",
        "degraded": ["score: no time left"],
        "snapshot_instant_ms": 1_759_999_999_000,
        "newest_event_ms": None,
        "schema_version": 2,
        "topic": "slates",
        "partition": 1,
        "offset": 41,
        "arrival_ms": 1_760_000_000_010,
    }
    schema = pa.Table.from_pylist([{**slate, "newest_event_ms": 1}]).schema
    append(
        lake,
        TABLES.slates,
        pa.Table.from_pylist([slate, {**slate, "request_id": "r2", "bundle_id": "bundle-x"}], schema),
    )
    manifest = {
        "format": 1,
        "bundle_id": BUNDLE,
        "files": {},
        "sources": [],
        "features_version": "abcd1234",
        "created_at_ms": 1_759_000_000_000,
        "seeds": {"ranker": 7, "candidates": 7},
        "runs": {"ranker": "ranker-1", "candidates": "candidates-1"},
        "delta_versions": {TABLES.examples: 0, TABLES.silver_events: 1, TABLES.items: 0},
    }
    atomic_json(tmp_path / "bundles" / BUNDLE / "manifest.json", manifest)
    for kind, read in (("ranker", {TABLES.examples: 0}), ("candidates", {TABLES.silver_events: 1, TABLES.items: 0})):
        atomic_json(tmp_path / "workspace" / kind / f"{kind}-1" / "report.json", {"seed": 7, "delta_versions": read})
    version = Version(
        version="3", bundle_id=BUNDLE, path="", run_id="mlflow-1", registered_at_ms=1, tags={"gates": "passed"}
    )
    return Places(
        lake=lake,
        bundles_dir=tmp_path / "bundles",
        workspace=tmp_path / "workspace",
        versions={BUNDLE: version},
    )


def span(topic: str, partition: int, first: int, last: int, count: int) -> dict[str, Any]:
    return {"topic": topic, "partition": partition, "first": first, "last": last, "records": count}


def test_a_slate_leads_to_offsets(places: Places) -> None:
    slate = lineage("r1", places)
    assert (slate.facts["topic"], slate.facts["partition"], slate.facts["offset"]) == ("slates", 1, 41)
    (bundle,) = slate.made_from
    assert (bundle.name, bundle.facts["version"], bundle.facts["mlflow_run"]) == (BUNDLE, "3", "mlflow-1")
    candidates, ranker = bundle.made_from
    assert (candidates.name, ranker.name) == ("candidates-1", "ranker-1")
    (examples,) = ranker.made_from
    assert examples.name == "gold/examples v0"
    assert "offsets" not in examples.facts, "its rows are of other tables, which it names"
    for of in (examples, candidates):
        events, items = of.made_from
        assert (events.name, items.name) == ("silver/events v1", "silver/items v0")
        assert events.facts["offsets"] == [span("events", 0, 0, 9, 9), span("events", 1, 1, 4, 4)]
        assert items.facts["offsets"] == [span("items", 0, 3, 6, 4)]
        (raw,) = events.made_from
        assert raw.name == "bronze/events v0", "what was there when the events were written"
        assert raw.facts["offsets"] == [span("events", 0, 0, 9, 10), span("events", 1, 0, 4, 5)]
        assert not items.made_from


def test_what_is_gone_is_said_in_its_place(places: Places) -> None:
    shutil.rmtree(places.workspace / "ranker")
    events = DeltaTable(places.lake / TABLES.silver_events)
    removed = [Path(uri.removeprefix("file://")) for uri in DeltaTable(events.table_uri, version=0).file_uris()]
    for file in removed:
        file.unlink()
    (bundle,) = lineage("r1", places).made_from
    candidates, ranker = bundle.made_from
    assert "its report is gone" in ranker.missing
    assert [step.name for step in ranker.made_from] == ["gold/examples v0", "silver/events v1", "silver/items v0"]
    events_step, items_step = candidates.made_from
    assert "cannot be read any more" in events_step.missing
    assert items_step.facts["offsets"], "the rest goes on"
    (other,) = lineage("r2", places).made_from
    assert other.name == "bundle-x"
    assert "no manifest.json there" in other.missing
    assert not other.made_from


def test_a_version_that_never_was(places: Places) -> None:
    report = {"seed": 7, "delta_versions": {TABLES.items: 99, "gold/nothing": 0}}
    atomic_json(places.workspace / "candidates" / "candidates-1" / "report.json", report)
    tables = lineage("r1", places).made_from[0].made_from[0].made_from
    assert [("cannot be read any more" in step.missing) for step in tables] == [True, True]


def test_a_slate_that_is_not_there(places: Places, tmp_path: Path) -> None:
    with pytest.raises(LineageError, match="no slate 'r9'"):
        lineage("r9", places)
    with pytest.raises(LineageError, match="run that first"):
        lineage("r1", Places(lake=tmp_path / "none", bundles_dir=tmp_path, workspace=tmp_path))


def test_an_answer_that_has_not_come_to_the_lake_is_found_in_the_request_log(places: Places, tmp_path: Path) -> None:
    record = SlateRecord(
        request_id="r9",
        user_id="u1",
        served_at_ms=1_760_000_000_000,
        surface="home",
        bundle_id=BUNDLE,
        arm="millrace",
        degraded=("score: no time left",),
        snapshot_instant_ms=1,
        newest_event_ms=None,
        user_features={},
        items=(),
        candidates=(),
    )
    writer = RequestLogWriter(tmp_path / "log", lambda: record.served_at_ms)
    writer.write([LoggedRequest(record=record, value=record.to_json())])
    writer.close()
    slate = lineage("r9", replace(places, request_log=tmp_path / "log"))
    assert slate.facts["degraded"] == ["score: no time left"]
    assert "offset" not in slate.facts
    assert "the lake does not hold it yet" in slate.missing
    assert [step.name for step in slate.made_from] == [BUNDLE]
    json.dumps(slate.to_json())
    found = lineage("r1", replace(places, request_log=tmp_path / "log"))
    assert (found.facts["offset"], found.missing) == (41, ""), "what the lake has is taken from there"
    with pytest.raises(LineageError, match="no slate 'r8'"):
        lineage("r8", replace(places, request_log=tmp_path / "none"))


def test_the_command_shows_a_tree_or_json(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLRACE_VAR_DIR", str(places.lake.parent))
    for flags in ((), ("--json",)):
        monkeypatch.setattr("sys.argv", ["millrace", "lineage", "r1", *flags])
        with pytest.raises(SystemExit) as ended:
            infra.cli.main()
        assert not ended.value.code
    tree, _, record = capsys.readouterr().out.partition("{")
    for line in (
        "slate r1",
        "offset: 41",
        f"bundle {BUNDLE}",
        "run candidates-1",
        "table silver/events v1",
        "Kafka events-0: offsets 0 to 9, 9 records",
        "table bronze/events v0",
        "served_at_ms: 2025-10-09 08:53:20 UTC (1760000000000)",
    ):
        assert line in tree
    found = json.loads("{" + record)
    assert found["made_from"][0]["made_from"][1]["made_from"][0]["name"] == "gold/examples v0"
