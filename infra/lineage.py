"""From a served slate back to Kafka, as far as each step is still on this machine.

slate → bundle → training runs → Delta versions → Kafka offsets. What is gone (a bundle that was cleaned up, a Delta
version whose files were vacuumed) is said in its place, and the rest goes on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from features.names import LakeTables
from models.bundle import BundleError, read_manifest
from models.refusal import RefusalError
from models.workspace import REPORT
from serving.request_log import RequestLogReader

if TYPE_CHECKING:
    from models.registry import Version

TABLES = LakeTables()
RAW_OF: Mapping[str, str] = {TABLES.silver_events: TABLES.bronze_events}
"""The table of raw records that a table of counted ones is read from."""
_SLATE = (
    "request_id",
    "user_id",
    "served_at_ms",
    "surface",
    "bundle_id",
    "arm",
    "degraded",
    "snapshot_instant_ms",
    "newest_event_ms",
    "schema_version",
    "topic",
    "partition",
    "offset",
    "arrival_ms",
)
NOT_INGESTED = "its place in Kafka: it is in the request log, and the lake does not hold it yet"
_OFFSETS = ("topic", "partition", "offset")


class LineageError(RefusalError):
    """A slate that cannot be found."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing in the chain, with what it was made from."""

    kind: str
    """slate, bundle, run or table."""
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    """Why no more is known of it; empty when all is."""
    made_from: Sequence["Step"] = ()

    def to_json(self) -> dict[str, Any]:
        """The step and all before it."""
        record: dict[str, Any] = {"kind": self.kind, "name": self.name, **self.facts}
        if self.missing:
            record["missing"] = self.missing
        return {**record, "made_from": [step.to_json() for step in self.made_from]}


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the steps are looked for."""

    lake: Path
    bundles_dir: Path
    workspace: Path
    versions: Mapping[str, "Version"] = field(default_factory=dict)
    """The registry's bundles by id."""
    request_log: Path | None = None
    """Where the service keeps its last day's answers: asked for what has not come to the lake yet."""


def lineage(request_id: str, places: Places) -> Step:
    """The slate with everything behind it. Raises `LineageError` when neither lake nor request log hold it."""
    found, missing = _in_lake(request_id, places.lake), ""
    if found is None and places.request_log is not None:
        found, missing = _in_request_log(request_id, places.request_log), NOT_INGESTED
    if found is None:
        raise LineageError(
            f"no slate {request_id!r} in {places.lake / TABLES.slates} or the request log; give the request_id of an "
            "answer, and if it is newer than the last run of the DAG lake_ingest, run that first."
        )
    facts = {name: found[name] for name in _SLATE if name in found and name != "request_id"}
    bundle = _bundle(facts["bundle_id"], places)
    return Step(kind="slate", name=request_id, facts=facts, missing=missing, made_from=(bundle,))


def _in_lake(request_id: str, lake: Path) -> dict[str, Any] | None:
    path = str(lake / TABLES.slates)
    if not DeltaTable.is_deltatable(path):
        return None
    slates = DeltaTable(path).to_pyarrow_dataset()
    found = slates.to_table(columns=list(_SLATE), filter=pc.field("request_id") == request_id).to_pylist()
    return found[0] if found else None


def _in_request_log(request_id: str, directory: Path) -> dict[str, Any] | None:
    record = RequestLogReader(directory).find(request_id)
    return None if record is None else {**vars(record), "degraded": list(record.degraded)}


def _bundle(bundle_id: str, places: Places) -> Step:
    version = places.versions.get(bundle_id)
    facts: dict[str, Any] = {}
    if version is not None:
        facts = {"version": version.version, "gates": version.tags.get("gates", ""), "mlflow_run": version.run_id}
    try:
        manifest = read_manifest(places.bundles_dir / bundle_id)
    except BundleError as error:
        return Step(kind="bundle", name=bundle_id, facts=facts, missing=str(error))
    kept = ("created_at_ms", "features_version", "code_version", "seeds", "reweighted_from")
    facts |= {name: manifest[name] for name in kept if name in manifest}
    versions = manifest.get("delta_versions", {})
    runs = [_run(kind, str(run_id), versions, places) for kind, run_id in sorted(manifest.get("runs", {}).items())]
    return Step(kind="bundle", name=bundle_id, facts=facts, made_from=runs)


def _run(kind: str, run_id: str, bundled: Mapping[str, int], places: Places) -> Step:
    """A training run with the tables it read; those of the whole bundle once its own report is gone."""
    facts: dict[str, Any] = {"trains": kind}
    versions, missing = bundled, ""
    try:
        report = json.loads((places.workspace / kind / run_id / REPORT).read_text())
        facts["seed"] = report.get("seed")
        versions = report["delta_versions"]
    except (OSError, ValueError, KeyError):
        missing = f"its report is gone from {places.workspace / kind}; the tables are those of the whole bundle"
    tables = [_table(name, int(version), places.lake) for name, version in sorted(versions.items())]
    return Step(kind="run", name=run_id, facts=facts, missing=missing, made_from=tables)


def _table(name: str, version: int, lake: Path) -> Step:
    """One version of a table: what its commit says that it was made from, or the offsets of its own records."""
    step, path = f"{name} v{version}", lake / name
    try:
        table = DeltaTable(path, version=version)
        commit = _commit(path, version)
        facts = {"committed_at_ms": commit.get("timestamp"), "operation": commit.get("operation")}
        sources = _sources(commit)
        if sources:
            made_from = [_table(source, int(v), lake) for source, v in sorted(sources.items())]
            return Step(kind="table", name=step, facts=facts, made_from=made_from)
        return Step(
            kind="table",
            name=step,
            facts={**facts, "offsets": offsets_of(table)},
            made_from=_raw(name, commit.get("timestamp"), lake),
        )
    except (TableNotFoundError, DeltaError, OSError) as error:
        reason = " ".join(str(error).split())
        return Step(kind="table", name=step, missing=f"this version cannot be read any more: {reason}")


def _raw(name: str, committed_at_ms: int | None, lake: Path) -> tuple[Step, ...]:
    """The raw records that stood in the lake when a version of the table was written; it holds some of these."""
    if name not in RAW_OF or committed_at_ms is None:
        return ()
    commits = _history(lake / RAW_OF[name])
    before = [commit["version"] for commit in commits if commit["timestamp"] <= committed_at_ms]
    return (_table(RAW_OF[name], max(before), lake),) if before else ()


def offsets_of(table: DeltaTable) -> list[dict[str, Any]]:
    """The first and last offset, and the number of records, of each topic and partition; empty for a table that does
    not say where its rows are from. Reads three columns of the whole version.
    """
    if not set(_OFFSETS) <= {column.name for column in table.schema().fields}:
        return []
    ranges: dict[tuple[str, int], list[int]] = {}
    for batch in table.to_pyarrow_dataset().to_batches(columns=list(_OFFSETS)):
        if not batch.num_rows:
            continue
        grouped = pa.Table.from_batches([batch]).group_by(["topic", "partition"])
        for row in grouped.aggregate([("offset", "min"), ("offset", "max"), ("offset", "count")]).to_pylist():
            known = ranges.setdefault((row["topic"], row["partition"]), [row["offset_min"], row["offset_max"], 0])
            known[:] = [
                min(known[0], row["offset_min"]),
                max(known[1], row["offset_max"]),
                known[2] + row["offset_count"],
            ]
    return [
        {"topic": topic, "partition": partition, "first": first, "last": last, "records": records}
        for (topic, partition), (first, last, records) in sorted(ranges.items())
    ]


def _history(path: Path) -> list[dict[str, Any]]:
    return DeltaTable(path).history() if DeltaTable.is_deltatable(str(path)) else []


def _commit(path: Path, version: int) -> dict[str, Any]:
    return next((commit for commit in _history(path) if commit["version"] == version), {})


def _sources(commit: Mapping[str, Any]) -> dict[str, int]:
    """The tables and versions that the job noted with its commit (`batch.training_examples`)."""
    try:
        return dict(json.loads(commit.get("userMetadata") or "{}").get("sources", {}))
    except (ValueError, TypeError, AttributeError):
        return {}
