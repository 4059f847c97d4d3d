"""The quality gates: `python -m batch.quality --lake DIR --suite events|examples [--docs DIR]`.

Reads the table without a JVM, newest partitions first up to `--max-rows` whole partitions, validates it, builds
Data Docs, and exits with 1 naming the expectations that failed. The partitions they failed in go to the lake's
quarantine table with the reasons; whatever waits for the gate does not run.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import great_expectations as gx
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake
from great_expectations import ExpectationSuite
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.data_context.data_context.abstract_data_context import AbstractDataContext
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.datasource.fluent.interfaces import Batch

from batch.command import fail, write_report
from features.names import LakeTables
from features.quality import DELAY_MS, EVENT_COLUMNS, Thresholds, events_suite, example_columns, examples_suite

MAX_ROWS = 500_000
_ALL = "all"
"""Partition of a failure that concerns the table as a whole."""
_SITE = "docs"


class MissingTableError(RuntimeError):
    """The gate has nothing to judge."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What one suite looks at."""

    table: str
    columns: tuple[str, ...]
    suite: Callable[[int, Thresholds], ExpectationSuite]


GATES: dict[str, Gate] = {
    "events": Gate(table=LakeTables().silver_events, columns=EVENT_COLUMNS, suite=events_suite),
    "examples": Gate(
        table=LakeTables().examples, columns=example_columns(), suite=lambda _now, limits: examples_suite(limits)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One expectation that one partition does not meet."""

    partition: str
    expectation: str
    column: str
    observed: str


def judge(lake: Path, suite: str, docs: Path, now_ms: int, thresholds: Thresholds, max_rows: int) -> dict[str, object]:
    """Runs one gate. The report's `failures` is empty when the gate is open; otherwise they are in quarantine.

    Raises `MissingTableError` when the table does not exist.
    """
    gate = GATES[suite]
    rows, version = read_sample(lake / gate.table, gate.columns, max_rows)
    context = _context(docs)
    expectations = context.suites.add(gate.suite(now_ms, thresholds))
    definition = (
        context.data_sources.add_pandas(suite)
        .add_dataframe_asset(gate.table.replace("/", "."))
        .add_batch_definition("sample")
    )
    validation = gx.ValidationDefinition(name=suite, data=definition, suite=expectations)
    checkpoint = gx.Checkpoint(name=suite, validation_definitions=[context.validation_definitions.add(validation)])
    run = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": rows})
    context.build_data_docs(site_names=[_SITE])
    results = [result for of_suite in run.run_results.values() for result in of_suite.results]
    broken = [result for result in results if not result.success]
    failures = list(_failures(broken, rows, lambda part: definition.get_batch({"dataframe": part})))
    if failures:
        quarantine(lake, suite, version, now_ms, failures)
    return {
        "suite": suite,
        "table": gate.table,
        "version": version,
        "rows": len(rows),
        "expectations": len(results),
        "failures": [vars(failure) for failure in failures],
        "docs": str(docs / "index.html"),
    }


def read_sample(table: Path, columns: tuple[str, ...], max_rows: int) -> tuple[pd.DataFrame, int]:
    """Whole partitions, newest first, until they hold `max_rows` rows; and the table's version."""
    if not DeltaTable.is_deltatable(str(table)):
        raise MissingTableError(f"no table at {table}: run the job that writes it first.")
    delta = DeltaTable(str(table))
    files = pa.table(delta.get_add_actions(flatten=True)).to_pandas()
    per_date = files.groupby("partition.event_date")["num_records"].sum() if len(files) else pd.Series(dtype="int64")
    newest = per_date.sort_index(ascending=False)
    wanted = newest[newest.cumsum().shift(fill_value=0) < max_rows].index.tolist()
    dataset = delta.to_pyarrow_dataset()
    # A column that the table lacks stays out; every expectation on it fails and names it.
    present = [name for name in columns if name in dataset.schema.names]
    rows = dataset.to_table(columns=present, filter=pc.field("event_date").isin(wanted)).to_pandas()
    if {"arrival_ms", "event_time_ms"} <= set(rows.columns):
        rows[DELAY_MS] = rows["arrival_ms"] - rows["event_time_ms"]
    return rows, delta.version()


def _context(docs: Path) -> AbstractDataContext:
    """A context without files of its own but for the Data Docs, which sends nothing anywhere."""
    config = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults(), analytics_enabled=False)
    context = gx.get_context(mode="ephemeral", project_config=config)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.absolute())}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    context.add_data_docs_site(
        _SITE, {"class_name": "SiteBuilder", "store_backend": backend, "site_index_builder": index}
    )
    return context


def _failures(
    broken: list[ExpectationValidationResult], rows: pd.DataFrame, batch_of: Callable[[pd.DataFrame], Batch]
) -> Iterator[Failure]:
    """Names the partitions: what is broken row by row is asked again of each event date alone."""
    for result in broken:
        assert result.expectation_config is not None  # Great Expectations always says what it judged
        if "_values_" not in result.expectation_config.type or _raised(result):
            yield _failure(_ALL, result)
            continue
        found = False
        for date, part in rows.groupby("event_date"):
            again = batch_of(part).validate(result.expectation_config.to_domain_obj())
            if not again.success:
                found = True
                yield _failure(str(date), again)
        if not found:
            yield _failure(_ALL, result)


def _raised(result: ExpectationValidationResult) -> bool:
    """Whether it could not be judged at all, as when the column is absent."""
    return "'raised_exception': True" in str(result.exception_info)


def _failure(partition: str, result: ExpectationValidationResult) -> Failure:
    config = result.expectation_config
    assert config is not None  # as above
    columns = config.kwargs.get("column_list") or [config.kwargs.get("column", "")]
    shown = {key: result.result[key] for key in _SHOWN if key in result.result}
    return Failure(
        partition=partition,
        expectation=config.type,
        column=",".join(columns),
        observed=json.dumps(shown, default=str) if shown else str(result.exception_info)[:300],
    )


_SHOWN = ("observed_value", "unexpected_count", "element_count", "partial_unexpected_list")


def quarantine(lake: Path, suite: str, version: int, now_ms: int, failures: list[Failure]) -> None:
    """Appends the failures to the quarantine table: which partition of which version, and why."""
    rows = [{"suite": suite, "table_version": version, "judged_at_ms": now_ms, **vars(each)} for each in failures]
    write_deltalake(str(lake / LakeTables().quarantine), pa.Table.from_pylist(rows), mode="append")


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0 when the gate is open; 1 with one sentence when it is closed or cannot judge."""
    parser = argparse.ArgumentParser(prog="python -m batch.quality", description=__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--suite", choices=sorted(GATES), required=True)
    parser.add_argument("--docs", type=Path, help="where Data Docs go; default: LAKE/../data_docs/SUITE")
    parser.add_argument("--now-ms", type=int, help="default: the wall clock")
    parser.add_argument("--min-rows", type=int, default=Thresholds.min_rows)
    parser.add_argument("--max-age-ms", type=int, default=Thresholds.max_age_ms)
    parser.add_argument("--max-rows", type=int, default=MAX_ROWS, help="rows judged, in whole partitions")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args(arguments)
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    lake = given.lake.absolute()
    docs = given.docs or lake.parent / "data_docs" / given.suite
    now_ms = int(time.time() * 1000) if given.now_ms is None else given.now_ms
    thresholds = Thresholds(min_rows=given.min_rows, max_age_ms=given.max_age_ms)
    try:
        report = judge(lake, given.suite, docs, now_ms, thresholds, given.max_rows)
    except MissingTableError as error:
        return fail("quality", error)
    write_report(report, given.report)
    failures = report["failures"]
    assert isinstance(failures, list)  # judge builds it
    if not failures:
        return 0
    said = sorted({f"{failure['expectation']}({failure['column']})" for failure in failures})
    sys.stderr.write(f"quality: the gate {given.suite} is closed: {', '.join(said)}. See {report['docs']}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
